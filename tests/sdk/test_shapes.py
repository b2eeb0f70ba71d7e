"""Answers by the SDK's own types, taken literally: no field is missing, of another type, or a word that the SDK does not know."""

import json

import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

QUESTION = [{"role": "user", "content": "Hi"}]
CHAT = {"messages": QUESTION, "max_tokens": 4, "n": 2, "logprobs": True, "top_logprobs": 2, "service_tier": "flex"}
TEXT = {"prompt": "Once", "max_tokens": 4, "n": 2, "logprobs": 2}


def post(client, path: str, body: dict) -> str:
    return client.with_raw_response.post(path, cast_to=str, body=body).text()


@pytest.mark.parametrize(
    ("path", "body", "whole", "chunk"),
    [
        ("/chat/completions", CHAT, ChatCompletion, ChatCompletionChunk),
        ("/completions", TEXT, Completion, Completion),
    ],
)
def test_answers_are_what_the_sdk_expects(client, model, path, body, whole, chunk):
    whole.model_validate_json(post(client, path, {"model": model} | body), strict=True)
    stream = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    *events, done = post(client, path, stream | body).split("\n\n")[:-1]
    assert done == "data: [DONE]"
    for event in events:
        chunk.model_validate_json(event.removeprefix("data: "), strict=True)
    assert json.loads(events[-1].removeprefix("data: "))["choices"] == []


def test_models_are_what_the_sdk_expects(client):
    for model in json.loads(client.models.with_raw_response.list().text())["data"]:
        Model.model_validate(model, strict=True)


def test_a_prompt_is_scored(client, model):
    answer = client.completions.create(model=model, prompt="Hello there", max_tokens=0, echo=True, logprobs=1)
    [choice] = answer.choices
    assert choice.text == "Hello there"
    first, *rest = choice.logprobs.token_logprobs
    assert first is None
    assert rest and all(logprob < 0 for logprob in rest)
    assert answer.usage.completion_tokens == 0
