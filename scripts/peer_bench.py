#!/usr/bin/env python3
"""Tandem against another server, on the same model, with the same requests, in one run.

Three workloads, all of greedy completions of 64 tokens after prompts of random token ids, streamed:

    unlike  64 requests of 256 tokens that have nothing in common, 8 at once
    shared  64 requests that begin with the same 512 tokens and end in 32 of their own, 8 at once
    alone   8 requests of 256 tokens, one after the other

Both servers run from beginning to end and only one has work at a time: one that waits takes no processor, at the latest two seconds after its
last answer. In each repeat a workload runs on one and then on the other, with the same prompts, and the order changes from repeat to repeat.
Prompts are new in every repeat, so that a prefix cache, which both have on, only ever holds what belongs to the workload. What is counted is
output tokens over wall time, and the time from sending a request to the first text of its answer, both seen from the client. Two peers are
libraries without a server, `transformers` and `openvino`: they are asked in their own process, and the time is that to the first token, so they
are spared HTTP and text. Needs nothing beyond Python.

    scripts/peer_bench.py --model FILE.gguf [--threads 2] [--repeats 5] [--out result.json]
    scripts/peer_bench.py --peer vllm --backend candle --model FILE.gguf --peer-model DIRECTORY
"""

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from peers.client import VOCABULARY, Ask, Round
from peers.figures import percentile, ratios, spread
from peers.llama_cpp import LlamaCpp
from peers.python_peers import PythonPeer, Vllm
from peers.servers import TANDEM, Contest, Peer, asking

OUTPUT_TOKENS = 64
# For about a second after its last answer vLLM waits for the next request by spinning.
SETTLED_AFTER_S = 2
PYTHON_PEERS = {peer.name: peer for peer in (Vllm("vllm"), PythonPeer("transformers"), PythonPeer("openvino"))}


@dataclass(frozen=True)
class Workload:
    """How many requests, and what their prompts are like."""

    requests: int
    shared: int
    """Tokens that all prompts of a repeat begin with."""
    own: int
    """Tokens after them."""
    concurrency: int

    def prompts(self, seed: str) -> list[list[int]]:
        """Those of one repeat."""
        draw = random.Random(seed)
        shared = draw.choices(range(VOCABULARY), k=self.shared)
        return [shared + draw.choices(range(VOCABULARY), k=self.own) for _ in range(self.requests)]


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
    LlamaCpp.add_arguments(parser)
    parser.add_argument("--peer", choices=(LlamaCpp.name, *PYTHON_PEERS), default=LlamaCpp.name)
    parser.add_argument(
        "--peer-model", type=Path, metavar="PATH", help="for the peer, where it reads another format: vllm and transformers take a directory"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--requests", type=int, metavar="N", help="of each workload, instead of 64, 64 and 8")
    parser.add_argument("--tokens", type=int, default=OUTPUT_TOKENS, help=f"of each answer ({OUTPUT_TOKENS})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write everything that was measured, as JSON")
    args = parser.parse_args()

    contest = Contest.of(args, args.peer_model)
    if args.kv_type != "f16" and args.peer != LlamaCpp.name:
        raise SystemExit(f"error: --kv-type is for {LlamaCpp.name}")
    peer: Peer = PYTHON_PEERS.get(args.peer) or LlamaCpp.of(args)
    report = contest.described(peer) | {"tokens": args.tokens, "repeats": args.repeats, "results": {}}
    with asking(contest.start_tandem()) as ours, peer.start(contest) as theirs:
        rounds = measure({TANDEM: ours, peer.name: theirs}, args.workloads, args.requests, args.tokens, args.repeats)
    for workload, by_server in rounds.items():
        report["results"][workload] = {server: summary(of_server) for server, of_server in by_server.items()}
    print_table(report, peer.name)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(
    sides: dict[str, Ask], workloads: list[str], requests: int | None, tokens: int, repeats: int
) -> dict[str, dict[str, list[Round]]]:
    """For each workload and side its rounds, one for each repeat."""
    for ask in sides.values():
        ask(WARM_UP.prompts("warm-up"), tokens, WARM_UP.concurrency)
    rounds: dict[str, dict[str, list[Round]]] = {name: {side: [] for side in sides} for name in workloads}
    for repeat in range(repeats):
        order = list(sides.items())
        for name in workloads:
            workload = WORKLOADS[name]
            prompts = workload.prompts(f"{name} {repeat}")[:requests]
            for label, ask in order if repeat % 2 == 0 else reversed(order):
                time.sleep(SETTLED_AFTER_S)  # sleep: nothing tells when the other side has become quiet
                result = ask(prompts, tokens, workload.concurrency)
                rounds[name][label].append(result)
                print(f"repeat {repeat + 1} of {repeats}, {name}, {label}: {result.rate:.1f} tokens/s", file=sys.stderr)
    return rounds


def summary(rounds: list[Round]) -> dict[str, list[float]]:
    """Rates by repeat, and times to first token of all requests in the order of sending."""
    return {
        "tokens_per_second": [result.rate for result in rounds],
        "ttft_ms": [1000 * answer.ttft for result in rounds for answer in result.answers],
    }


def print_table(report: dict, peer: str) -> None:
    """The table, under a line that says what it is of."""
    models = " against ".join(dict.fromkeys((report["model"], report["peer_model"])))
    print(f"{report['machine']}; {models}; {report['threads']} threads; {report['repeats']} repeats; "
          f"output tokens/s are median (min to max), the ratio is Tandem over {peer} pair by pair, min · median · max\n")
    print(f"| workload | Tandem, tokens/s | {peer}, tokens/s | ratio | TTFT p50 / p99 ms, Tandem | {peer} |")
    print("|---|--:|--:|--:|--:|--:|")
    for workload, by_server in report["results"].items():
        ours, theirs = by_server[TANDEM], by_server[peer]
        ratio = ratios(ours["tokens_per_second"], theirs["tokens_per_second"])
        rates = " | ".join(spread(side["tokens_per_second"]) for side in (ours, theirs))
        times = " | ".join(
            f"{percentile(side['ttft_ms'], 50):.0f} / {percentile(side['ttft_ms'], 99):.0f}" for side in (ours, theirs)
        )
        print(f"| {workload} | {rates} | {ratio} | {times} |")


if __name__ == "__main__":
    main()
