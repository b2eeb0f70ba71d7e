#!/usr/bin/env python3
"""What batches cost: at their largest, in the order of their prefixes, and beside online requests.

    scripts/batch_bench.py size                a file of 50,000 lines and 200 MB over the simulated model
    scripts/batch_bench.py prefix              2,000 shuffled lines over 20 long system prompts, on both backends
    scripts/batch_bench.py online              time to first token without a batch and beside one, on both backends

Each prints Markdown tables. Needs nothing beyond Python; `--tandem PROGRAM` names the program, a release build for figures that are kept.
"""

import argparse
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from peers.figures import percentile
from tandem_server import TandemServer, default_binary

BACKENDS = ("llama-cpp", "candle")
POLL_S = 0.05
DEADLINE_S = 1800
WORDS = ("where", "what", "capital", "answer", "city", "river", "name", "old", "new", "count", "of", "the", "a", "in", "north")
ENDED = ("completed", "failed", "expired", "cancelled")


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tandem", type=Path, default=default_binary(), metavar="PROGRAM")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="one of the two alone")
    commands = parser.add_subparsers(required=True)
    size = commands.add_parser("size")
    size.add_argument("--lines", type=int, default=50_000)
    size.add_argument("--megabytes", type=int, default=200)
    size.set_defaults(run=measure_size)
    prefix = commands.add_parser("prefix")
    prefix.add_argument("--lines", type=int, default=2_000)
    prefix.add_argument("--prompts", type=int, default=20, help="system prompts that they share")
    prefix.add_argument("--repeats", type=int, default=3)
    prefix.set_defaults(run=measure_prefix)
    online = commands.add_parser("online")
    online.add_argument("--requests", type=int, default=100)
    online.add_argument("--model", type=Path, help="a GGUF file that both backends read, instead of the model that ships with the project")
    online.add_argument("--words", type=int, default=0, help="in front of each question, to have a prompt of a usual length")
    online.set_defaults(run=measure_online)
    args = parser.parse_args()
    args.run(args)


# --- size ------------------------------------------------------------------------------------------------------------------------------


def measure_size(args: argparse.Namespace) -> None:
    """Upload, validation, work, status and download, with the memory that they take."""
    per_line = args.megabytes * 1_000_000 // args.lines
    settings = {"TANDEM__BATCH__MAX_LINES": str(args.lines), "RUST_LOG": "warn"}
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file, sim(args.tandem, settings) as server:
        for number in range(args.lines):
            file.write(sim_line(number, per_line))
        file.flush()
        size = Path(file.name).stat().st_size
        api = Api(server.port)
        before = memory(server)
        with Watch(lambda: memory(server)) as peak, Watch(lambda: api_latency(server.port)) as others:
            started = time.monotonic()
            uploaded = api.upload(Path(file.name))
            upload_s = time.monotonic() - started
            batch = api.create(uploaded)
            api.wait(batch, lambda seen: seen["status"] != "validating")
            validated_s = time.monotonic() - started
            after_validation = max(peak.values, default=before)
            done = api.wait(batch, lambda seen: seen["status"] in ENDED)
            created_to_done_s = time.monotonic() - started - upload_s
        check(done, args.lines)
        started = time.monotonic()
        downloaded = api.download(done["output_file_id"])
        download_s = time.monotonic() - started
    print("| what | measured |\n|---|--:|")
    print(f"| upload of {size:,} bytes | {upload_s:.1f} s |")
    print(f"| upload and validation | {validated_s:.1f} s |")
    print(f"| memory more than before, until validated | {(after_validation - before) / 2**20:.0f} MiB |")
    print(f"| memory more than before, until completed | {(max(peak.values) - before) / 2**20:.0f} MiB |")
    print(f"| create to completed | {created_to_done_s:.1f} s |")
    print(f"| `GET /v1/batches?limit=1` meanwhile, p50 / p99 | {percentile(others.values, 50) * 1e3:.1f} / {percentile(others.values, 99) * 1e3:.1f} ms |")
    print(f"| download of the output, {downloaded:,} bytes | {downloaded / download_s / 1e6:.0f} MB/s |")


def sim_line(number: int, size: int) -> bytes:
    """A line of about so many bytes that the simulated model answers with one token."""
    body = {"model": "sim", "prompt": [number % 200 + 1], "max_tokens": 1, "user": ""}
    line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/completions", "body": body}
    body["user"] = "x" * (size - len(json.dumps(line)) - 1)
    return json.dumps(line).encode() + b"\n"


# --- prefix ----------------------------------------------------------------------------------------------------------------------------


def measure_prefix(args: argparse.Namespace) -> None:
    """The same lines shuffled and sorted, run in the order of the file and in the order of their prefixes."""
    cases = {"shuffled, order of the file": (True, "file"), "shuffled, order of prefixes": (True, "prefix"), "sorted, order of the file": (False, "file")}
    print(f"{args.lines} lines over {args.prompts} system prompts; median of {args.repeats} runs that take turns\n")
    print("| backend | case | seconds | prompt tokens | computed | of the ideal reuse |")
    print("|---|---|--:|--:|--:|--:|")
    for backend in args.backend or BACKENDS:
        seconds: dict[str, list[float]] = {case: [] for case in cases}
        usage: dict[str, dict] = {}
        for repeat in range(args.repeats):
            for case, (shuffled, order) in cases.items():
                batch, took = run_prefix(args, backend, repeat, shuffled, order)
                seconds[case].append(took)
                usage[case] = batch["usage"]
        for case, runs in seconds.items():
            tokens = usage[case]["input_tokens"]
            cached = usage[case]["input_tokens_details"]["cached_tokens"]
            ideal = usage["sorted, order of the file"]["input_tokens_details"]["cached_tokens"]
            print(f"| {backend} | {case} | {statistics.median(runs):.1f} ({min(runs):.1f} to {max(runs):.1f}) | {tokens} | {tokens - cached} | {cached / ideal:.3f} |")


def run_prefix(args: argparse.Namespace, backend: str, repeat: int, shuffled: bool, order: str) -> tuple[dict, float]:
    """One batch on a server of its own, which has nothing in its cache."""
    draw = random.Random(repeat)
    systems = [" ".join(draw.choices(WORDS, k=160)) for _ in range(args.prompts)]
    lines = [(number % args.prompts, " ".join(draw.choices(WORDS, k=40))) for number in range(args.lines)]
    lines.sort()
    if shuffled:
        draw.shuffle(lines)
    text = []
    for number, (system, question) in enumerate(lines):
        messages = [{"role": "system", "content": systems[system]}, {"role": "user", "content": f"{question} {number}"}]
        body = {"model": "tiny", "messages": messages, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        text.append(json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}))
    settings = {"TANDEM__BATCH__ORDER": order, "RUST_LOG": "warn"}
    with TandemServer(args.tandem, ["--profile", "demo", "--backend", backend], settings) as server, tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write("\n".join(text) + "\n")
        file.flush()
        api = Api(server.port)
        uploaded = api.upload(Path(file.name))
        started = time.monotonic()
        done = api.wait(api.create(uploaded, "/v1/chat/completions"), lambda seen: seen["status"] in ENDED)
        took = time.monotonic() - started
    check(done, args.lines)
    return done, took


# --- online ----------------------------------------------------------------------------------------------------------------------------


def measure_online(args: argparse.Namespace) -> None:
    """Requests one after the other, alone and beside a batch that would fill every slot."""
    print("| backend | TTFT alone, p50 / p95 ms | beside a batch, p50 / p95 ms | ratio of p95 |")
    print("|---|--:|--:|--:|")
    for backend in args.backend or BACKENDS:
        arguments = ["--profile", "demo", "--backend", backend, *(["--model", str(args.model)] if args.model else [])]
        with TandemServer(args.tandem, arguments, {"RUST_LOG": "warn"}) as server:
            api = Api(server.port)
            model = api.get("/v1/models")["data"][0]["id"]
            ask(server.port, model, args.words, 0)
            alone = [ask(server.port, model, args.words, number) for number in range(args.requests)]
            with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
                for number in range(20_000):
                    body = {"model": model, "prompt": f"What is the capital of {number}?", "max_tokens": 128, "ignore_eos": True}
                    file.write(json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}) + "\n")
                file.flush()
                batch = api.create(api.upload(Path(file.name)))
            api.wait(batch, lambda seen: seen["request_counts"]["completed"] > 20)
            beside = [ask(server.port, model, args.words, number) for number in range(args.requests, 2 * args.requests)]
            still = api.get(f"/v1/batches/{batch}")["status"]
            if still != "in_progress":
                sys.exit(f"the batch was {still} before the requests were")
            api.post(f"/v1/batches/{batch}/cancel")
        p95 = percentile(beside, 95) / percentile(alone, 95)
        cells = (f"{percentile(times, 50) * 1e3:.1f} / {percentile(times, 95) * 1e3:.1f}" for times in (alone, beside))
        print(f"| {backend} | {' | '.join(cells)} | {p95:.2f} |")


def ask(port: int, model: str, words: int, number: int) -> float:
    """Seconds until the first text of a streamed answer. No two questions begin alike."""
    before = " ".join(random.Random(number).choices(WORDS, k=words))
    prompt = f"Question {number}: {before} what is the capital of France?"
    body = {"model": model, "prompt": prompt, "max_tokens": 8, "stream": True, "ignore_eos": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    started = time.monotonic()
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    for line in response:
        if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["text"]:
            first = time.monotonic() - started
            response.read()
            connection.close()
            return first
    sys.exit("an answer had no text")


# --- a client --------------------------------------------------------------------------------------------------------------------------


class Api:
    """Files and batches of a server on this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str) -> dict:
        return self._json("GET", path)

    def post(self, path: str, body: dict | None = None) -> dict:
        return self._json("POST", path, json.dumps(body) if body else None, {"content-type": "application/json"})

    def upload(self, path: Path) -> str:
        """Streams a file up; its id."""
        boundary = uuid.uuid4().hex
        head = (f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
                f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n').encode()
        tail = f"\r\n--{boundary}--\r\n".encode()

        def parts() -> Iterator[bytes]:
            yield head
            with path.open("rb") as file:
                while chunk := file.read(1 << 18):
                    yield chunk
            yield tail

        length = len(head) + path.stat().st_size + len(tail)
        headers = {"content-type": f"multipart/form-data; boundary={boundary}", "content-length": str(length)}
        return self._json("POST", "/v1/files", parts(), headers)["id"]

    def create(self, file: str, endpoint: str = "/v1/completions") -> str:
        body = {"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"}
        return self.post("/v1/batches", body)["id"]

    def wait(self, batch: str, is_it) -> dict:
        """The batch as soon as it is what is waited for."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            seen = self.get(f"/v1/batches/{batch}")
            if is_it(seen):
                return seen
            time.sleep(POLL_S)  # sleep: between two polls, within a deadline
        sys.exit(f"batch {batch} did not come to what was waited for")

    def download(self, file: str) -> int:
        """Reads a file to its end; its bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request("GET", f"/v1/files/{file}/content")
        response = connection.getresponse()
        size = 0
        while chunk := response.read(1 << 20):
            size += len(chunk)
        connection.close()
        return size

    def _json(self, method: str, path: str, body=None, headers: dict[str, str] | None = None) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        if response.status != 200:
            sys.exit(f"{method} {path}: {response.status} {answer}")
        return answer


class Watch:
    """Looks again and again, beside what is measured, and keeps what it saw."""

    def __init__(self, look) -> None:
        self.values: list[float] = []
        self._look = look
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self.values.append(self._look())


def sim(tandem: Path, settings: dict[str, str]) -> TandemServer:
    return TandemServer(tandem, ["--profile", "sim"], settings)


def api_latency(port: int) -> float:
    """Of the list of batches, which reads the rows that work on them changes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    started = time.monotonic()
    connection.request("GET", "/v1/batches?limit=1")
    connection.getresponse().read()
    connection.close()
    return time.monotonic() - started


def memory(server: TandemServer) -> int:
    """Bytes of the server's memory that are no file's."""
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:"))) * 1024


def check(batch: dict, lines: int) -> None:
    counts = batch["request_counts"]
    if (batch["status"], counts["completed"], counts["failed"]) != ("completed", lines, 0):
        sys.exit(f"the batch is not as it should be: {batch}")


if __name__ == "__main__":
    main()
