"""Peers that are Python packages, each with a script beside this file that installs and starts it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from peers.client import Answer, Ask, Round
from peers.servers import Contest, asking
from tandem_server import REPOSITORY, LocalServer

STOPPED_WITHIN_S = 60


@dataclass(frozen=True)
class PythonPeer:
    """A script, and what it says of itself."""

    name: str

    @property
    def script(self) -> Path:
        """Installs, or starts."""
        return REPOSITORY / "scripts" / "peers" / self.name

    def install(self) -> None:
        """Quick where that has been done. What is printed meanwhile goes to standard error."""
        subprocess.run([self.script], check=True, stdout=subprocess.DEVNULL)

    def version(self) -> str:
        """The pinned one."""
        requirements = self.script.with_name(f"{self.name}_requirements.txt").read_text(encoding="utf-8")
        return next(line for line in requirements.splitlines() if "==" in line and not line.startswith("#"))

    def command(self, contest: Contest) -> list[str | Path]:
        """Starts it as the contest says."""
        return [self.script, str(contest.threads), "--model", contest.peer_model, *self.flags(contest)]

    def flags(self, contest: Contest) -> list[str]:
        """What the engines beside this file take."""
        return [
            "--parallel", str(contest.parallel), "--kv-tokens", str(contest.kv_tokens), "--step-tokens", str(contest.step_tokens),
            *contest.peer_flags,
        ]

    def start(self, contest: Contest) -> AbstractContextManager[Ask]:
        self.install()
        return in_process(self.command(contest))

    def server(self, contest: Contest) -> "PythonServer":
        """A server of OpenAI's chats, to be entered."""
        return PythonServer(self.command(contest), [])


class Vllm(PythonPeer):
    """vLLM has a server of its own."""

    BLOCK_TOKENS = 128  # of the KV cache, on processors

    def flags(self, contest: Contest) -> list[str]:
        return [
            "--dtype", "float32", "--max-model-len", str(contest.context), "--max-num-seqs", str(contest.parallel),
            "--max-num-batched-tokens", str(contest.step_tokens), "--block-size", str(self.BLOCK_TOKENS),
            "--num-gpu-blocks-override", str(-(-contest.kv_tokens // self.BLOCK_TOKENS)), *contest.peer_flags,
        ]

    def start(self, contest: Contest) -> AbstractContextManager[Ask]:
        self.install()
        return asking(self.server(contest))

    def server(self, contest: Contest) -> "PythonServer":
        return PythonServer(self.command(contest), ["--disable-uvicorn-access-log", "--host", "127.0.0.1"])


class PythonServer(LocalServer):
    """The given command, with a port to listen on."""

    ready_within_s = 900  # vLLM compiles

    def __init__(self, command: list[str | Path], flags: list[str]):
        super().__init__({})
        self._command = command
        self._flags = flags

    def command(self) -> list[str | Path]:
        return [*self._command, *self._flags, "--port", str(self.port)]


@contextmanager
def in_process(command: list[str | Path]):
    """What in_process.py does in the process of a library, until the block ends, as what it can be asked for."""
    with tempfile.NamedTemporaryFile("w+", prefix="tandem-peer-", suffix=".log") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

        def read() -> dict:
            if not (line := process.stdout.readline()):
                log.seek(0)
                raise SystemExit(f"error: {Path(command[0]).name} ended with {process.wait()}\n{log.read()[-3000:]}")
            return json.loads(line)

        def ask(prompts: Sequence[list[int]], tokens: int, concurrency: int) -> Round:
            request = {"prompts": prompts, "tokens": tokens, "concurrency": concurrency}
            print(json.dumps(request), file=process.stdin, flush=True)
            result = read()
            answers = [Answer(answer["sent"], tokens, answer["arrivals"]) for answer in result["answers"]]
            return Round(answers, result["seconds"])

        try:
            read()  # that it is ready
            yield ask
            process.stdin.close()
            if (status := process.wait(STOPPED_WITHIN_S)) != 0:
                print(f"warning: {Path(command[0]).name} ended with {status}", file=sys.stderr)
        finally:
            process.kill()
            process.wait()
