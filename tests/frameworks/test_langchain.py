"""LangChain, by `langchain-openai`."""

import asyncio
import math
from operator import itemgetter

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from asked import CAPITAL, NORA, SENTENCE, TOO_LONG, WEATHER, GetWeather, Person

ANY_KEY = "none"


def chat(address: str, **parameters) -> ChatOpenAI:
    parameters = {"model": "tiny", "temperature": 0, "max_retries": 0, "timeout": 120} | parameters
    return ChatOpenAI(base_url=address, api_key=ANY_KEY, **parameters)


def test_a_chain_answers(demo):
    prompt = ChatPromptTemplate.from_messages([("system", "Answer in one word."), ("user", "{question}")])
    answer = (prompt | chat(demo, max_tokens=16) | StrOutputParser()).invoke({"question": CAPITAL})
    assert "Paris" in answer


def test_usage_and_the_reason_to_finish_are_told(demo):
    answer = chat(demo, max_tokens=2).invoke(CAPITAL)
    usage = answer.usage_metadata
    assert usage["output_tokens"] == 2
    assert usage["total_tokens"] == usage["input_tokens"] + 2
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["model_name"] == "tiny"


def test_a_stream_joins_to_the_whole_answer(demo):
    model = chat(demo, max_tokens=16, stream_usage=True)
    whole = model.invoke(CAPITAL)
    chunks = list(model.stream(CAPITAL))
    assert len([chunk for chunk in chunks if chunk.content]) > 3
    joined = sum(chunks[1:], start=chunks[0])
    assert joined.content == whole.content
    assert joined.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert joined.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"]


def test_log_probabilities_are_told(demo):
    answer = chat(demo, max_tokens=4, logprobs=True, top_logprobs=2).invoke(CAPITAL)
    content = answer.response_metadata["logprobs"]["content"]
    assert "".join(map(itemgetter("token"), content)) == answer.content
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 2 for token in content)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("strict", [True, None])
def test_structured_output_is_a_person(demo, method, strict):
    model = chat(demo).with_structured_output(Person, method=method, strict=strict, include_raw=True)
    answer = model.invoke(SENTENCE)
    assert answer["parsing_error"] is None
    # Called as a function, it makes up what it has not learnt to read out of a sentence that way.
    assert isinstance(answer["parsed"], Person)
    if method == "json_schema":
        assert answer["parsed"] == NORA
        assert answer["raw"].usage_metadata["output_tokens"] > 0


def test_json_mode_is_json(demo):
    model = chat(demo, max_tokens=60).with_structured_output(Person.model_json_schema(), method="json_mode")
    assert model.invoke(SENTENCE) == NORA.model_dump()


def test_a_tool_is_called_and_its_result_told(demo):
    model = chat(demo, max_tokens=100)
    asked = [HumanMessage(WEATHER)]
    for choice in ("any", "GetWeather"):
        answer = model.bind_tools([GetWeather], tool_choice=choice, parallel_tool_calls=False).invoke(asked)
        [call] = answer.tool_calls
        assert call["name"] == "GetWeather" and call["id"]
        GetWeather.model_validate(call["args"])
        assert answer.response_metadata["finish_reason"] == "tool_calls"
    asked += [answer, ToolMessage("It is 20 degrees.", tool_call_id=call["id"])]
    told = model.bind_tools([GetWeather], tool_choice="none").invoke(asked)
    assert isinstance(told, AIMessage) and told.content and not told.tool_calls


def test_a_streamed_call_joins_to_the_whole_one(demo):
    model = chat(demo, max_tokens=100, seed=3).bind_tools([GetWeather], tool_choice="any", parallel_tool_calls=False)
    [whole] = model.invoke(WEATHER).tool_calls
    chunks = list(model.stream(WEATHER))
    [call] = sum(chunks[1:], start=chunks[0]).tool_calls
    assert (call["name"], call["args"]) == ("GetWeather", whole["args"])


def test_many_questions_are_answered_at_once(demo):
    answers = chat(demo, max_tokens=16).batch([CAPITAL, "What is 2+2?", "What is the capital of Japan?"])
    for answer, expected in zip(answers, ["Paris", "4", "Tokyo"], strict=True):
        assert expected in answer.content


@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_is_continued(sim, streaming):
    model = OpenAI(base_url=sim, api_key=ANY_KEY, model="sim", max_tokens=8, temperature=0, max_retries=0)
    whole = model.invoke("Once upon a time")
    assert whole
    if streaming:
        assert "".join(model.stream("Once upon a time")) == whole


def test_texts_are_embedded(sim):
    # Otherwise it would send the numbers that tokens have in a vocabulary of OpenAI's.
    parameters = {"model": "embedder", "check_embedding_ctx_length": False, "max_retries": 0}
    model = OpenAIEmbeddings(base_url=sim, api_key=ANY_KEY, **parameters)
    texts = [f"text {number}" for number in range(5)]
    vectors = model.embed_documents(texts)
    assert len({len(vector) for vector in vectors}) == 1 and len(vectors) == 5
    assert vectors[3] == pytest.approx(model.embed_query("text 3"), abs=1e-6)
    assert math.hypot(*vectors[0]) == pytest.approx(1, abs=1e-5)


async def ask_asynchronously(address: str) -> tuple[str, str]:
    model = chat(address, max_tokens=16)
    whole = await model.ainvoke(CAPITAL)
    return whole.content, "".join([chunk.content async for chunk in model.astream(CAPITAL)])


def test_asynchronous_calls_say_the_same(demo):
    whole, streamed = asyncio.run(ask_asynchronously(demo))
    assert "Paris" in whole and streamed == whole


def test_errors_are_of_the_class_that_is_expected(demo, guarded):
    with pytest.raises(openai.NotFoundError):
        chat(demo, model="no-such-model").invoke("Hi")
    with pytest.raises(openai.BadRequestError) as refused:
        chat(demo, temperature=3).invoke("Hi")
    assert refused.value.param == "temperature"
    # LangChain's own class, for those who shorten what they asked.
    with pytest.raises(openai.BadRequestError) as refused:
        chat(demo).invoke(TOO_LONG)
    assert type(refused.value).__name__ == "OpenAIContextOverflowError", type(refused.value)
    address, key = guarded
    with pytest.raises(openai.AuthenticationError):
        chat(address, model="sim").invoke("Hi")
    assert ChatOpenAI(base_url=address, api_key=key, model="sim", max_tokens=4, max_retries=0).invoke("Hi").content
