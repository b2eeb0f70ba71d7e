"""Real servers for the frameworks: the small model where what it says matters, simulated models where there is none that ships, and one
that asks for keys."""

import os
import urllib.error
import urllib.request

import pytest

# Read when the frameworks are imported: prices that LiteLLM would fetch, and traces that LangChain would send.
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}

from tandem_server import REPOSITORY, TandemServer, default_binary
from waiting import wait_until

SIM = ["--profile", "sim", "--config", str(REPOSITORY / "tests" / "frameworks" / "models.toml")]


@pytest.fixture(scope="session")
def demo():
    """The address of a server with the small model, `tiny`."""
    with TandemServer(default_binary(), ["--profile", "demo"]) as server:
        yield server.base_url


@pytest.fixture(scope="session")
def sim():
    """The address of a server with the simulated models `sim` and `embedder`."""
    with TandemServer(default_binary(), SIM) as server:
        yield server.base_url


@pytest.fixture(scope="session")
def guarded():
    """The address of a server that asks for a key, and a good one."""
    with TandemServer(default_binary(), SIM) as server:
        key = server.run("keys", "create", "--profile", "sim").strip()
        # The running server notices it by and by.
        wait_until(lambda: status(f"{server.base_url}/models"), lambda found: found == 401)
        yield server.base_url, key


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
