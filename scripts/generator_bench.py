#!/usr/bin/env python3
"""Whether `tandem bench` sees what another load generator sees: the same chat, again and again, asked by it and by wrk of one server.

The server has the simulated model, whose steps take no time, and a processor of its own; the generators take turns on another. Answers are
whole, connections are kept, so many requests are in flight. What both count is compared: requests per second, and milliseconds to the end of an
answer at the 50th and 99th percentile. `tandem bench` reads and checks every answer, wrk does not; what that costs is the processor time beside
it. Needs wrk (`apt-get install wrk`), taskset and two processors.

    scripts/generator_bench.py TANDEM [--requests 20000] [--concurrency 8] [--repeats 5] [--out result.json]
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from peers.figures import ratios, spread
from peers.servers import machine_and_commit, output_of
from tandem_server import TandemServer

BENCH, WRK = "tandem bench", "wrk"
MODEL = "sim"
CHAT = {
    "model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France, and how far is it from here to there?"}],
    "max_tokens": 1, "temperature": 0,
}
# Prints what wrk itself shows rounded, in microseconds.
WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
local file = io.open(os.getenv("CHAT"))
wrk.body = file:read("*a")
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "errors": %d}\\n', summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end
"""


@dataclass(frozen=True)
class Round:
    """One turn of a generator."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    client_us: float
    """Processor time of the generator for each request."""


class PinnedServer(TandemServer):
    """The server on one processor."""

    def __init__(self, binary: Path, processor: int):
        super().__init__(binary, ["--profile", "sim"], {"TANDEM__BACKEND__PARALLEL": "64"})
        self._processor = processor

    def command(self) -> list[str | Path]:
        return ["taskset", "-c", str(self._processor), *super().command()]


def main() -> None:
    """Measures, prints a Markdown table, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tandem", type=Path, metavar="TANDEM")
    parser.add_argument("--requests", type=int, default=20_000, help="of a turn of tandem bench; one of wrk takes as long (20000)")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, metavar="FILE")
    args = parser.parse_args()
    for program in ("wrk", "taskset"):
        if not shutil.which(program):
            raise SystemExit(f"error: there is no {program}: apt-get install wrk util-linux")
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        raise SystemExit("error: server and generator need a processor each")
    report = machine_and_commit(args.tandem) | {"wrk": wrk_version()}
    rounds: dict[str, list[Round]] = {BENCH: [], WRK: []}
    with tempfile.TemporaryDirectory() as place, PinnedServer(args.tandem, processors[0]) as server:
        work = Path(place)
        write_inputs(work, args.requests)
        pinned = ["taskset", "-c", str(processors[1])]
        for repeat in range(args.repeats):
            ours, seconds = ask_bench(pinned, args, server, work)
            rounds[BENCH].append(ours)
            rounds[WRK].append(ask_wrk(pinned, args, server, work, seconds))
            rates = ", ".join(f"{name} {of_name[-1].requests_per_s:.0f}" for name, of_name in rounds.items())
            print(f"repeat {repeat + 1} of {args.repeats}, requests/s: {rates}", file=sys.stderr)
    print_table(report, args, rounds)
    if args.out:
        report["rounds"] = {name: [asdict(each) for each in of_name] for name, of_name in rounds.items()}
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def write_inputs(work: Path, requests: int) -> None:
    """The chat as a body for one, and as the lines of a batch for the other."""
    (work / "chat.json").write_text(json.dumps(CHAT), encoding="utf-8")
    (work / "chat.lua").write_text(WRK_SCRIPT, encoding="utf-8")
    lines = (
        json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": CHAT}) for number in range(requests)
    )
    (work / "chats.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def ask_bench(pinned: list[str], args: argparse.Namespace, server: TandemServer, work: Path) -> tuple[Round, float]:
    """And how long it took."""
    output_of(
        *pinned, args.tandem.absolute(), "bench", "--target", f"{MODEL}={server.base_url}", "--workload", work / "chats.jsonl", "--no-stream",
        "--concurrency", str(args.concurrency), "--repeats", "1", "--out", work / "report",
    )
    target = json.loads((work / "report" / "report.json").read_text(encoding="utf-8"))["targets"][0]
    e2e, requests = target["e2e_ms"], target["requests"]["ok"]
    return Round(target["requests_per_s"], e2e["p50"], e2e["p99"], 1e6 * target["client_cpu_s"] / requests), target["wall_s"]


def ask_wrk(pinned: list[str], args: argparse.Namespace, server: TandemServer, work: Path, seconds: float) -> Round:
    """For as long as the other took, in whole seconds."""
    command = [
        *pinned, "wrk", "--threads", "1", "--connections", str(args.concurrency), "--duration", f"{max(1, round(seconds))}s",
        "--script", work / "chat.lua", f"{server.base_url}/chat/completions",
    ]
    before = os.times()
    done = subprocess.run(command, env=os.environ | {"CHAT": str(work / "chat.json")}, check=True, stdout=subprocess.PIPE, text=True)
    after = os.times()
    told = json.loads(done.stdout.splitlines()[-1])
    if told["errors"]:
        raise SystemExit(f"error: {told['errors']} requests of wrk failed\n{done.stdout}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Round(
        told["requests"] / told["microseconds"] * 1e6, told["p50"] / 1e3, told["p99"] / 1e3, 1e6 * used / told["requests"]
    )


def wrk_version() -> str:
    """It tells with an error, under a copyright."""
    told = subprocess.run(["wrk", "--version"], check=False, capture_output=True, text=True)
    found = re.search(r"wrk (\S+)", told.stdout + told.stderr)
    return found[1] if found else "unknown"


def print_table(report: dict, args: argparse.Namespace, rounds: dict[str, list[Round]]) -> None:
    """Medians with extremes, and the ratios pair by pair."""
    print(f"{report['machine']}; {args.concurrency} in flight, {args.repeats} repeats; median (min to max)\n")
    print("| | requests/s | p50 ms | p99 ms | processor time of the generator, µs a request |")
    print("|---|--:|--:|--:|--:|")
    columns = ("requests_per_s", "p50_ms", "p99_ms", "client_us")
    values = {name: {column: [getattr(each, column) for each in of_name] for column in columns} for name, of_name in rounds.items()}
    for name, by_column in values.items():
        cells = (spread(by_column["requests_per_s"]), fine(by_column["p50_ms"]), fine(by_column["p99_ms"]), spread(by_column["client_us"]))
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"| ratio | {' | '.join(ratios(values[BENCH][column], values[WRK][column]) for column in columns)} |")


def fine(values: list[float]) -> str:
    """As `spread`, to the microsecond."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
