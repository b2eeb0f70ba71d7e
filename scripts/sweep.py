#!/usr/bin/env python3
"""How Tandem's decoding grows with sequences and shrinks with context, through HTTP, on the candle backend.

For each number of sequences and each length of prompts: so many streamed greedy completions at once, of prompts of random token ids that have
nothing in common. What counts is the time from when all have their first text until the first has its last, and the tokens that come
meanwhile. One server has all of it, in a KV cache of `--kv-tokens`; what would not fit there is left out, and the table has a dash. With one
sequence the time to the first text is that of the prompt, and a second table has prompt tokens per second. The order of the cells turns around
from repeat to repeat. Needs nothing beyond Python.

    scripts/sweep.py --model PATH [--threads 2] [--repeats 3] [--out docs/sweep.md]

`--out` names the Markdown file; a plot goes beside it, as SVG, and everything that was measured, as JSON.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from peers.client import ask_all, random_prompts
from peers.figures import spread
from peers.plot import line_plot
from peers.servers import machine_and_commit, model_bytes
from tandem_server import LocalServer, TandemServer, default_binary

# Of prompts and decoding together.
STEP_TOKENS = 512
BLOCK_TOKENS = 16  # of the KV cache

Cell = tuple[int, int]
"""Tokens of each prompt, and sequences."""


def main() -> None:
    """Measures, prints Markdown, and writes it with a plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, metavar="PATH", help="a GGUF file or a directory")
    parser.add_argument("--tandem", type=Path, default=default_binary(), metavar="PROGRAM")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) - 1), help="threads that compute (all cores but one)")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], metavar="N")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 2048, 8192], metavar="N", help="tokens of prompts")
    parser.add_argument("--tokens", type=int, default=64, help="decoded for each sequence (64)")
    parser.add_argument("--kv-tokens", type=int, default=65_536, help="tokens that the KV cache holds (65536)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, metavar="FILE.md")
    args = parser.parse_args()

    cells = [
        (context, sequences) for context in args.contexts for sequences in args.sequences
        if sequences * length((context, sequences), args.tokens) <= args.kv_tokens
    ]
    rates: dict[Cell, list[float]] = {cell: [] for cell in cells}
    prompt_rates: dict[int, list[float]] = {context: [] for context, sequences in cells if sequences == 1}
    report = machine_and_commit(args.tandem) | {
        "model": args.model.name, "model_bytes": model_bytes(args.model), "threads": args.threads, "tokens": args.tokens,
        "repeats": args.repeats,
    }
    with start(args, max(length(cell, args.tokens) for cell in cells)) as server:
        ask_all(server, random_prompts("warm-up", 32, 8), 16, 8)
        for repeat in range(args.repeats):
            for cell in cells if repeat % 2 == 0 else reversed(cells):
                measure(server, cell, args.tokens, repeat, rates, prompt_rates)

    text = as_markdown(report, args.contexts, args.sequences, rates, prompt_rates)
    print(text)
    if args.out:
        lines = {
            f"{context} tokens": [(sequences, statistics.median(rates[context, sequences])) for c, sequences in cells if c == context]
            for context in args.contexts
        }
        plot = args.out.with_suffix(".svg")
        args.out.write_text(f"# Decoding by sequences and context\n\n{text}\n\n![The same as a plot]({plot.name})\n", encoding="utf-8")
        plot.write_text(line_plot(lines, "sequences at once", "decoded tokens/s"), encoding="utf-8")
        report["results"] = [{"context": c, "sequences": s, "tokens_per_second": values} for (c, s), values in rates.items()]
        report["prompt_results"] = [{"context": c, "tokens_per_second": values} for c, values in prompt_rates.items()]
        args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def answer_tokens(cell: Cell, tokens: int) -> int:
    """Of each sequence, so that `tokens` are left when the last prompt has been computed: until then those before it decode as well, a token in
    each step."""
    context, sequences = cell
    return tokens + sequences * context // (STEP_TOKENS - sequences) + 1


def length(cell: Cell, tokens: int) -> int:
    """What a sequence takes of the KV cache: whole blocks, and one to spare."""
    context, _ = cell
    return ((context + answer_tokens(cell, tokens)) // BLOCK_TOKENS + 2) * BLOCK_TOKENS


def start(args: argparse.Namespace, context: int) -> TandemServer:
    """With room for the longest sequence and for the most of them, to be entered."""
    settings = {
        "THREADS": args.threads,
        "PARALLEL": max(args.sequences),
        "CONTEXT": context,
        "KV_TOKENS": args.kv_tokens,
        "MAX_STEP_TOKENS": STEP_TOKENS,
    }
    environment = {f"TANDEM__BACKEND__{key}": str(value) for key, value in settings.items()}
    return TandemServer(args.tandem, ["--profile", "demo", "--backend", "candle", "--model", str(args.model.absolute())], environment)


def measure(
    server: LocalServer, cell: Cell, tokens: int, repeat: int, rates: dict[Cell, list[float]], prompt_rates: dict[int, list[float]]
) -> None:
    """One cell once."""
    context, sequences = cell
    prompts = random_prompts(f"{cell} {repeat}", context, sequences)
    result = ask_all(server, prompts, answer_tokens(cell, tokens), sequences)
    rates[cell].append(result.decode_rate)
    if sequences == 1:
        prompt_rates[context].append(context / result.answers[0].ttft)
    print(f"repeat {repeat + 1}, {context} tokens, {sequences} sequences: {result.decode_rate:.1f} tokens/s", file=sys.stderr)


def as_markdown(
    report: dict, contexts: list[int], sequences: list[int], rates: dict[Cell, list[float]], prompt_rates: dict[int, list[float]]
) -> str:
    """Both tables, under a line that says what they are of."""
    lines = [
        f"{report['machine']}; {report['tandem'].splitlines()[0]}, candle; {report['model']}; {report['threads']} threads; "
        f"{report['tokens']} tokens a sequence and more; {report['repeats']} repeats; median (min to max).",
        "",
        "Decoded tokens/s of all sequences together, by tokens of their prompts:",
        "",
        f"| sequences | {' | '.join(map(str, contexts))} |",
        f"|--:|{'--:|' * len(contexts)}",
    ]
    for count in sequences:
        cells = (spread(rates[context, count]) if (context, count) in rates else "–" for context in contexts)
        lines.append(f"| {count} | {' | '.join(cells)} |")
    if prompt_rates:
        lines += [
            "",
            "Prompt tokens/s of a sequence alone:",
            "",
            f"| {' | '.join(map(str, prompt_rates))} |",
            f"|{'--:|' * len(prompt_rates)}",
            f"| {' | '.join(map(spread, prompt_rates.values()))} |",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
