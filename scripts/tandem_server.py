"""Starts the real `tandem serve` on a free port with a data directory of its own, and stops it. Used by the demo, by the SDK suite, and by
the scripts that compare it with other servers."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

# Profiles name the shipped model by a path from here.
REPOSITORY = Path(__file__).resolve().parents[1]

READY_WITHIN_S = 120
STOPPED_WITHIN_S = 30
POLL_S = 0.05


class ServerFailed(Exception):
    """The server did not start, or did not stop when asked; the message ends with the tail of its log."""


def default_binary() -> Path:
    """`$TANDEM_BIN`, or where `cargo build` puts it."""
    if named := os.environ.get("TANDEM_BIN"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    target = os.environ.get("CARGO_TARGET_DIR") or Path(cache) / "tandem" / "target"
    return Path(target) / "debug" / "tandem"


class LocalServer:
    """A program that serves HTTP from the beginning of a `with` block to its end, on a free port of this machine."""

    ready_within_s = READY_WITHIN_S
    # Whether it is in a session of its own, where Ctrl-C at the terminal is not for it; whatever it has started ends with it then.
    in_own_session = False

    def __init__(self, environment: dict[str, str]):
        self.port = free_port()
        self._environment = environment
        self._directory = tempfile.TemporaryDirectory(prefix="tandem-")
        self._log_path = Path(self._directory.name) / "server.log"
        self._process: subprocess.Popen | None = None

    def command(self) -> list[str | Path]:
        """What to run, so that it listens on `port`."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | self._environment, cwd=REPOSITORY, start_new_session=self.in_own_session,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, exception_type, *_) -> None:
        if exception_type is not None:
            print(self.log_tail(), file=sys.stderr)
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            log = self.log_tail()
            self._kill()
            raise ServerFailed(f"the server was still running {STOPPED_WITHIN_S} s after SIGTERM\n{log}") from None
        log = self.log_tail()
        self._end_session()
        self._directory.cleanup()
        # Ended by the signal itself counts as stopped; anything else is a crash on the way out.
        if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
            raise ServerFailed(f"the server ended with status {status}\n{log}")

    def log_tail(self, lines: int = 30) -> str:
        text = self._log_path.read_text(errors="replace")
        return "\n".join(["--- the end of the server's log:", *text.splitlines()[-lines:]])

    def _wait_until_ready(self) -> None:
        url = f"http://127.0.0.1:{self.port}/health"
        deadline = time.monotonic() + self.ready_within_s
        while time.monotonic() < deadline:
            if (status := self._process.poll()) is not None:
                raise ServerFailed(f"the server ended with status {status} before it was ready\n{self.log_tail()}")
            try:
                with urllib.request.urlopen(url, timeout=5) as response:
                    if response.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass  # Not listening yet, or listening and still loading: a 503.
            time.sleep(POLL_S)  # sleep: between two polls, within a deadline
        raise ServerFailed(f"{url} did not answer 200 within {self.ready_within_s} s\n{self.log_tail()}")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._end_session()
        self._directory.cleanup()

    def _end_session(self) -> None:
        if self.in_own_session:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


class TandemServer(LocalServer):
    """`with TandemServer(binary, ["--profile", "demo"]) as server:` serves at `server.base_url` until the block ends."""

    def __init__(self, binary: Path, arguments: list[str], environment: dict[str, str] | None = None):
        super().__init__(environment or {})
        self._environment |= {"STORAGE_PATH": str(Path(self._directory.name) / "data")}
        self._binary = binary
        self._arguments = arguments

    def command(self) -> list[str | Path]:
        return [self._binary, "serve", *self._arguments, "--host", "127.0.0.1", "--port", str(self.port)]

    def run(self, *arguments: str) -> str:
        """Another command of the program on the same data directory; what it prints."""
        environment = os.environ | self._environment
        command = [self._binary, *arguments]
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, check=True, capture_output=True, text=True)
        return done.stdout


def free_port() -> int:
    """A port that was free a moment ago: the system does not hand the same one out again soon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
