#!/usr/bin/env python3
"""How fast Transformers' continuous batching decodes on a card: so many sequences with so many tokens before those that count.

What is told of decoding is the difference between two rounds of the same number of prompts: one that brings a token of each, and one that brings
some more. With `--job` it is all requests of a run of `tandem bench` at once, by the lengths in its `requests.jsonl`, and the output tokens in a
second of all of it. Prompts are random, and new in every round. Runs with the Python that has PyTorch; where there is none that sees a card the
exit code is 3, and the last line says what is missing. `scripts/gpu-check` calls it.

    scripts/peer_card.py --model DIRECTORY [--sequences 1,8,32,128] [--before 512] [--decoded 64] [--json FILE]
    scripts/peer_card.py --model DIRECTORY --job requests.jsonl [--json FILE]
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

ABSENT = 3
REPEATS = 2
WARM_UP_TOKENS = 4
# Of no vocabulary, so that no token ends an answer.
NO_TOKEN = -1


def main() -> None:
    """Measures, prints a line for each number of sequences, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, metavar="DIRECTORY")
    parser.add_argument("--sequences", default="1,8,32,128", metavar="N,...", help="decoded at a time (1,8,32,128)")
    parser.add_argument("--before", type=int, default=512, metavar="TOKENS", help="of each prompt (512)")
    parser.add_argument("--decoded", type=int, default=64, metavar="TOKENS", help="of each sequence (64)")
    parser.add_argument("--job", type=Path, metavar="FILE.jsonl", help="requests by their lengths, instead of numbers of sequences")
    parser.add_argument("--device", default="cuda", help="what PyTorch calls it (cuda)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write what was measured")
    args = parser.parse_args()
    counts = [int(count) for count in args.sequences.split(",")]
    torch, transformers = modules(args.device)
    engine = Engine(torch, transformers, args)
    report = {"model": str(args.model), "device": engine.device_name, "torch": torch.__version__, "transformers": transformers.__version__}
    try:
        if args.job:
            report |= engine.job(lengths(args.job))
            print(f"decode {report['requests']} of a job: {report['tokens_per_second']:.0f}/s", flush=True)
        else:
            report |= {"tokens_before": args.before, "tokens_decoded": args.decoded, "results": []}
            for count in counts:
                one = engine.measure(count, args.before, args.decoded)
                report["results"].append(one)
                print(f"decode {count}: {one['tokens_per_second']:.0f}/s, prompts {one['prompt_tokens_per_second']:.0f}/s", flush=True)
    finally:
        engine.stop()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def lengths(path: Path) -> list[tuple[int, int]]:
    """Tokens of the prompt and of the answer of each request of the first repeat."""
    requests = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(one["input_tokens"], one["output_tokens"]) for one in requests if one["repeat"] == 1 and one["verdict"] == "ok"]


def modules(device: str) -> tuple:
    """What is needed, if it is there."""
    try:
        import torch
        import transformers
    except ImportError as error:
        absent(f"this Python has no {error.name}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        absent("PyTorch sees no card")
    if not hasattr(transformers, "ContinuousBatchingConfig"):
        absent(f"Transformers {transformers.__version__} has no continuous batching as it is asked for here")
    return torch, transformers


def absent(reason: str) -> None:
    """Ends, as there is nothing to compare with."""
    print(reason)
    sys.exit(ABSENT)


class Engine:
    """The manager of continuous batching, which computes on a thread of its own, as it is set by default."""

    def __init__(self, torch, transformers, args: argparse.Namespace):
        self.device_name = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
        dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
        model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa")
        model = model.to(args.device).eval()
        self._vocabulary = model.config.get_text_config().vocab_size
        self._random = random.Random(1)
        self._asked = 0
        generation = transformers.GenerationConfig(do_sample=False, eos_token_id=NO_TOKEN)
        settings = {} if args.device.startswith("cuda") else {"num_blocks": 64, "max_batch_tokens": 256}
        self._manager = model.init_continuous_batching(generation, transformers.ContinuousBatchingConfig(**settings))
        self._manager.start()

    def measure(self, sequences: int, before: int, decoded: int) -> dict:
        """The rates at so many sequences."""
        # What is compiled or captured for a size is so outside of what counts.
        self._round(sequences, before, decoded + 1)
        first = min(self._round(sequences, before, 1) for _ in range(REPEATS))
        whole = min(self._round(sequences, before, decoded + 1) for _ in range(REPEATS))
        return {
            "sequences": sequences,
            "tokens_per_second": sequences * decoded / max(whole - first, 1e-9),
            "prompt_tokens_per_second": sequences * before / first,
            "seconds": whole,
        }

    def job(self, requests: list[tuple[int, int]]) -> dict:
        """The rate of all output of requests of these lengths, asked for at once."""
        # As much at a time as there will be, so that what is compiled or captured is so before.
        self._answer([(tokens, WARM_UP_TOKENS) for tokens, _ in requests])
        seconds = self._answer(requests)
        output = sum(tokens for _, tokens in requests)
        return {"requests": len(requests), "output_tokens": output, "seconds": seconds, "tokens_per_second": output / seconds}

    def _round(self, sequences: int, before: int, tokens: int) -> float:
        """Seconds for prompts and so many tokens of each."""
        return self._answer([(before, tokens)] * sequences)

    def _answer(self, requests: list[tuple[int, int]]) -> float:
        """Seconds until all requests have an answer as long as they ask for."""
        prompts = [[self._random.randrange(self._vocabulary) for _ in range(before)] for before, _ in requests]
        begun = time.perf_counter()
        wanted = {}
        for prompt, (_, tokens) in zip(prompts, requests, strict=True):
            name = f"request {self._asked}"
            self._asked += 1
            wanted[name] = tokens
            self._manager.add_request(prompt, request_id=name, max_new_tokens=tokens)
        while wanted:
            result = self._manager.get_result(timeout=1)
            if result is None:
                if not self._manager.is_running():
                    raise SystemExit("error: Transformers' thread has ended")
                continue
            if result.error:
                raise SystemExit(f"error: Transformers failed: {result.error}")
            if result.is_finished():
                tokens = wanted.pop(result.request_id)
                if len(result.generated_tokens) != tokens:
                    raise SystemExit(f"error: {len(result.generated_tokens)} tokens came where {tokens} were asked for")
        return time.perf_counter() - begun

    def stop(self) -> None:
        """Ends the thread."""
        self._manager.stop(block=True)


if __name__ == "__main__":
    main()
