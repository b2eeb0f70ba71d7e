"""API keys: what the SDK raises, and what another tenant's client sees."""

import time

import pytest
from openai import AuthenticationError, NotFoundError, OpenAI, PermissionDeniedError, RateLimitError

from support import chat_line, upload
from tandem_server import TandemServer, default_binary

NOTICED_WITHIN_S = 10


@pytest.fixture(scope="module")
def server():
    with TandemServer(default_binary(), ["--profile", "sim"]) as server:
        yield server


@pytest.fixture
def client_with(server):
    """Makes a key with these options, and a client that has it."""
    clients = []

    def make(*options: str) -> OpenAI:
        key = server.run("keys", "create", "--profile", "sim", *options).strip()
        clients.append(OpenAI(base_url=server.base_url, api_key=key, max_retries=0, timeout=60))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def ask(client: OpenAI, **parameters):
    return client.completions.create(model="sim", prompt="Hello", max_tokens=8, **parameters)


def test_a_key_is_needed_once_there_is_one(server, client_with):
    client = client_with()
    with OpenAI(base_url=server.base_url, api_key="sk-not-a-key-of-ours", max_retries=0) as stranger:
        deadline = time.monotonic() + NOTICED_WITHIN_S
        while True:
            try:
                stranger.models.list()
            except AuthenticationError as error:
                assert error.code == "invalid_api_key"
                assert "sk-…ours" in error.message
                break
            assert time.monotonic() < deadline, "the key was never noticed"
            time.sleep(0.05)  # sleep: between two polls, within a deadline
    assert ask(client).usage.completion_tokens > 0


def test_a_key_without_the_scope_is_denied(client_with):
    client = client_with("--scopes", "files")
    with pytest.raises(PermissionDeniedError) as denied:
        ask(client)
    assert denied.value.code == "insufficient_scope"
    assert client.files.list().data == []


def test_too_many_requests_are_limited(client_with):
    client = client_with("--max-requests-per-minute", "1")
    response = client.with_raw_response.models.list()
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(RateLimitError) as limited:
        client.models.list()
    assert (limited.value.code, limited.value.type) == ("rate_limit_exceeded", "requests")
    assert int(limited.value.response.headers["retry-after"]) > 0


def test_files_of_another_tenant_are_not_found(client_with):
    client, other = client_with("--tenant", "one"), client_with("--tenant", "other")
    file = upload(client, [chat_line("a", "sim")])
    with pytest.raises(NotFoundError):
        other.files.retrieve(file.id)
    assert file.id in [listed.id for listed in client.files.list()]
    assert other.files.list().data == []
