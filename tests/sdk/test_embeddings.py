"""Embeddings, online and in a batch. The small model that ships cannot embed, so the simulated one does."""

import json
import math
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI

from support import records, upload, wait
from tandem_server import TandemServer, default_binary

MODEL = "embedder"
ARGUMENTS = ["--profile", "sim", "--config", str(Path(__file__).with_name("embedder.toml"))]


@pytest.fixture(scope="module")
def client():
    with TandemServer(default_binary(), ARGUMENTS) as server:
        with OpenAI(base_url=server.base_url, api_key="not-needed-for-local", max_retries=0, timeout=120) as client:
            yield client


def test_a_text_has_a_vector_of_length_one(client):
    # The SDK asks for Base64 unless told otherwise, and decodes it.
    answer = client.embeddings.create(model=MODEL, input="What is the capital of France?")
    assert answer.object == "list"
    assert answer.model == MODEL
    [embedding] = answer.data
    assert embedding.object == "embedding"
    assert math.isclose(math.hypot(*embedding.embedding), 1, abs_tol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_both_encodings_hold_the_same_numbers(client):
    numbers = client.embeddings.create(model=MODEL, input="hello", encoding_format="float").data[0].embedding
    decoded = client.embeddings.create(model=MODEL, input="hello").data[0].embedding
    assert decoded == pytest.approx(numbers, abs=1e-7)


def test_texts_keep_their_places(client):
    texts = [f"text {number}" for number in range(100)]
    together = client.embeddings.create(model=MODEL, input=texts).data
    assert [embedding.index for embedding in together] == list(range(100))
    for number in (0, 57, 99):
        alone = client.embeddings.create(model=MODEL, input=texts[number]).data[0]
        assert together[number].embedding == pytest.approx(alone.embedding, abs=1e-6)


def test_token_ids_are_taken_as_they_are(client):
    one = client.embeddings.create(model=MODEL, input=[72, 105])
    many = client.embeddings.create(model=MODEL, input=[[72, 105], [72]])
    assert (one.usage.prompt_tokens, many.usage.prompt_tokens) == (2, 3)
    assert many.data[0].embedding == pytest.approx(one.data[0].embedding, abs=1e-6)


def test_what_is_wrong_is_told(client):
    with pytest.raises(BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="")
    assert (refused.value.param, refused.value.code) == ("input", "invalid_value")
    with pytest.raises(BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="hello", dimensions=3)
    assert refused.value.param == "dimensions"
    with pytest.raises(BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="x" * 9000)
    assert refused.value.code == "context_length_exceeded"


def test_a_model_does_what_it_is_for(client):
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}])
    assert refused.value.code == "model_not_supported"
    assert refused.value.body["message"] == "This model does not support chat completions."
    with pytest.raises(BadRequestError) as refused:
        client.embeddings.create(model="sim", input="hello")
    assert refused.value.body["message"] == "This model does not support embeddings."


def test_a_batch_of_embeddings(client):
    url = "/v1/embeddings"
    bodies = {"a": {"input": "hello"}, "b": {"input": ["hello", "world"]}, "c": {"input": []}}
    lines = [
        json.dumps({"custom_id": name, "method": "POST", "url": url, "body": {"model": MODEL} | body})
        for name, body in bodies.items()
    ]
    file = upload(client, lines)
    batch = wait(client, client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h"))
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    output = records(client, batch.output_file_id)
    online = client.embeddings.create(model=MODEL, input="hello", encoding_format="float").data[0].embedding
    for name in ("a", "b"):
        assert output[name]["response"]["body"]["data"][0]["embedding"] == pytest.approx(online, abs=1e-6)
    assert records(client, batch.error_file_id)["c"]["response"]["status_code"] == 400
