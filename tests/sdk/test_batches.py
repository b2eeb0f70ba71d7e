"""Batches, from upload to results."""

import pytest
from openai import BadRequestError, ConflictError, NotFoundError
from openai.types import Batch

from example_batch import run_batch
from support import ENDPOINT, chat_line, records, submit, upload, wait


def test_example_answers_both_questions(client, model, target, capsys):
    answers = run_batch(client, model)
    capsys.readouterr()
    assert set(answers) == {"request-1", "request-2"}
    if target.answers:
        assert "Paris" in answers["request-1"]
        assert "4" in answers["request-2"]


def test_life_of_a_batch(client, model):
    created = submit(client, [chat_line(f"line-{i}", model) for i in range(5)], metadata={"purpose": "test"})
    assert created.object == "batch"
    assert created.id.startswith("batch_")
    assert created.endpoint == ENDPOINT
    assert created.completion_window == "24h"
    assert created.metadata == {"purpose": "test"}
    assert created.expires_at == created.created_at + 24 * 3600

    ended = wait(client, created)
    assert ended.status == "completed"
    counts = ended.request_counts
    assert (counts.total, counts.completed, counts.failed) == (5, 5, 0)
    assert ended.error_file_id is None
    assert ended.created_at <= ended.in_progress_at <= ended.finalizing_at <= ended.completed_at

    output = records(client, ended.output_file_id)
    assert set(output) == {f"line-{i}" for i in range(5)}
    for record in output.values():
        assert record["error"] is None
        response = record["response"]
        assert response["status_code"] == 200
        assert response["request_id"]
        body = response["body"]
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"]["role"] == "assistant"
        assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]

    file = client.files.retrieve(ended.output_file_id)
    assert file.purpose == "batch_output"


def test_one_question_gets_the_same_answer_online_and_in_a_batch(client, model):
    parameters = {"temperature": 0, "max_tokens": 12}
    online = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is the capital of France?"}], **parameters
    )
    ended = wait(client, submit(client, [chat_line("a", model, "What is the capital of France?", **parameters)]))
    in_batch = records(client, ended.output_file_id)["a"]["response"]["body"]
    assert in_batch["choices"][0]["message"]["content"] == online.choices[0].message.content


def test_a_line_that_is_not_json_fails_the_batch_and_is_named(client, model):
    ended = wait(client, submit(client, [chat_line("a", model), "{not json", chat_line("b", model)]))
    assert ended.status == "failed"
    assert ended.failed_at is not None
    assert ended.output_file_id is None
    assert [(error.line, error.code) for error in ended.errors.data] == [(2, "invalid_json_line")]


def test_every_bad_line_is_named(client, model):
    lines = [chat_line("a", model), "{", chat_line("a", model), "[1]"]
    ended = wait(client, submit(client, lines))
    assert ended.status == "failed"
    assert [error.line for error in ended.errors.data] == [2, 3, 4]


def test_a_line_with_a_bad_parameter_fails_alone(client, model):
    lines = [chat_line("good", model), chat_line("bad", model, temperature=3)]
    ended = wait(client, submit(client, lines))
    assert ended.status == "completed"
    counts = ended.request_counts
    assert (counts.total, counts.completed, counts.failed) == (2, 1, 1)
    assert set(records(client, ended.output_file_id)) == {"good"}
    failed = records(client, ended.error_file_id)
    assert set(failed) == {"bad"}
    assert failed["bad"]["response"]["status_code"] == 400
    assert failed["bad"]["response"]["body"]["error"]["param"] == "temperature"


def test_an_unknown_input_file_fails_the_batch_not_the_call(client):
    batch = client.batches.create(
        input_file_id="file-doesnotexist0000000000", endpoint=ENDPOINT, completion_window="24h"
    )
    ended = wait(client, batch)
    assert ended.status == "failed"
    assert ended.errors.data[0].code == "invalid_request"


def test_cancel(client, model):
    # More than can be done before the request to cancel arrives; each line is long, so some of it is always left.
    lines = [chat_line(f"line-{i}", model, max_tokens=64, ignore_eos=True) for i in range(200)]
    batch = submit(client, lines)
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.status in ("cancelling", "cancelled")
    assert cancelled.cancelling_at is not None

    ended = wait(client, cancelled)
    assert ended.status == "cancelled"
    assert ended.cancelled_at >= ended.cancelling_at
    # Again changes nothing.
    assert client.batches.cancel(batch.id).cancelled_at == ended.cancelled_at
    # Each line stands in one of the two files, if the batch got as far as having lines.
    done, undone = records(client, ended.output_file_id), records(client, ended.error_file_id)
    assert not set(done) & set(undone)
    assert len(done) + len(undone) == ended.request_counts.total
    assert all(record["error"]["code"] == "batch_cancelled" for record in undone.values())


def test_a_batch_that_ended_can_be_cancelled_no_more(client, model):
    ended = wait(client, submit(client, [chat_line("a", model)]))
    with pytest.raises(ConflictError) as refused:
        client.batches.cancel(ended.id)
    assert "Cannot cancel a batch with status 'completed'." in refused.value.message
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_results_are_read_by_pages_and_failures_run_again(client, model):
    lines = [chat_line(f"line-{i}", model) for i in range(5)] + [chat_line("bad", model, temperature=3)]
    ended = wait(client, submit(client, lines, metadata={"purpose": "test"}))
    # The library has no call for what OpenAI does not offer, but sends what it is told to.
    seen, after = [], ""
    while True:
        query = {"limit": 2, "after": after}
        page = client.get(f"/batches/{ended.id}/results", cast_to=object, options={"params": query})
        seen += [record["custom_id"] for record in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert sorted(seen) == ["bad"] + [f"line-{i}" for i in range(5)]

    again = client.post(f"/batches/{ended.id}/retry", cast_to=Batch)
    assert again.metadata == {"purpose": "test", "retry_of": ended.id}
    again = wait(client, again)
    assert set(records(client, again.error_file_id)) == {"bad"}


def test_an_estimate_counts_the_tokens_that_are_then_used(client, model):
    lines = [chat_line(f"line-{i}", model, "What is the capital of France?" * (i + 1)) for i in range(3)]
    batch = submit(client, lines + [chat_line("bad", model, temperature=3)])
    estimate = client.get(f"/files/{batch.input_file_id}/estimate", cast_to=object)
    assert (estimate["total_requests"], estimate["invalid_requests"]) == (4, 1)
    assert estimate["max_output_tokens"] == 3 * 16
    assert [share["model"] for share in estimate["by_model"]] == [model]
    assert estimate["input_tokens"] == wait(client, batch).usage.input_tokens


def test_a_batch_is_paused_and_resumed(client, model):
    lines = [chat_line(f"line-{i}", model, max_tokens=64, ignore_eos=True) for i in range(100)]
    batch = submit(client, lines)
    paused = client.post(f"/batches/{batch.id}/pause", cast_to=Batch)
    assert paused.status in ("validating", "in_progress")
    assert paused.progress["paused_at"] is not None
    resumed = client.post(f"/batches/{batch.id}/resume", cast_to=Batch)
    assert resumed.status in ("validating", "in_progress")
    wait(client, client.batches.cancel(batch.id))


def test_list_goes_through_pages_newest_first(client, model):
    created = [submit(client, [chat_line("a", model)]) for _ in range(3)]
    listed = [batch.id for batch in client.batches.list(limit=2)]  # iterating fetches the following pages
    assert len(listed) == len(set(listed))
    assert [id for id in listed if id in {batch.id for batch in created}] == [batch.id for batch in reversed(created)]
    for batch in created:
        wait(client, batch)


def test_create_refuses_what_it_does_not_offer(client, model):
    file = upload(client, [chat_line("a", model)])
    with pytest.raises(BadRequestError) as refused:
        client.batches.create(input_file_id=file.id, endpoint="/v1/moderations", completion_window="24h")
    assert refused.value.param == "endpoint"
    with pytest.raises(BadRequestError) as refused:
        client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="1h")
    assert refused.value.param == "completion_window"


def test_unknown_batch_is_not_found(client):
    with pytest.raises(NotFoundError):
        client.batches.retrieve("batch_doesnotexist")
    with pytest.raises(NotFoundError):
        client.batches.cancel("batch_doesnotexist")
