#!/usr/bin/env python3
"""What it costs a token that its answer has to follow a schema: both backends on the small model, with a constraint and without.

Starts `tandem serve --profile demo` once for each backend and asks the same questions by turns: free answers, and answers under a schema
whose shortest one is longer than what is measured, so that both are of the same number of tokens. What is told is microseconds of wall time
for an output token, one request at a time and eight at once, the schema having been compiled before. Needs nothing beyond Python.

    scripts/structured_bench.py path/to/tandem [--repeats 5] [--tokens 128]
"""

import argparse
import concurrent.futures
import json
import statistics
import sys
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tandem_server import TandemServer

BACKENDS = ("llama-cpp", "candle")
ITEM = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
# A list of calls of a tool, and a text that a regular expression describes.
CONSTRAINTS = {
    "free": {},
    "list of objects": {"structured_outputs": {"json": {"type": "array", "items": ITEM, "minItems": 100}}},
    "pattern": {"structured_outputs": {"regex": "(?:[A-Z][a-z]{2,9}, ){500,}"}},
}


def main() -> None:
    """Measures and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tandem", type=Path, help="the program")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="output tokens of each request")
    args = parser.parse_args()

    print(f"{args.repeats} repeats by turns, {args.tokens} output tokens a request; median (min to max) of microseconds a token\n")
    print("| backend | answer | 1 request | more than free | 8 at once | more than free |")
    print("|---|---|--:|--:|--:|--:|")
    for backend in BACKENDS:
        with TandemServer(args.tandem, ["--profile", "demo", "--backend", backend]) as server:
            costs = measure(server.base_url, args.repeats, args.tokens)
        for name in CONSTRAINTS:
            cells = []
            for concurrency in (1, 8):
                here, free = costs[name, concurrency], costs["free", concurrency]
                more = [constrained - unconstrained for constrained, unconstrained in zip(here, free, strict=True)]
                cells += [spread(here), spread(more) if name != "free" else ""]
            print(f"| {backend} | {name} | {' | '.join(cells)} |")


def measure(url: str, repeats: int, tokens: int) -> dict[tuple[str, int], list[float]]:
    """Microseconds a token by kind of answer and number of requests at once, one for each repeat."""
    costs: dict[tuple[str, int], list[float]] = {(name, count): [] for name in CONSTRAINTS for count in (1, 8)}
    for name in CONSTRAINTS:
        ask(url, name, 0, tokens)
    for repeat in range(repeats):
        names = list(CONSTRAINTS)
        # Another one first each time.
        names = names[repeat % len(names):] + names[:repeat % len(names)]
        for concurrency in (1, 8):
            for name in names:
                started = time.monotonic()
                with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
                    numbers = range(4 * concurrency * repeat, 4 * concurrency * (repeat + 1))
                    counts = list(pool.map(lambda number: ask(url, name, number, tokens), numbers))
                assert set(counts) == {tokens}, counts
                costs[name, concurrency].append((time.monotonic() - started) / sum(counts) * 1e6)
    return costs


def ask(url: str, name: str, number: int, tokens: int) -> int:
    """One request; the number of output tokens that were counted for it."""
    messages = [{"role": "user", "content": f"What is {number}+{number + 1}?"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": tokens, "temperature": 1, "seed": number}
    body |= CONSTRAINTS[name] or {"ignore_eos": True}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["usage"]["completion_tokens"]


def spread(values: list[float]) -> str:
    """Median and extremes, as a table cell."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    main()
