#!/usr/bin/env python3
"""Both backends of Tandem and other servers on the same weights, by turns in one `tandem bench`.

`scripts/bench-peers` (`make bench-peers`) builds what this needs, and calls it. A model with random weights is written by `tandem dev synth`, as safetensors and as GGUF. Peers are set up by their scripts in scripts/peers,
started on loopback, and run to the end; they have work one at a time, and before anything is measured it is seen that none takes a processor
while it has none. A peer that cannot be set up or started is named and left out, and the exit code is 1. Ctrl-C ends it early; what was
finished is reported. Needs nothing beyond Python.

    scripts/bench-peers [--threads 2] [--peers llama-server vllm] [--out DIR] [-- FLAGS OF TANDEM BENCH]
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peers.llama_cpp import LlamaCpp
from peers.python_peers import PythonPeer, Vllm
from peers.servers import PEERS_CACHE, Contest, machine_and_commit, output_of
from tandem_server import LocalServer, ServerFailed, default_binary

ARCH, SIZE = "llama", "0.2b"
# By which servers list it, where that can be said.
MODEL_NAME = "synthetic"
# What safetensors hold, without quantization.
SAME_AS_SAFETENSORS = "F16"
QUANTIZATIONS = (SAME_AS_SAFETENSORS, "Q8_0", "Q4_K_M")
PARALLEL = 8
CONTEXT = 1024
STEP_TOKENS = 512
# What is asked unless the command line has something else.
ASKED = ["--requests", "16", "--concurrency", str(PARALLEL), "--repeats", "3", "--check"]
# How long idle servers are watched, and how much of a processor one may take meanwhile.
WATCHED_S = 5.0
IDLE_SHARE = 0.02
INTERRUPTED = 130


@dataclass(frozen=True)
class Model:
    """The same weights in two forms."""

    directory: Path
    gguf: Path


@dataclass(frozen=True)
class Candidate:
    """A peer, before it is known whether it can be had."""

    name: str
    reads_gguf: bool
    make: Callable[[Contest], LocalServer]
    """Sets it up; what it returns starts when it is entered."""
    version: Callable[[], str]
    flags: tuple[str, ...] = ()
    """Of its own."""


@dataclass(frozen=True)
class Running:
    """A peer that answers."""

    candidate: Candidate
    server: LocalServer


def python_peer(peer: PythonPeer, reads_gguf: bool, flags: tuple[str, ...] = ()) -> Candidate:
    """One of those with a script of their name."""

    def make(contest: Contest) -> LocalServer:
        peer.install()
        return peer.server(contest)

    return Candidate(peer.name, reads_gguf, make, peer.version, flags)


# vLLM looks for work for about a second after its last answer, so it is the last: what comes after it is the loading of a profile of ours,
# and that is not in the figures.
CANDIDATES = (
    Candidate(
        LlamaCpp.name, True, lambda contest: LlamaCpp.build().start_server(contest), lambda: LlamaCpp.build().version(),
        ("--alias", MODEL_NAME),
    ),
    python_peer(PythonPeer("openvino"), reads_gguf=True),
    python_peer(PythonPeer("transformers"), reads_gguf=False),
    python_peer(Vllm("vllm"), reads_gguf=False, flags=("--served-model-name", MODEL_NAME)),
)


def main() -> int:
    """Sets up, measures, and says what could not be."""
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    args.out.mkdir(parents=True, exist_ok=True)
    model = write_model(args.tandem, args.gguf)
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        running = []
        for candidate in chosen(args):
            say(f"{candidate.name}: setting up")
            try:
                running.append(start(stack, candidate, contest(args, model, candidate)))
            except (ServerFailed, subprocess.CalledProcessError, OSError, SystemExit) as error:
                missing[candidate.name] = reason(error)
                say(f"{candidate.name} is left out: {missing[candidate.name]}")
        busy = watch(running)
        report = machine_and_commit(args.tandem) | {
            "gguf": str(model.gguf), "safetensors": str(model.directory), "threads": args.threads,
            "peers": {peer.candidate.name: peer.candidate.version() for peer in running}, "left_out": missing,
            "idle_processors": busy,
        }
        (args.out / "peers.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        status = bench(args, model, running)
    for name, why in missing.items():
        say(f"{name} was left out: {why.splitlines()[0]}")
    say(f"the report is {args.out / 'report.md'}")
    return 1 if missing and status == 0 else status


def reason(error: BaseException) -> str:
    """Why a peer cannot be had."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"{shlex.join(str(word) for word in error.cmd)} ended with {error.returncode}"
    return str(error)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [candidate.name for candidate in CANDIDATES]
    spare_one = max(1, (os.cpu_count() or 1) - 1)
    parser.add_argument("--tandem", type=Path, default=default_binary(), metavar="PROGRAM")
    parser.add_argument("--peers", nargs="*", choices=names, metavar="NAME", help=f"of {', '.join(names)} (all that read the weights)")
    parser.add_argument(
        "--gguf", choices=QUANTIZATIONS, default=SAME_AS_SAFETENSORS,
        help="the weights as GGUF has them; quantized, those are left out that read safetensors alone, and candle reads the GGUF too (F16)",
    )
    parser.add_argument("--threads", type=int, default=spare_one, help="threads that compute, everywhere (all cores but one)")
    parser.add_argument("--out", type=Path, default=Path("bench-peers"), metavar="DIR")
    parser.add_argument("--under", type=shlex.split, default=[], metavar="COMMAND", help="what `tandem bench` is run by, such as 'nice -n -20'")
    parser.add_argument("asked", nargs="*", metavar="-- FLAG", help=f"of tandem bench ({shlex.join(ASKED)})")
    args = parser.parse_args()
    if not args.tandem.is_file():
        parser.error(f"there is no file {args.tandem}")
    args.tandem, args.out, args.asked = args.tandem.absolute(), args.out.absolute(), args.asked or ASKED
    return args


def chosen(args: argparse.Namespace) -> list[Candidate]:
    """Those that were asked for, or all that read the weights."""
    quantized = args.gguf != SAME_AS_SAFETENSORS
    if args.peers is None:
        return [candidate for candidate in CANDIDATES if candidate.reads_gguf or not quantized]
    picked = [candidate for candidate in CANDIDATES if candidate.name in args.peers]
    if quantized and (others := [candidate.name for candidate in picked if not candidate.reads_gguf]):
        raise SystemExit(f"error: {', '.join(others)} cannot read {args.gguf}: only GGUF has it")
    return picked


def write_model(tandem: Path, gguf: str) -> Model:
    """Written once, and the same for everyone: it follows from a seed."""
    directory = PEERS_CACHE / "models" / f"bench-{ARCH}-{SIZE}-{gguf.lower()}"
    name = f"{ARCH}-{SIZE}-{gguf}.gguf"
    if not (directory / name).exists():
        say(f"writing a model of {SIZE} parameters to {directory}")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix="synth-") as place:
            # Whole, or not there.
            whole = Path(place) / "model"
            output_of(tandem, "dev", "synth", "--arch", ARCH, "--size", SIZE, "--out", whole, "--gguf", gguf)
            shutil.rmtree(directory, ignore_errors=True)
            whole.rename(directory)
    return Model(directory, directory / name)


def contest(args: argparse.Namespace, model: Model, candidate: Candidate) -> Contest:
    """What a peer is started with."""
    weights = model.gguf if candidate.reads_gguf else model.directory
    return Contest(
        model=weights, peer_model=weights, tandem=args.tandem, threads=args.threads, context=CONTEXT, step_tokens=STEP_TOKENS, kv_type="f16",
        backend="llama-cpp", parallel=PARALLEL, tandem_environment={}, peer_flags=list(candidate.flags),
    )


def start(stack: contextlib.ExitStack, candidate: Candidate, settings: Contest) -> Running:
    """A peer that runs until the stack is left."""
    server = candidate.make(settings)
    # Ctrl-C is for the bench, which asks it until then.
    server.in_own_session = True
    say(f"{candidate.name}: starting")
    return Running(candidate, stack.enter_context(server))


def watch(running: list[Running]) -> dict[str, float]:
    """The part of a processor that each takes without work. One that takes more than a little would be measured with all others."""
    before = {peer.candidate.name: processor_seconds(peer.server.pid) for peer in running}
    time.sleep(WATCHED_S if running else 0)  # sleep: what is measured is that nothing happens
    busy = {}
    for peer in running:
        name = peer.candidate.name
        busy[name] = round((processor_seconds(peer.server.pid) - before[name]) / WATCHED_S, 4)
        if busy[name] > IDLE_SHARE:
            say(f"warning: {name} takes {100 * busy[name]:.0f} % of a processor without work: figures of the others suffer")
    return busy


def processor_seconds(session: int) -> float:
    """Of all processes of a session, user and system."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # Behind the name in parentheses: state, parent, group, session, and as 12th and 13th the times.
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def bench(args: argparse.Namespace, model: Model, running: list[Running]) -> int:
    """Its exit status; 130 if it was ended early."""
    candle = model.directory if args.gguf == SAME_AS_SAFETENSORS else model.gguf
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as place:
        config = Path(place) / "config"
        config.mkdir()
        targets = []
        for backend, source in (("llama-cpp", model.gguf), ("candle", candle)):
            (config / f"tandem-{backend}.toml").write_text(profile(args, backend, source), encoding="utf-8")
            targets += ["--profile", f"tandem-{backend}"]
        for peer in running:
            targets += ["--target", f"{peer.candidate.name}={peer.server.base_url}"]
        command = [*args.under, args.tandem, "bench", *targets, "--out", args.out, *args.asked]
        say(shlex.join(str(word) for word in command))
        process = subprocess.Popen(command, cwd=place)
        try:
            return process.wait()
        except KeyboardInterrupt:
            # At a terminal it was told too; it reports what it has.
            process.send_signal(signal.SIGINT)
            process.wait()
            return INTERRUPTED


def profile(args: argparse.Namespace, backend: str, source: Path) -> str:
    """Settings of ours as the peers have theirs."""
    settings = {"kind": backend, "parallel": PARALLEL, "context": CONTEXT, "max_step_tokens": STEP_TOKENS, "threads": args.threads}
    if backend == "llama-cpp":
        settings |= {"kv_type": "f16", "gpu_layers": 0}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join(["[backend]", *lines, f"[models.{MODEL_NAME}]", f"source = {json.dumps(str(source))}", ""])


def say(text: str) -> None:
    """To people, beside the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
