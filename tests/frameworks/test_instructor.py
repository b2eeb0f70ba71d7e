"""Instructor, over the SDK of OpenAI."""

from typing import Annotated

import instructor
import pytest
from instructor import Mode
from instructor.batch import BatchProcessor
from instructor.core.exceptions import InstructorRetryException
from openai import AuthenticationError, NotFoundError, OpenAI
from pydantic import AfterValidator, Field

from asked import CAPITAL, NORA, SENTENCE, Closed, Person
from waiting import wait_until

ANY_KEY = "none"


class Rating(Closed):
    stars: int = Field(ge=1, le=5)


def client(address: str, mode: Mode = Mode.JSON_SCHEMA, key: str = ANY_KEY) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=address, api_key=key, max_retries=0, timeout=120), mode=mode)


def asked(text: str) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0}


@pytest.mark.parametrize("mode", [Mode.JSON_SCHEMA, Mode.TOOLS, Mode.TOOLS_STRICT])
def test_an_answer_is_a_person(demo, mode):
    person, raw = client(demo, mode).create_with_completion(response_model=Person, max_retries=1, **asked(SENTENCE))
    [choice] = raw.choices
    call = choice.message.tool_calls and choice.message.tool_calls[0].function
    said = call.arguments if call else choice.message.content
    assert person.model_dump() == Person.model_validate_json(said).model_dump()
    assert raw.usage.completion_tokens > 0


def test_a_client_comes_from_a_name(demo):
    named = instructor.from_provider("openai/tiny", base_url=demo, api_key=ANY_KEY, mode=Mode.JSON_SCHEMA)
    assert isinstance(named.create(response_model=Person, messages=asked(SENTENCE)["messages"], temperature=0), Person)


@pytest.mark.parametrize("mode", [Mode.JSON_SCHEMA, Mode.TOOLS])
def test_parts_of_a_stream_grow_to_the_whole(demo, mode):
    parts = [part.model_dump() for part in client(demo, mode).create_partial(response_model=Person, **asked(SENTENCE))]
    assert len(parts) > 3
    assert parts[0]["city"] is None
    Person.model_validate(parts[-1])
    # What was there once stays, and names grow.
    for part, longer in zip(parts, parts[1:]):
        assert all(value is None or str(longer[name]).startswith(str(value)) for name, value in part.items())


class City(Closed):
    name: str = Field(max_length=12)


class Cities(Closed):
    cities: list[City] = Field(min_length=2, max_length=3)


@pytest.mark.parametrize("mode", [Mode.JSON_SCHEMA, Mode.TOOLS])
def test_a_list_is_as_long_as_it_was_asked_to_be(demo, mode):
    for seed in range(3):
        parameters = asked("Name some cities.") | {"temperature": 1, "seed": seed}
        answer = client(demo, mode).create(response_model=Cities, max_retries=0, **parameters)
        assert len(answer.cities) in (2, 3)


def test_an_answer_that_does_not_pass_is_asked_for_again(demo):
    seen = []

    def not_the_first(value: int) -> int:
        seen.append(value)
        if len(seen) == 1:
            raise ValueError("Try once more.")
        return value

    class Age(Closed):
        age: Annotated[int, Field(ge=0, le=150), AfterValidator(not_the_first)]

    for mode in (Mode.JSON_SCHEMA, Mode.TOOLS):
        seen.clear()
        answer = client(demo, mode).create(response_model=Age, max_retries=2, **asked(SENTENCE))
        assert len(seen) == 2 and answer.age == seen[1]


def test_a_batch_is_worked_off(demo, monkeypatch):
    # It has no other way to be told.
    monkeypatch.setenv("OPENAI_BASE_URL", demo)
    monkeypatch.setenv("OPENAI_API_KEY", ANY_KEY)
    batches = BatchProcessor("openai/tiny", Person)
    buffer = batches.create_batch_from_messages([asked(SENTENCE)["messages"]] * 2, max_tokens=100, temperature=0)
    batch = batches.submit_batch(buffer)
    wait_until(lambda: batches.get_batch_status(batch), lambda now: now["status"] == "completed")
    results = batches.retrieve_results(batch)
    assert sorted(result.custom_id for result in results) == ["request-0", "request-1"]
    assert all(result.success and result.result.model_dump() == NORA.model_dump() for result in results)


def test_errors_are_of_the_class_that_is_expected(demo, guarded):
    # Instructor's own exception counts the attempts; what it gave up on is behind it.
    def causes(address: str, **parameters) -> list[BaseException | None]:
        with pytest.raises(InstructorRetryException) as refused:
            client(address).create(response_model=Person, max_retries=0, **asked(CAPITAL) | parameters)
        chain = [refused.value]
        while chain[-1] is not None:
            chain.append(chain[-1].__cause__)
        return chain

    assert any(isinstance(error, NotFoundError) for error in causes(demo, model="no-such-model"))
    address, key = guarded
    assert any(isinstance(error, AuthenticationError) for error in causes(address, model="sim"))
    allowed = client(address, key=key)
    assert isinstance(allowed.create(response_model=Rating, **asked(CAPITAL) | {"model": "sim"}), Rating)
