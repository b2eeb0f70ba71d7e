"""Has a library answer prompts in its own process, for peers without a server that takes token ids. This is the part beside the library, and
runs in its environment; python_peers.py has the other end. front.py puts HTTP in front of the same engines.

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
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """What is new of an answer."""

    number: int
    tokens: list[int]
    ended: bool


class Engine(Protocol):
    """A library with a model loaded, which computes several prompts together."""

    def submit(self, number: int, prompt: list[int], tokens: int, may_end: bool = False) -> None:
        """Begins a greedy answer of `tokens` tokens, or of fewer where it may end by itself. The number is one that no answer has had."""

    def wait(self) -> Iterable[Progress]:
        """Waits until there is something new."""

    def chat_tokens(self, messages: list[dict]) -> list[int]:
        """The prompt that the model's template makes of a chat."""

    def text(self, tokens: list[int]) -> str:
        """What tokens of an answer say."""


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
    missing = len(prompts)
    while missing:
        for progress in engine.wait():
            arrivals = answers[progress.number]["arrivals"]
            arrivals += [time.monotonic()] * len(progress.tokens)
            if progress.ended:
                if len(arrivals) != tokens:
                    raise SystemExit(f"error: an answer has {len(arrivals)} tokens and not {tokens}")
                missing -= 1
                submit_next()
    return {"seconds": time.monotonic() - started, "answers": list(answers.values())}
