"""Has a library answer prompts in its own process, for peers without a server that takes token ids. This is the part beside the library, and
runs in its environment; servers.py has the other end.

A line of JSON comes through standard input for each round, and one goes back through standard output:

    {"prompts": [[1, 2], …], "tokens": 64, "concurrency": 8}
    {"seconds": 1.5, "answers": [{"sent": 0.1, "arrivals": [0.5, …]}, …]}

The first line that goes out is `{"ready": true}`.
"""

import json
import os
import sys
import time
from collections.abc import Iterable
from typing import Protocol


class Engine(Protocol):
    """A library with a model loaded, which computes several prompts together."""

    def submit(self, number: int, prompt: list[int], tokens: int) -> None:
        """Begins a greedy answer of exactly `tokens` tokens. The number is one that no answer has had."""

    def wait(self) -> Iterable[tuple[int, int]]:
        """Waits until there are further tokens: the numbers of their answers, and how many for each."""


def protocol_output():
    """Standard output for the protocol alone: whatever libraries print to it goes to standard error from now on."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return output


def answer_rounds(engine: Engine, output) -> None:
    """Until standard input ends."""
    print(json.dumps({"ready": True}), file=output, flush=True)
    numbers = iter(range(sys.maxsize))
    for line in sys.stdin:
        print(json.dumps(answer_round(engine, numbers, **json.loads(line))), file=output, flush=True)


def answer_round(engine: Engine, numbers: Iterable[int], prompts: list[list[int]], tokens: int, concurrency: int) -> dict:
    """All prompts, `concurrency` at a time, each as soon as one before it is answered."""
    answers = {}
    left = iter(prompts)

    def submit_next() -> None:
        if (prompt := next(left, None)) is not None:
            number = next(numbers)
            answers[number] = {"sent": time.monotonic(), "arrivals": []}
            engine.submit(number, prompt, tokens)

    started = time.monotonic()
    for _ in range(concurrency):
        submit_next()
    missing = len(prompts) * tokens
    while missing:
        for number, count in engine.wait():
            arrivals = answers[number]["arrivals"]
            arrivals += [time.monotonic()] * count
            missing -= count
            if len(arrivals) > tokens:
                raise SystemExit(f"error: an answer has more than {tokens} tokens")
            if len(arrivals) == tokens:
                submit_next()
    return {"seconds": time.monotonic() - started, "answers": list(answers.values())}
