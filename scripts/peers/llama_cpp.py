"""llama.cpp's own programs."""

import argparse
import subprocess
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from peers.client import Ask
from peers.servers import Contest, asking
from tandem_server import REPOSITORY, LocalServer


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's programs, which lie side by side."""

    server: Path
    name = "llama-server"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The option that `of` reads."""
        parser.add_argument("--llama-server", type=Path, metavar="PROGRAM", help="instead of what scripts/peers/llama-server builds")

    @classmethod
    def of(cls, args: argparse.Namespace) -> "LlamaCpp":
        """The named one, or one that is built if it is not there."""
        if not args.llama_server:
            return cls.build()
        if not args.llama_server.is_file():
            raise SystemExit(f"error: there is no file {args.llama_server}")
        return cls(args.llama_server.absolute())

    @classmethod
    def build(cls) -> "LlamaCpp":
        """Builds the programs if they are not there."""
        script = REPOSITORY / "scripts" / "peers" / "llama-server"
        built = subprocess.run([script], check=True, stdout=subprocess.PIPE, text=True).stdout
        return cls(Path(built.splitlines()[0]))

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

    def version(self) -> str:
        return f"{self.server.parents[2].name}, {self.server.parents[1].name}"

    def flags(self, contest: Contest) -> list[str]:
        """What any of the programs needs to compute as Tandem does, but for the model."""
        flags = {
            "-c": contest.kv_tokens,
            "-b": contest.step_tokens,
            "-ub": min(contest.step_tokens, 512),  # as Tandem cuts its steps
            "-t": contest.threads,
            "-tb": contest.threads,
            "-fa": "auto",
            "-ctk": contest.kv_type,
            "-ctv": contest.kv_type,
        }
        return [*(str(word) for pair in flags.items() for word in pair), *contest.peer_flags]

    def start_server(self, contest: Contest) -> "LlamaServer":
        """`llama-server`, to be entered."""
        return LlamaServer(self.server, ["-m", str(contest.peer_model), "-np", str(contest.parallel), *self.flags(contest)])

    def start(self, contest: Contest) -> AbstractContextManager[Ask]:
        return asking(self.start_server(contest))


class LlamaServer(LocalServer):
    """`llama-server` with the given flags."""

    def __init__(self, binary: Path, flags: list[str]):
        super().__init__({})
        self._binary = binary
        self._flags = flags

    def command(self) -> list[str | Path]:
        return [self._binary, *self._flags, "--host", "127.0.0.1", "--port", str(self.port)]
