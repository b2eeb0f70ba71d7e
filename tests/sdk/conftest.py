"""The suite runs once for each way of serving a model: every test gets a client of a real server, started for all of them together."""

from dataclasses import dataclass

import pytest
from openai import OpenAI

from tandem_server import TandemServer, default_binary


@dataclass(frozen=True)
class Target:
    """How the server is started, and what may be expected of its model."""

    name: str
    arguments: tuple[str, ...]
    answers: bool  # whether the model knows the answers; sim is a hash of its context
    adapters: tuple[str, ...] = ()  # those of the model


TARGETS = [
    Target("demo", ("--profile", "demo"), answers=True),
    Target("demo-candle", ("--profile", "demo", "--backend", "candle"), answers=True),
    Target("sim", ("--profile", "sim", "--config", "tests/sdk/sim.toml"), answers=False, adapters=("legal", "poems")),
]


@pytest.fixture(scope="session", params=TARGETS, ids=lambda target: target.name)
def target(request):
    return request.param


@pytest.fixture(scope="session")
def client(target, request):
    failed_before = request.session.testsfailed
    with TandemServer(default_binary(), list(target.arguments)) as server:
        # No retries: an error is to be seen as it came, and at once.
        with OpenAI(base_url=server.base_url, api_key="not-needed-for-local", max_retries=0, timeout=120) as client:
            yield client
        if request.session.testsfailed > failed_before:
            print(server.log_tail(100))


@pytest.fixture(scope="session")
def model(client):
    """The id of the one model that the profile serves."""
    return client.models.list().data[0].id
