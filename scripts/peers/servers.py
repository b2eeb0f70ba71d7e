"""Tandem and llama.cpp's llama-server, started on the same model with the same settings."""

import argparse
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tandem_server import REPOSITORY, LocalServer, TandemServer, default_binary

PEERS_CACHE = Path(os.environ.get("TANDEM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem") / "peers"
# Sequences computed together, on both sides, unless something else is asked for.
PARALLEL = 8
TANDEM, LLAMA = "Tandem", "llama-server"


@dataclass(frozen=True)
class Peer:
    """llama.cpp's programs, which lie side by side."""

    server: Path

    @property
    def batched_bench(self) -> Path:
        """Decodes without a server."""
        return self.server.with_name("llama-batched-bench")

    @property
    def quantize(self) -> Path:
        """Makes GGUF files of other GGUF files."""
        return self.server.with_name("llama-quantize")

    @property
    def package(self) -> Path:
        """The source package that the programs are built from."""
        (package,) = self.server.parents[2].glob("*.tar.gz")
        return package


def build_peer() -> Peer:
    """Builds the peer if it is not there."""
    script = REPOSITORY / "scripts" / "peers" / "llama-server"
    built = subprocess.run([script], check=True, stdout=subprocess.PIPE, text=True).stdout
    return Peer(Path(built.splitlines()[0]))


class LlamaServer(LocalServer):
    """`llama-server` with the given flags."""

    def __init__(self, binary: Path, flags: list[str]):
        super().__init__({})
        self._binary = binary
        self._flags = flags

    def command(self) -> list[str | Path]:
        return [self._binary, *self._flags, "--host", "127.0.0.1", "--port", str(self.port)]


@dataclass(frozen=True)
class Contest:
    """What both sides are started with.

    As far as both have a setting, it is the same: the file, threads, sequences, tokens of context over all of them, tokens of a step, the type
    of the KV cache; flash attention is left to llama.cpp on both sides. Whatever else either has is as it comes, prefix caches included, unless
    the command line says otherwise.
    """

    model: Path
    tandem: Path
    peer: Peer
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
        parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="a GGUF file")
        parser.add_argument("--tandem", type=Path, default=default_binary(), metavar="PROGRAM")
        parser.add_argument("--llama-server", type=Path, metavar="PROGRAM", help="instead of what scripts/peers/llama-server builds")
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
            "--llama-flag", action="append", default=[], metavar="FLAG",
            help="for the peer alone, as --llama-flag=--kv-unified; may be given again",
        )

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Contest":
        """What the options say, with everything in place."""
        peer = Peer(args.llama_server.absolute()) if args.llama_server else build_peer()
        for path in (args.model, args.tandem, peer.server):
            if not path.is_file():
                raise SystemExit(f"error: there is no file {path}")
        if args.backend == "candle" and args.kv_type != "f16":
            raise SystemExit("error: on candle K and V are compared in f16")
        environment = {}
        for setting in args.tandem_env:
            key, equals, value = setting.partition("=")
            if not equals:
                raise SystemExit(f"error: --tandem-env takes KEY=VALUE, not {setting}")
            environment[key] = value
        return cls(
            model=args.model.absolute(), tandem=args.tandem.absolute(), peer=peer, threads=args.threads, context=args.context,
            step_tokens=args.step_tokens, kv_type=args.kv_type, backend=args.backend, parallel=args.parallel,
            tandem_environment=environment, peer_flags=args.llama_flag,
        )

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

    def start_llama_server(self) -> LlamaServer:
        """llama-server, to be entered."""
        return LlamaServer(self.peer.server, ["-np", str(self.parallel), *self.llama_flags()])

    def llama_flags(self) -> list[str]:
        """What any of the peer's programs needs to compute as Tandem does."""
        flags = {
            "-m": self.model,
            "-c": self.parallel * self.context,
            "-b": self.step_tokens,
            "-ub": min(self.step_tokens, 512),  # as Tandem cuts its steps
            "-t": self.threads,
            "-tb": self.threads,
            "-fa": "auto",
            "-ctk": self.kv_type,
            "-ctv": self.kv_type,
        }
        return [*(str(word) for pair in flags.items() for word in pair), *self.peer_flags]

    def described(self) -> dict[str, object]:
        """What a reader has to know to believe a figure."""
        return {
            "machine": f"{processor()}, {os.cpu_count()} cores",
            "commit": output_of("git", "-C", REPOSITORY, "describe", "--always", "--dirty"),
            "tandem": output_of(self.tandem, "--version"),
            "peer": f"{self.peer.server.parents[2].name}, {self.peer.server.parents[1].name}",
            "model": self.model.name,
            "model_bytes": self.model.stat().st_size,
            "threads": self.threads,
            "backend": self.backend,
            "parallel": self.parallel,
            "tandem_environment": self.tandem_environment,
            "llama_flags": self.llama_flags()[2:],
            "load_before": os.getloadavg()[0],
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        }


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
