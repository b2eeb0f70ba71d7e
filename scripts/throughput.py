#!/usr/bin/env python3
"""Tokens per second of both backends on the small model, one request and eight at once.

Starts `tandem serve --profile demo` once for each backend, one after the other, and repeats that, so that a machine that drifts shows in the
spread. Each request asks for the same number of tokens (`ignore_eos`), with a prompt of its own. What is counted is output tokens over wall
time, seen from the client. Needs nothing beyond Python.

    scripts/throughput.py path/to/tandem [--repeats 5] [--tokens 128]
"""

import argparse
import concurrent.futures
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
import urllib.request

BACKENDS = ("llama-cpp", "candle")
START_DEADLINE_S = 60


def main() -> None:
    """Measures and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tandem", help="the program")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="output tokens of each request")
    args = parser.parse_args()

    rates: dict[tuple[str, int], list[float]] = {(b, c): [] for b in BACKENDS for c in (1, 8)}
    for repeat in range(args.repeats):
        # The order alternates: neither backend always has the machine while it is cool.
        for backend in BACKENDS if repeat % 2 == 0 else reversed(BACKENDS):
            with Server(args.tandem, backend) as server:
                server.ask(0, 16)
                for concurrency in (1, 8):
                    rates[backend, concurrency].append(measure(server, concurrency, args.tokens, repeat))

    print(f"{processor()}, {os.cpu_count()} cores; {args.repeats} repeats, "
          f"{args.tokens} output tokens a request; median (min to max) of output tokens/s\n")
    print("| backend | 1 request | 8 at once |")
    print("|---|---|---|")
    for backend in BACKENDS:
        cells = (spread(rates[backend, concurrency]) for concurrency in (1, 8))
        print(f"| {backend} | {' | '.join(cells)} |")


def measure(server: "Server", concurrency: int, tokens: int, repeat: int) -> float:
    """Output tokens per second with `concurrency` requests in flight, over four rounds of them."""
    requests = 4 * concurrency
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        counts = list(pool.map(lambda i: server.ask(1000 * repeat + i, tokens), range(requests)))
    assert counts == [tokens] * requests, counts
    return sum(counts) / (time.monotonic() - started)


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def spread(rates: list[float]) -> str:
    """Median and extremes, as a table cell."""
    return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


class Server:
    """A running server on a port of its own, stopped at the end of the block."""

    def __init__(self, tandem: str, backend: str) -> None:
        self._storage = tempfile.TemporaryDirectory()
        command = [tandem, "serve", "--profile", "demo", "--backend", backend, "--port", "0"]
        environment = {**os.environ, "STORAGE_PATH": self._storage.name, "RUST_LOG": "error"}
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.url = self._process.stdout.readline().split()[-1]

    def __enter__(self) -> "Server":
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health").read()
                return self
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._storage.cleanup()

    def ask(self, salt: int, tokens: int) -> int:
        """One request; the number of output tokens that were counted for it."""
        messages = [{"role": "user", "content": f"What is {salt}+{salt + 1}?"}]
        body = {"model": "tiny", "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)["usage"]["completion_tokens"]


if __name__ == "__main__":
    main()
