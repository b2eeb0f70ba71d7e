"""Files: upload, list, read, delete."""

import io

import pytest
from openai import BadRequestError, NotFoundError

from support import chat_line, upload


def test_life_of_a_file(client, model):
    line = chat_line("a", model)
    file = upload(client, [line], filename="questions.jsonl")
    assert file.object == "file"
    assert file.id.startswith("file-")
    assert file.filename == "questions.jsonl"
    assert file.purpose == "batch"
    assert file.bytes == len(line) + 1
    assert file.status == "processed"

    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).text == line + "\n"
    assert file.id in [listed.id for listed in client.files.list(purpose="batch")]
    assert file.id not in [listed.id for listed in client.files.list(purpose="user_data")]

    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(NotFoundError):
            gone(file.id)


def test_list_goes_through_pages(client, model):
    uploaded = [upload(client, [chat_line("a", model)]).id for _ in range(3)]
    newest_first = [file.id for file in client.files.list(limit=2) if file.id in uploaded]
    assert newest_first == uploaded[::-1]
    oldest_first = [file.id for file in client.files.list(limit=2, order="asc") if file.id in uploaded]
    assert oldest_first == uploaded
    for id in uploaded:
        client.files.delete(id)


def test_a_batch_file_has_to_be_jsonl(client):
    with pytest.raises(BadRequestError) as refused:
        client.files.create(file=("input.txt", io.BytesIO(b"hello\n")), purpose="batch")
    assert ".jsonl" in refused.value.message


def test_an_unknown_purpose_is_refused(client):
    with pytest.raises(BadRequestError) as refused:
        client.files.create(file=("input.jsonl", io.BytesIO(b"{}\n")), purpose="hack")
    assert refused.value.param == "purpose"
