"""Transformers' continuous batching, for in_process.py and front.py. Runs in the environment that scripts/peers/transformers makes."""

import argparse
import os
from collections.abc import Iterator

import torch
import transformers
from front import serve
from in_process import Progress, answer_rounds, protocol_output

# Of no vocabulary.
NO_TOKEN = -1


def main() -> None:
    """Loads, and answers."""
    output = protocol_output()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, metavar="DIRECTORY")
    parser.add_argument("--dtype", default="float32", help="of weights and of all that is computed (float32)")
    parser.add_argument("--attention", default="sdpa", metavar="NAME", help="one of Transformers' implementations (sdpa)")
    parser.add_argument("--compile-level", type=int, default=0, metavar="N", help="of continuous batching, from 0 to 3 (0)")
    parser.add_argument("--page-tokens", type=int, default=64, help="tokens of a page of the KV cache (64)")
    parser.add_argument("--parallel", type=int, required=True, help="sequences computed together")
    parser.add_argument("--kv-tokens", type=int, required=True, help="tokens that the KV cache holds")
    parser.add_argument("--step-tokens", type=int, required=True, help="tokens of one step")
    parser.add_argument("--port", type=int, help="serve OpenAI's chats there, instead of answering rounds of prompts")
    args = parser.parse_args()
    engine = Transformers(args)
    try:
        if args.port:
            serve(engine, os.path.basename(os.path.normpath(args.model)), args.port)
        else:
            answer_rounds(engine, output)
    finally:
        engine.stop()


class Transformers:
    """The manager of continuous batching, which computes on a thread of its own."""

    def __init__(self, args: argparse.Namespace):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        model = transformers.AutoModelForCausalLM.from_pretrained(
            args.model, dtype=getattr(torch, args.dtype), attn_implementation=args.attention
        )
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
        self._ends = model.generation_config.eos_token_id
        # Unless it is asked for, no token ends an answer.
        generation = transformers.GenerationConfig(do_sample=False, eos_token_id=NO_TOKEN)
        batching = transformers.ContinuousBatchingConfig(
            page_size=args.page_tokens,
            num_blocks=-(-args.kv_tokens // args.page_tokens),
            max_batch_tokens=args.step_tokens,
            max_requests_per_batch=args.parallel,
            default_compile_level=args.compile_level,
        )
        self._manager = model.eval().init_continuous_batching(generation, batching)
        self._manager.start()
        self._told: dict[str, int] = {}

    def submit(self, number: int, prompt: list[int], tokens: int, may_end: bool = False) -> None:
        ends = self._ends if may_end and self._ends is not None else NO_TOKEN
        if self._manager.add_request(prompt, str(number), max_new_tokens=tokens, streaming=True, eos_token_id=ends) is None:
            raise SystemExit("error: Transformers takes no more requests")

    def wait(self) -> Iterator[Progress]:
        result = self._manager.get_result()
        if result is None or result.error:
            raise SystemExit(f"error: Transformers failed: {result and result.error}")
        # Each result has all tokens of its answer so far.
        told = self._told.pop(result.request_id, 0)
        if not result.is_finished():
            self._told[result.request_id] = len(result.generated_tokens)
        yield Progress(int(result.request_id), result.generated_tokens[told:], result.is_finished())

    def chat_tokens(self, messages: list[dict]) -> list[int]:
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)

    def text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def stop(self) -> None:
        """Ends the thread."""
        self._manager.stop(block=True)


if __name__ == "__main__":
    main()
