#!/usr/bin/env python3
"""Tandem against llama-server, on the same GGUF file, with the same requests, in one run.

Three workloads, all of greedy completions of 64 tokens after prompts of random token ids, streamed:

    unlike  64 requests of 256 tokens that have nothing in common, 8 at once
    shared  64 requests that begin with the same 512 tokens and end in 32 of their own, 8 at once
    alone   8 requests of 256 tokens, one after the other

Both servers run from beginning to end and only one has work at a time: a llama.cpp that waits takes no processor. In each repeat a workload
runs on one and then on the other, with the same prompts, and the order changes from repeat to repeat. Prompts are new in every repeat, so that
a prefix cache, which both have on, only ever holds what belongs to the workload. What is counted is output tokens over wall time, and the time
from sending a request to the first text of its answer, both seen from the client. Needs nothing beyond Python.

    scripts/peer_bench.py --model FILE.gguf [--threads 2] [--repeats 5] [--out result.json]
"""

import argparse
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from peers.client import Round, ask_all, served_model
from peers.figures import percentile, ratios, spread
from peers.servers import LLAMA, TANDEM, Contest
from tandem_server import LocalServer

OUTPUT_TOKENS = 64


@dataclass(frozen=True)
class Workload:
    """How many requests, and what their prompts are like."""

    requests: int
    shared: int
    """Tokens that all prompts of a repeat begin with."""
    own: int
    """Tokens after them."""
    concurrency: int

    def prompts(self, seed: str, vocabulary: int) -> list[list[int]]:
        """Those of one repeat."""
        draw = random.Random(seed)
        shared = draw.choices(range(vocabulary), k=self.shared)
        return [shared + draw.choices(range(vocabulary), k=self.own) for _ in range(self.requests)]


WORKLOADS = {
    "unlike": Workload(requests=64, shared=0, own=256, concurrency=8),
    "shared": Workload(requests=64, shared=512, own=32, concurrency=8),
    "alone": Workload(requests=8, shared=0, own=256, concurrency=1),
}
# Touches all weights and starts all threads.
WARM_UP = Workload(requests=8, shared=0, own=32, concurrency=8)


def main() -> None:
    """Measures, prints a Markdown table, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    Contest.add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--requests", type=int, metavar="N", help="of each workload, instead of 64, 64 and 8")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write everything that was measured, as JSON")
    args = parser.parse_args()

    contest = Contest.of(args)
    report = contest.described() | {"repeats": args.repeats, "results": {}}
    with contest.start_tandem() as ours, contest.start_llama_server() as theirs:
        rounds = measure({TANDEM: ours, LLAMA: theirs}, args.workloads, args.requests, args.repeats)
    for workload, by_server in rounds.items():
        report["results"][workload] = {server: summary(of_server) for server, of_server in by_server.items()}
    print_table(report)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(
    servers: dict[str, LocalServer], workloads: list[str], requests: int | None, repeats: int
) -> dict[str, dict[str, list[Round]]]:
    """For each workload and server its rounds, one for each repeat."""
    vocabulary = served_model(servers[LLAMA])["meta"]["n_vocab"]
    for server in servers.values():
        ask_all(server, WARM_UP.prompts("warm-up", vocabulary), OUTPUT_TOKENS, WARM_UP.concurrency)
    rounds: dict[str, dict[str, list[Round]]] = {name: {server: [] for server in servers} for name in workloads}
    for repeat in range(repeats):
        order = list(servers.items())
        for name in workloads:
            workload = WORKLOADS[name]
            prompts = workload.prompts(f"{name} {repeat}", vocabulary)[:requests]
            for label, server in order if repeat % 2 == 0 else reversed(order):
                result = ask_all(server, prompts, OUTPUT_TOKENS, workload.concurrency)
                rounds[name][label].append(result)
                print(f"repeat {repeat + 1} of {repeats}, {name}, {label}: {result.rate:.1f} tokens/s", file=sys.stderr)
    return rounds


def summary(rounds: list[Round]) -> dict[str, list[float]]:
    """Rates by repeat, and times to first token of all requests in the order of sending."""
    return {
        "tokens_per_second": [result.rate for result in rounds],
        "ttft_ms": [1000 * answer.ttft for result in rounds for answer in result.answers],
    }


def print_table(report: dict) -> None:
    """The table, under a line that says what it is of."""
    print(f"{report['machine']}; {report['model']}; {report['threads']} threads; {report['repeats']} repeats; "
          "output tokens/s are median (min to max), the ratio is Tandem over llama-server pair by pair, min · median · max\n")
    print("| workload | Tandem, tokens/s | llama-server, tokens/s | ratio | TTFT p50 / p99 ms, Tandem | llama-server |")
    print("|---|--:|--:|--:|--:|--:|")
    for workload, by_server in report["results"].items():
        ours, theirs = by_server[TANDEM], by_server[LLAMA]
        ratio = ratios(ours["tokens_per_second"], theirs["tokens_per_second"])
        rates = " | ".join(spread(side["tokens_per_second"]) for side in (ours, theirs))
        times = " | ".join(
            f"{percentile(side['ttft_ms'], 50):.0f} / {percentile(side['ttft_ms'], 99):.0f}" for side in (ours, theirs)
        )
        print(f"| {workload} | {rates} | {ratio} | {times} |")


if __name__ == "__main__":
    main()
