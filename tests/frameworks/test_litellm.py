"""LiteLLM, by its providers `openai` and `hosted_vllm`."""

import io
import json
import math

import litellm
import pytest
import support
from litellm import completion, embedding, text_completion

from asked import CAPITAL, NORA, SENTENCE, TOO_LONG, WEATHER, GetWeather, Person
from waiting import wait_until

ANY_KEY = "none"
PROVIDERS = pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": GetWeather.__doc__, "parameters": GetWeather.model_json_schema()},
}


def said(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def ask(address: str, provider: str = "openai", text: str = CAPITAL, **parameters):
    parameters = {"model": f"{provider}/tiny", "api_key": ANY_KEY, "temperature": 0, "timeout": 120} | parameters
    return completion(api_base=address, messages=said(text), max_retries=0, **parameters)


@PROVIDERS
def test_a_chat_is_answered(demo, provider):
    answer = ask(demo, provider, max_tokens=16)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 16


@PROVIDERS
def test_a_stream_joins_to_the_whole_answer(demo, provider):
    whole = ask(demo, provider, max_tokens=16)
    chunks = list(ask(demo, provider, max_tokens=16, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    rebuilt = litellm.stream_chunk_builder(chunks, messages=said(CAPITAL))
    assert rebuilt.choices[0].message.content == whole.choices[0].message.content
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens
    assert rebuilt.choices[0].finish_reason == whole.choices[0].finish_reason


@PROVIDERS
def test_a_response_format_is_a_person(demo, provider):
    answer = ask(demo, provider, SENTENCE, response_format=Person)
    assert Person.model_validate_json(answer.choices[0].message.content) == NORA


@PROVIDERS
def test_a_tool_is_called_and_its_result_told(demo, provider):
    parameters = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100, "seed": 3}
    answer = ask(demo, provider, WEATHER, **parameters)
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    GetWeather.model_validate_json(call.function.arguments)

    chunks = list(ask(demo, provider, WEATHER, **parameters, stream=True))
    [streamed] = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)

    messages = [*said(WEATHER), answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "20 degrees"}]
    told = completion(
        f"{provider}/tiny", messages, api_base=demo, api_key=ANY_KEY, tools=[TOOL], tool_choice="none", max_tokens=40
    )
    assert told.choices[0].message.content and not told.choices[0].message.tool_calls


def test_what_openai_does_not_have_gets_through(demo):
    answers = {ask(demo, max_tokens=8, temperature=1.5, top_k=1, seed=seed).choices[0].message.content for seed in (1, 2)}
    assert len(answers) == 1, "the likeliest token alone is left"


def test_a_text_is_continued(sim):
    parameters = {"model": "text-completion-openai/sim", "api_base": sim, "api_key": ANY_KEY, "max_tokens": 8}
    whole = text_completion(prompt="Once upon a time", temperature=0, **parameters)
    assert whole.choices[0].text and whole.usage.completion_tokens == 8
    chunks = text_completion(prompt="Once upon a time", temperature=0, stream=True, **parameters)
    assert "".join(chunk.choices[0].text or "" for chunk in chunks if chunk.choices) == whole.choices[0].text


@PROVIDERS
def test_texts_are_embedded(sim, provider):
    answer = embedding(f"{provider}/embedder", ["one", "two", "three"], api_base=sim, api_key=ANY_KEY)
    vectors = [item["embedding"] for item in answer.data]
    assert len(vectors) == 3 and len({len(vector) for vector in vectors}) == 1
    assert all(math.hypot(*vector) == pytest.approx(1, abs=1e-5) for vector in vectors)
    assert answer.usage.prompt_tokens > 0


def test_a_router_falls_back_on_another_server(demo, sim):
    def deployment(name: str, model: str, address: str) -> dict:
        return {"model_name": name, "litellm_params": {"model": f"openai/{model}", "api_base": address, "api_key": ANY_KEY}}

    deployments = [deployment("first", "no-such-model", sim), deployment("second", "tiny", demo)]
    router = litellm.Router(deployments, fallbacks=[{"first": ["second"]}], num_retries=0)
    answer = router.completion("first", said(CAPITAL), max_tokens=16, temperature=0)
    assert "Paris" in answer.choices[0].message.content


def test_a_batch_is_worked_off(demo):
    here = {"custom_llm_provider": "openai", "api_base": demo, "api_key": ANY_KEY}
    questions = {"one": (CAPITAL, "Paris"), "two": ("What is 2+2?", "4")}
    lines = [support.chat_line(name, "tiny", text, temperature=0) for name, (text, _) in questions.items()]
    content = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
    file = litellm.create_file(file=("questions.jsonl", content), purpose="batch", **here)
    batch = litellm.create_batch(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": "test"}, **here
    )
    ended = wait_until(lambda: litellm.retrieve_batch(batch_id=batch.id, **here), lambda now: now.status == "completed")
    assert ended.metadata == {"for": "test"}
    output = litellm.file_content(file_id=ended.output_file_id, **here).text
    answers = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, output.splitlines())}
    for name, (_, expected) in questions.items():
        assert expected in answers[name]["choices"][0]["message"]["content"]
    assert batch.id in [listed.id for listed in litellm.list_batches(**here).data]


def test_errors_are_of_the_class_that_is_expected(demo, guarded):
    for provider in ("openai", "hosted_vllm"):
        with pytest.raises(litellm.NotFoundError):
            ask(demo, provider, model=f"{provider}/no-such-model")
        with pytest.raises(litellm.BadRequestError):
            ask(demo, provider, temperature=3)
        with pytest.raises(litellm.ContextWindowExceededError):
            ask(demo, provider, TOO_LONG)
        address, key = guarded
        with pytest.raises(litellm.AuthenticationError):
            ask(address, provider, model=f"{provider}/sim")
        assert ask(address, provider, model=f"{provider}/sim", api_key=key, max_tokens=4).choices[0].message.content
