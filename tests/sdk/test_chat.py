"""Chat completions and completions, at once and as a stream."""

import pytest
from openai import BadRequestError, NotFoundError

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_chat(client, model, target):
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == model
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert 0 < usage.completion_tokens <= 16
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    if target.answers:
        assert "Paris" in choice.message.content


def test_chat_stream_says_the_same_as_the_whole_answer(client, model):
    parameters = {"model": model, "messages": QUESTION, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**parameters)
    chunks = list(client.chat.completions.create(**parameters, stream=True, stream_options={"include_usage": True}))

    assert len({chunk.id for chunk in chunks}) == 1
    *deltas, last = chunks
    assert deltas[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in deltas)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in deltas if chunk.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    # The chunk that was asked for: usage and no choices.
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in deltas)


def test_chat_stream_has_no_usage_unless_asked(client, model):
    chunks = list(client.chat.completions.create(model=model, messages=QUESTION, max_tokens=4, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_a_stream_can_be_left_early(client, model):
    with client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=256, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
    # The server goes on for others.
    client.chat.completions.create(model=model, messages=QUESTION, max_tokens=1)


def test_seed_makes_sampling_repeatable(client, model):
    def sample():
        answer = client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=12, temperature=1.5, seed=7, extra_body={"ignore_eos": True}
        )
        return answer.choices[0].message.content

    assert sample() == sample()


def test_n_and_max_tokens(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, n=3, max_tokens=2, temperature=1, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.finish_reason == "length" for choice in answer.choices)
    assert answer.usage.completion_tokens == 6


def test_logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert content
    for token in content:
        assert token.logprob <= 0
        assert bytes(token.bytes).decode(errors="replace") == token.token
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)


def test_completion(client, model):
    answer = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    [choice] = answer.choices
    assert choice.finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 8


def test_completion_stream_says_the_same_as_the_whole_answer(client, model):
    parameters = {"model": model, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**parameters)
    text = "".join(chunk.choices[0].text for chunk in client.completions.create(**parameters, stream=True))
    assert text == whole.choices[0].text


def test_unknown_model_is_not_found(client):
    with pytest.raises(NotFoundError) as refused:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert refused.value.code == "model_not_found"


def test_no_messages_is_a_bad_request(client, model):
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=[])
    assert refused.value.param == "messages"
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("temperature", 2.5), ("top_p", -0.1), ("n", 0), ("max_tokens", 0), ("presence_penalty", 3), ("stop", [""])],
)
def test_out_of_range_names_the_parameter(client, model, parameter, value):
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=QUESTION, **{parameter: value})
    assert refused.value.param.startswith(parameter)
