"""LoRA adapters: found out from the model's card, named in a field of the request."""

import pytest
from openai import BadRequestError, NotFoundError

from support import chat_line, records, submit, wait

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def adapters(client, model):
    """The names of the model's adapters, of which not every target has any."""
    return getattr(client.models.retrieve(model), "adapters", [])


def ask(client, model, **parameters):
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, seed=7, **parameters)
    return answer.choices[0].message.content


def test_adapters_are_listed(adapters, target):
    assert adapters == list(target.adapters)


def test_each_adapter_says_something_else(client, model, adapters):
    answers = {ask(client, model)} | {ask(client, model, extra_body={"lora": name}) for name in adapters}
    assert len(answers) == 1 + len(adapters)
    completions = [
        client.completions.create(model=model, prompt="Hello", max_tokens=16, seed=7, extra_body={"lora": name})
        for name in adapters
    ]
    assert len({completion.choices[0].text for completion in completions}) == len(adapters)


def test_an_unknown_adapter_is_not_found(client, model):
    with pytest.raises(NotFoundError) as error:
        ask(client, model, extra_body={"lora": "no-such-adapter"})
    assert (error.value.code, error.value.param) == ("adapter_not_found", "lora")
    with pytest.raises(BadRequestError) as error:
        ask(client, model, extra_body={"lora": 7})
    assert (error.value.code, error.value.param) == ("invalid_type", "lora")


def test_lines_of_a_batch_name_their_adapters(client, model, adapters):
    names = [*adapters, "no-such-adapter"]
    lines = [chat_line(name, model, QUESTION[0]["content"], seed=7, lora=name) for name in names]
    ended = wait(client, submit(client, [*lines, chat_line("none", model, QUESTION[0]["content"], seed=7)]))
    output = records(client, ended.output_file_id)
    assert set(output) == {*adapters, "none"}
    for name, record in output.items():
        extra = {} if name == "none" else {"lora": name}
        [choice] = record["response"]["body"]["choices"]
        assert choice["message"]["content"] == ask(client, model, extra_body=extra)
    [refused] = records(client, ended.error_file_id).values()
    assert refused["custom_id"] == "no-such-adapter"
    assert refused["response"]["status_code"] == 404
    assert refused["response"]["body"]["error"]["code"] == "adapter_not_found"
