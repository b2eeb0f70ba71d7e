"""Batches for the tests: build an input file, upload it, wait for the end."""

import io
import json
import time

from openai import OpenAI
from openai.types import Batch

ENDPOINT = "/v1/chat/completions"
TERMINAL = ("completed", "failed", "expired", "cancelled")
ENDS_WITHIN_S = 120


def chat_line(custom_id: str, model: str, text: str = "What is 2+2?", **parameters) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 16} | parameters
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body})


def upload(client: OpenAI, lines: list[str], filename: str = "input.jsonl"):
    content = "".join(line + "\n" for line in lines).encode()
    return client.files.create(file=(filename, io.BytesIO(content)), purpose="batch")


def submit(client: OpenAI, lines: list[str], **parameters) -> Batch:
    file = upload(client, lines)
    return client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", **parameters)


def wait(client: OpenAI, batch: Batch) -> Batch:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while batch.status not in TERMINAL:
        assert time.monotonic() < deadline, f"the batch is still {batch.status} after {ENDS_WITHIN_S} s"
        time.sleep(0.05)  # sleep: between two polls, within a deadline
        batch = client.batches.retrieve(batch.id)
    return batch


def records(client: OpenAI, file_id: str | None) -> dict[str, dict]:
    """The lines of an output or error file by custom_id; none when there is no file."""
    if file_id is None:
        return {}
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    by_id = {line["custom_id"]: line for line in lines}
    assert len(by_id) == len(lines), "a custom_id stands twice in one file"
    return by_id
