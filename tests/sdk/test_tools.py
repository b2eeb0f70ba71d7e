"""Tools: calls at once, as a stream, in a conversation and in a batch."""

import json

import pytest
from openai import BadRequestError

import support

QUESTION = [{"role": "user", "content": "How warm is it in Bern?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Basel"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "clock", "description": "Tells the time."}},
]
WEATHER = {"type": "function", "function": {"name": "weather"}}


def check(name: str, arguments: str) -> None:
    """The arguments follow the function's schema."""
    given = json.loads(arguments)
    if name == "clock":
        assert given == {}
        return
    assert name == "weather"
    assert given.keys() == {"city", "days"}
    assert given["city"] in ("Bern", "Basel")
    assert given["days"] in range(1, 10)


def test_a_call_that_has_to_be_made(client, model):
    for choice in ("required", WEATHER):
        answer = client.chat.completions.create(
            model=model, messages=QUESTION, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_tokens=200
        )
        [choice] = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        [call] = choice.message.tool_calls
        assert call.type == "function"
        assert call.id
        check(call.function.name, call.function.arguments)


def test_a_stream_of_a_call(client, model):
    parameters = {"model": model, "messages": QUESTION, "tools": TOOLS, "tool_choice": WEATHER, "max_tokens": 200, "seed": 3}
    [whole] = client.chat.completions.create(**parameters).choices[0].message.tool_calls
    name, ids, arguments, reasons = "", [], [], []
    for chunk in client.chat.completions.create(**parameters, stream=True):
        [choice] = chunk.choices
        reasons += [choice.finish_reason] if choice.finish_reason else []
        for call in choice.delta.tool_calls or []:
            assert call.index == 0
            name += call.function.name or ""
            ids += [call.id] if call.id else []
            arguments.append(call.function.arguments or "")
    assert (name, len(ids), reasons) == ("weather", 1, ["tool_calls"])
    assert len(arguments) > 3
    assert "".join(arguments) == whole.function.arguments
    check(name, whole.function.arguments)


def test_the_sdks_own_reading_of_a_stream(client, model):
    with client.chat.completions.stream(
        model=model, messages=QUESTION, tools=TOOLS, tool_choice=WEATHER, max_tokens=200
    ) as stream:
        [call] = stream.get_final_completion().choices[0].message.tool_calls
    check(call.function.name, call.function.arguments)


def test_a_call_and_its_result_go_back(client, model):
    parameters = {"model": model, "tools": TOOLS, "max_tokens": 200}
    first = client.chat.completions.create(messages=QUESTION, tool_choice=WEATHER, **parameters)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "cold"}
    second = client.chat.completions.create(messages=[*QUESTION, message, result], tool_choice="none", **parameters)
    assert second.choices[0].message.tool_calls is None
    with pytest.raises(BadRequestError) as error:
        client.chat.completions.create(messages=[*QUESTION, message, result | {"tool_call_id": "x"}], **parameters)
    assert error.value.param == "messages[2].tool_call_id"


def test_tools_that_are_wrong_are_refused(client, model):
    for tools, choice, param in [([], "auto", "tools"), (TOOLS, {"type": "function", "function": {"name": "x"}}, "tool_choice")]:
        with pytest.raises(BadRequestError) as error:
            client.chat.completions.create(model=model, messages=QUESTION, tools=tools, tool_choice=choice)
        assert error.value.param == param


def test_calls_in_a_batch(client, model):
    lines = [
        support.chat_line(f"line-{at}", model, seed=at, max_tokens=200, tools=TOOLS, tool_choice=WEATHER)
        for at in range(4)
    ]
    batch = support.wait(client, support.submit(client, lines))
    assert batch.request_counts.completed == 4
    for record in support.records(client, batch.output_file_id).values():
        [choice] = record["response"]["body"]["choices"]
        assert choice["finish_reason"] == "tool_calls"
        [call] = choice["message"]["tool_calls"]
        check(call["function"]["name"], call["function"]["arguments"])
