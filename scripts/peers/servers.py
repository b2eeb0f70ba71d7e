"""Tandem and what it is compared with, started on the same model with the same settings as far as both have them."""

import argparse
import contextlib
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from peers.client import Ask, ask_all
from tandem_server import REPOSITORY, LocalServer, TandemServer, default_binary

PEERS_CACHE = Path(os.environ.get("TANDEM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem") / "peers"
# Sequences computed together, on both sides, unless something else is asked for.
PARALLEL = 8
TANDEM = "Tandem"


class Peer(Protocol):
    """What Tandem is compared with."""

    name: str

    def version(self) -> str:
        """Which one it is."""

    def flags(self, contest: "Contest") -> list[str]:
        """What makes it compute as the contest says."""

    def start(self, contest: "Contest") -> contextlib.AbstractContextManager[Ask]:
        """Has it running until the block ends."""


@dataclass(frozen=True)
class Contest:
    """What both sides are started with.

    As far as both have a setting, it is the same: the model, threads, sequences, tokens of context over all of them, tokens of a step, the type
    of the KV cache; flash attention is left to llama.cpp where it computes. Whatever else either has is as it comes, prefix caches included,
    unless the command line says otherwise.
    """

    model: Path
    peer_model: Path
    """The same one in another format, or `model` itself."""
    tandem: Path
    threads: int
    context: int
    step_tokens: int
    kv_type: str
    backend: str
    parallel: int
    tandem_environment: dict[str, str]
    peer_flags: list[str]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """The options that `of` reads."""
        spare_one = max(1, (os.cpu_count() or 1) - 1)
        parser.add_argument("--model", type=Path, required=True, metavar="PATH", help="a GGUF file, or for candle a directory")
        parser.add_argument("--tandem", type=Path, default=default_binary(), metavar="PROGRAM")
        parser.add_argument("--threads", type=int, default=spare_one, help="threads that compute, on both sides (all cores but one)")
        parser.add_argument("--context", type=int, default=1024, help="tokens of one of the eight sequences (1024)")
        parser.add_argument("--step-tokens", type=int, default=512, help="tokens of one step, on both sides (512)")
        parser.add_argument("--kv-type", choices=("f16", "q8_0", "q4_0"), default="f16")
        parser.add_argument("--parallel", type=int, default=PARALLEL, metavar="N", help="sequences computed together (8)")
        parser.add_argument("--backend", choices=("llama-cpp", "candle"), default="llama-cpp", help="of Tandem; candle keeps K and V in f16")
        parser.add_argument(
            "--tandem-env", action="append", default=[], metavar="KEY=VALUE", help="for Tandem alone; may be given again"
        )
        parser.add_argument(
            "--peer-flag", action="append", default=[], metavar="FLAG",
            help="for the peer alone, as --peer-flag=--kv-unified; may be given again",
        )

    @classmethod
    def of(cls, args: argparse.Namespace, peer_model: Path | None = None) -> "Contest":
        """What the options say. The peer reads the same model unless it is given one of its own."""
        for path in (args.model, peer_model or args.model):
            if not path.exists():
                raise SystemExit(f"error: there is no {path}")
        if not args.tandem.is_file():
            raise SystemExit(f"error: there is no file {args.tandem}")
        if args.backend == "candle" and args.kv_type != "f16":
            raise SystemExit("error: on candle K and V are compared in f16")
        environment = {}
        for setting in args.tandem_env:
            key, equals, value = setting.partition("=")
            if not equals:
                raise SystemExit(f"error: --tandem-env takes KEY=VALUE, not {setting}")
            environment[key] = value
        return cls(
            model=args.model.absolute(), peer_model=(peer_model or args.model).absolute(), tandem=args.tandem.absolute(),
            threads=args.threads, context=args.context, step_tokens=args.step_tokens, kv_type=args.kv_type, backend=args.backend,
            parallel=args.parallel, tandem_environment=environment, peer_flags=args.peer_flag,
        )

    @property
    def kv_tokens(self) -> int:
        """That the KV cache holds over all sequences."""
        return self.parallel * self.context

    def changed(self, tandem_environment: dict[str, str], peer_flags: list[str]) -> "Contest":
        """With further settings for one side or the other."""
        return replace(
            self, tandem_environment=self.tandem_environment | tandem_environment, peer_flags=self.peer_flags + peer_flags
        )

    def start_tandem(self) -> TandemServer:
        """Tandem, to be entered."""
        settings = {
            "PARALLEL": self.parallel,
            "CONTEXT": self.context,
            "MAX_STEP_TOKENS": self.step_tokens,
            "THREADS": self.threads,
        }
        if self.backend == "llama-cpp":
            settings["KV_TYPE"] = self.kv_type
        environment = {f"TANDEM__BACKEND__{key}": str(value) for key, value in settings.items()}
        arguments = ["--profile", "demo", "--backend", self.backend, "--model", str(self.model)]
        return TandemServer(self.tandem, arguments, environment | self.tandem_environment)

    def described(self, peer: Peer) -> dict[str, object]:
        """What a reader has to know to believe a figure."""
        return machine_and_commit(self.tandem) | {
            "peer": f"{peer.name}, {peer.version()}",
            "model": self.model.name,
            "model_bytes": model_bytes(self.model),
            "peer_model": self.peer_model.name,
            "peer_model_bytes": model_bytes(self.peer_model),
            "threads": self.threads,
            "backend": self.backend,
            "parallel": self.parallel,
            "tandem_environment": self.tandem_environment,
            "peer_flags": peer.flags(self),
        }


@contextlib.contextmanager
def asking(server: LocalServer):
    """A server that runs until the block ends, as what it can be asked for."""
    with server:
        yield partial(ask_all, server)


def machine_and_commit(tandem: Path) -> dict[str, object]:
    """Of what, on what and by which command."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "commit": output_of("git", "-C", REPOSITORY, "describe", "--always", "--dirty"),
        "tandem": output_of(tandem, "--version"),
        "load_before": os.getloadavg()[0],
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def model_bytes(model: Path) -> int:
    """Of a file, or of the weights in a directory."""
    files = model.glob("*.safetensors") if model.is_dir() else [model]
    return sum(file.stat().st_size for file in files)


def output_of(*command: str | Path) -> str:
    """What a program prints. Its complaints are only heard when it fails."""
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: {Path(command[0]).name} ended with {done.returncode}\n{(done.stderr + done.stdout)[-2000:]}")
    return done.stdout.strip()


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
