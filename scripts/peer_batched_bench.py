#!/usr/bin/env python3
"""What the server costs: Tandem's decoding of some sequences against llama-batched-bench, which has no server around it.

Tandem gets eight streamed greedy completions at once (or `--parallel`); what counts is the time from when all have their first text until the
first of them has its last, and the tokens that come meanwhile. llama-batched-bench decodes as many sequences of the same lengths in a loop of
C++ that neither samples nor looks at the logits, and times that alone. With `--parallel 1` prompts are compared too: here the time to the
first text counts, there that of the prompt alone. The same file, threads, KV cache and flash attention. The two take turns, in an
order that changes from repeat to repeat; Tandem waits while the other runs. Needs nothing beyond Python.

    scripts/peer_batched_bench.py --model FILE.gguf [--threads 2] [--repeats 5] [--out result.json]
"""

import argparse
import json
import sys
from pathlib import Path

from peers.client import ask_all, random_prompts
from peers.figures import ratios, spread
from peers.llama_cpp import LlamaCpp
from peers.servers import TANDEM, Contest, output_of
from tandem_server import LocalServer

BATCHED_BENCH = "llama-batched-bench"


def main() -> None:
    """Measures, prints a Markdown table, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    Contest.add_arguments(parser)
    LlamaCpp.add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of each sequence (256)")
    parser.add_argument("--tokens", type=int, default=128, help="decoded for each sequence (128)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write everything that was measured, as JSON")
    args = parser.parse_args()

    peer = LlamaCpp.of(args)
    contest = Contest.of(args)
    report = contest.described(peer) | {"prompt_tokens": args.prompt_tokens, "tokens": args.tokens}
    rates: dict[str, list[float]] = {TANDEM: [], BATCHED_BENCH: []}
    prompt_rates: dict[str, list[float]] = {TANDEM: [], BATCHED_BENCH: []}
    with contest.start_tandem() as server:
        ask_all(server, random_prompts(-1, 32, args.parallel), 16, args.parallel)
        for repeat in range(args.repeats):
            sides = {
                TANDEM: lambda: tandem(server, random_prompts(repeat, args.prompt_tokens, args.parallel), args.tokens),
                BATCHED_BENCH: lambda: batched_bench(contest, peer, args.prompt_tokens, args.tokens),
            }
            for label in sides if repeat % 2 == 0 else reversed(sides):
                decoded, prompted = sides[label]()
                rates[label].append(decoded)
                prompt_rates[label].append(prompted)
                print(f"repeat {repeat + 1} of {args.repeats}, {label}: {rates[label][-1]:.1f} tokens/s", file=sys.stderr)

    print(f"{report['machine']}; {report['model']}; {report['threads']} threads; {args.parallel} sequences of {args.prompt_tokens} + {args.tokens} "
          f"tokens; {args.repeats} repeats; decoded tokens/s are median (min to max), the ratio pair by pair, min · median · max\n")
    print(f"| {TANDEM} | {BATCHED_BENCH} | ratio |\n|--:|--:|--:|")
    print(f"| {spread(rates[TANDEM])} | {spread(rates[BATCHED_BENCH])} | {ratios(rates[TANDEM], rates[BATCHED_BENCH])} |")
    if args.parallel == 1:
        ratio = ratios(prompt_rates[TANDEM], prompt_rates[BATCHED_BENCH])
        print(f"\nprompt tokens/s: {spread(prompt_rates[TANDEM])} to {spread(prompt_rates[BATCHED_BENCH])}, ratio {ratio}")
        report["prompt_results"] = prompt_rates
    if args.out:
        args.out.write_text(json.dumps(report | {"results": rates}, indent=1) + "\n", encoding="utf-8")


def tandem(server: LocalServer, of: list[list[int]], tokens: int) -> tuple[float, float]:
    """The rates of decoding and of prompts, which is that of the slowest."""
    result = ask_all(server, of, tokens, len(of))
    return result.decode_rate, len(of[0]) / max(answer.ttft for answer in result.answers)


def batched_bench(contest: Contest, peer: LlamaCpp, prompt_tokens: int, tokens: int) -> tuple[float, float]:
    """The rates of decoding and of prompts that llama-batched-bench reports."""
    shape = ["-npp", str(prompt_tokens), "-ntg", str(tokens), "-npl", str(contest.parallel), "--output-format", "jsonl"]
    printed = output_of(peer.batched_bench, "-m", contest.model, *peer.flags(contest), *shape)
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"error: {BATCHED_BENCH} measured nothing: sequences of {prompt_tokens} + {tokens} tokens may not fit --context")
    return lines[0]["speed_tg"], lines[0]["speed_pp"]


if __name__ == "__main__":
    main()
