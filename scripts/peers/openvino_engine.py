"""OpenVINO GenAI's continuous batching, for in_process.py and front.py. Runs in the environment that scripts/peers/openvino makes."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy
import openvino
import openvino_genai
from front import serve
from in_process import Progress, answer_rounds, protocol_output

BLOCK_TOKENS = 32  # of the KV cache, on processors


def main() -> None:
    """Loads, and answers."""
    output = protocol_output()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, metavar="FILE")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True, help="sequences computed together")
    parser.add_argument("--kv-tokens", type=int, required=True, help="tokens that the KV cache holds")
    parser.add_argument("--step-tokens", type=int, required=True, help="tokens of one step")
    parser.add_argument("--property", action="append", default=[], metavar="KEY=VALUE", help="of OpenVINO; may be given again")
    parser.add_argument("--port", type=int, help="serve OpenAI's chats there, instead of answering rounds of prompts")
    args = parser.parse_args()
    engine = OpenVino(args)
    if args.port:
        serve(engine, Path(args.model).stem, args.port)
    else:
        answer_rounds(engine, output)


class OpenVino:
    """The pipeline, and the answers that it is at."""

    def __init__(self, args: argparse.Namespace):
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = args.step_tokens
        scheduler.max_num_seqs = args.parallel
        scheduler.num_kv_blocks = -(-args.kv_tokens // BLOCK_TOKENS)
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        # K and V in F16, as Tandem keeps them; left alone OpenVINO takes eight bits.
        properties = {"INFERENCE_NUM_THREADS": args.threads, "KV_CACHE_PRECISION": "f16"}
        for setting in args.property:
            key, _, value = setting.partition("=")
            properties[key] = json.loads(value) if value.isdecimal() else value
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(args.model, scheduler, "CPU", properties)
        self._tokenizer = self._pipeline.get_tokenizer()
        self._running: dict[int, openvino_genai.GenerationHandle] = {}

    def submit(self, number: int, prompt: list[int], tokens: int, may_end: bool = False) -> None:
        config = openvino_genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=not may_end, do_sample=False)
        self._running[number] = self._pipeline.add_request(number, openvino.Tensor(numpy.array([prompt], numpy.int64)), config)

    def wait(self) -> Iterator[Progress]:
        self._pipeline.step()
        for number, handle in list(self._running.items()):
            tokens = []
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
            ended = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
            if ended:
                if handle.get_status() != openvino_genai.GenerationStatus.FINISHED:
                    raise SystemExit(f"error: an answer ended as {handle.get_status()}")
                del self._running[number]
            if tokens or ended:
                yield Progress(number, tokens, ended)

    def chat_tokens(self, messages: list[dict]) -> list[int]:
        prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return self._tokenizer.encode(prompt, add_special_tokens=False).input_ids.data[0].tolist()

    def text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)


if __name__ == "__main__":
    main()
