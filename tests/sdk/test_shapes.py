"""Answers by the SDK's own types, taken literally: no field is missing, of another type, or a word that the SDK does not know."""

import json
from urllib.request import Request, urlopen

import pytest
import support
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

QUESTION = [{"role": "user", "content": "Hi"}]
CHAT = {"messages": QUESTION, "max_tokens": 4, "n": 2, "logprobs": True, "top_logprobs": 2, "service_tier": "flex"}
TEXT = {"prompt": "Once", "max_tokens": 4, "n": 2, "logprobs": 2}


def send(client, path: str, body: dict | None = None) -> str:
    """The answer as it came: a GET without a body, a POST with one."""
    data = None if body is None else json.dumps(body).encode()
    url = str(client.base_url).rstrip("/") + path
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=120) as answer:
        return answer.read().decode()


@pytest.mark.parametrize(
    ("path", "body", "whole", "chunk"),
    [
        ("/chat/completions", CHAT, ChatCompletion, ChatCompletionChunk),
        ("/completions", TEXT, Completion, Completion),
    ],
)
def test_answers_are_what_the_sdk_expects(client, model, path, body, whole, chunk):
    whole.model_validate_json(send(client, path, {"model": model} | body), strict=True)
    stream = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    *events, done = send(client, path, stream | body).split("\n\n")[:-1]
    assert done == "data: [DONE]"
    events = [json.loads(event.removeprefix("data: ")) for event in events]
    assert events[-1]["choices"] == []
    for event in events:
        for choice in event["choices"] if chunk is Completion else []:
            # OpenAI sends null before the end, which the SDK's one type for whole completions and their parts does not know.
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        chunk.model_validate(event, strict=True)


def test_models_are_what_the_sdk_expects(client):
    for model in json.loads(send(client, "/models"))["data"]:
        Model.model_validate(model, strict=True)


def test_a_prompt_is_scored(client, model):
    answer = client.completions.create(model=model, prompt="Hello there", max_tokens=0, echo=True, logprobs=1)
    [choice] = answer.choices
    assert choice.text == "Hello there"
    first, *rest = choice.logprobs.token_logprobs
    assert first is None
    assert rest and all(logprob < 0 for logprob in rest)
    assert answer.usage.completion_tokens == 0


def test_a_line_of_a_batch_takes_the_same_fields(client, model):
    fields = {
        "temperature": 0,
        "logprobs": True,
        "logprob_token_ids": [5],
        "return_token_ids": True,
        "return_prompt_text": True,
        "truncate_prompt_tokens": 9,
        "priority": -1,
        "service_tier": "flex",
        "ignore_eos": True,
        "repetition_detection": {"max_pattern_size": 8, "min_count": 3},
    }
    batch = support.wait(client, support.submit(client, [support.chat_line("one", model, "Hi", **fields)]))
    [line] = support.records(client, batch.output_file_id).values()
    body = json.loads(support.chat_line("one", model, "Hi", **fields))["body"]
    online = json.loads(send(client, "/chat/completions", body))
    answer = line["response"]["body"]
    assert answer["prompt_token_ids"] == online["prompt_token_ids"]
    assert len(answer["prompt_token_ids"]) == 9
    for name in ("choices", "prompt_text", "service_tier"):
        assert answer[name] == online[name], name
