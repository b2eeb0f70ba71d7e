"""The server in front of libraries that are compared with Tandem (scripts/peers/front.py): what `tandem bench` asks for is answered, what it
does not know is refused. The library is made up; each answer counts down its tokens."""

import json
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "peers"))

from front import Driver, Server, handler_for
from in_process import Progress

END = 0
# "é", in two tokens of a byte each.
HALVES = [0xC3, 0xA9]


class CountsDown:
    """Answers with the bytes of `é` and then letters; one that may end does so after its fourth token."""

    def __init__(self):
        self.most_at_once = 0
        # An answer that has begun goes on when so many have been there at once.
        self.together = 1
        self._running: dict[int, list[int]] = {}

    def submit(self, number: int, prompt: list[int], tokens: int, may_end: bool = False) -> None:
        answer = (HALVES + [ord("a") + len(prompt) % 26] * tokens)[:tokens]
        self._running[number] = answer[:4] + [END] if may_end and tokens > 4 else answer
        self.most_at_once = max(self.most_at_once, len(self._running))

    def wait(self):
        for number, left in list(self._running.items()):
            if self.most_at_once < self.together and len(left) < 6:
                continue
            if len(left) == 1:
                del self._running[number]
            yield Progress(number, [left.pop(0)], ended=not left)

    def chat_tokens(self, messages: list[dict]) -> list[int]:
        return list("".join(message["content"] for message in messages).encode())

    def text(self, tokens: list[int]) -> str:
        return bytes(token for token in tokens if token != END).decode(errors="replace")


@pytest.fixture
def engine():
    return CountsDown()


@pytest.fixture
def front(engine):
    driver = Driver(engine)
    threading.Thread(target=driver.run, daemon=True).start()
    with Server(("127.0.0.1", 0), handler_for(engine, driver, "made-up")) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0, timeout=60) as client:
            yield client
        server.shutdown()


def ask(client, content="four", **fields):
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="made-up", messages=messages, **{"max_tokens": 8, "temperature": 0} | fields)


def test_an_answer_has_as_many_tokens_as_were_asked_for(front):
    answer = ask(front, extra_body={"ignore_eos": True})
    assert answer.choices[0].message.content == "é" + "e" * 6
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 8)
    assert [model.id for model in front.models.list()] == ["made-up"]


def test_an_answer_may_end_by_itself(front):
    answer = ask(front)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("éee", "stop")
    assert answer.usage.completion_tokens == 5


def test_a_stream_has_whole_characters_and_says_what_was_used(front):
    with ask(front, stream=True, stream_options={"include_usage": True}, extra_body={"ignore_eos": True}) as stream:
        chunks = list(stream)
    assert [chunk.choices[0].delta.content for chunk in chunks[:-2]] == ["é"] + ["e"] * 6
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 8
    with ask(front, stream=True) as stream:
        assert all(chunk.usage is None for chunk in stream)


def test_several_are_answered_together(front, engine):
    engine.together = 2
    with ask(front, stream=True, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
        assert ask(front, content="seventeen letters").choices[0].message.content == "érr"
        assert len(list(stream)) == 7
    assert engine.most_at_once == 2


@pytest.mark.parametrize("fields", [{"logprobs": True}, {"temperature": 1}, {"max_tokens": 0}, {"n": 2}])
def test_what_it_does_not_know_is_refused(front, fields):
    with pytest.raises(BadRequestError) as error:
        ask(front, **fields)
    assert next(iter(fields)) in error.value.body["message"]


def test_other_bodies_and_paths_are_refused(front):
    def post(path: str, body: bytes) -> tuple[int, str]:
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{front.base_url}{path}", body)
        return error.value.code, json.load(error.value)["error"]["message"]

    assert post("chat/completions", b"[1]") == (400, "the body has to be an object")
    assert post("chat/completions", b"{")[0] == 400
    assert post("embeddings", b"{}") == (404, "there is no /v1/embeddings")
