#!/usr/bin/env python3
"""Sends a batch of two questions to a Tandem server with the official OpenAI SDK, and prints the answers.

    pip install openai
    python scripts/example_batch.py [--base-url http://127.0.0.1:8000/v1] [--model tiny]
"""

import argparse
import io
import json
import time

from openai import OpenAI

QUESTIONS = {
    "request-1": "What is the capital of France?",
    "request-2": "What is 2+2?",
}


def batch_line(custom_id: str, question: str, model: str) -> str:
    """One line of a batch's input file: a chat request with a name to find its answer by."""
    return json.dumps({
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": question},
            ],
            "max_tokens": 100,
        },
    })


def run_batch(client: OpenAI, model: str, questions: dict[str, str] = QUESTIONS, timeout_s: float = 300) -> dict[str, str]:
    """Uploads the questions, waits for the batch and returns the answers by custom_id."""
    lines = "".join(batch_line(custom_id, question, model) + "\n" for custom_id, question in questions.items())
    file = client.files.create(file=("batch_input.jsonl", io.BytesIO(lines.encode())), purpose="batch")
    print(f"uploaded {file.id} ({file.bytes} bytes)")

    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    print(f"created  {batch.id}")

    deadline = time.monotonic() + timeout_s
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"batch {batch.id} is still {batch.status} after {timeout_s:.0f} s")
        time.sleep(0.2)  # sleep: between two polls, within a deadline
        batch = client.batches.retrieve(batch.id)
    print(f"ended    {batch.status}")
    if batch.status != "completed":
        raise RuntimeError(f"the batch {batch.status}: {batch.errors}")
    if batch.error_file_id:
        raise RuntimeError(f"some lines failed:\n{client.files.content(batch.error_file_id).text}")

    # Lines come back in any order: custom_id says which answer belongs to which question.
    answers = {}
    for line in client.files.content(batch.output_file_id).text.splitlines():
        result = json.loads(line)
        answers[result["custom_id"]] = result["response"]["body"]["choices"][0]["message"]["content"]
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="tiny")
    arguments = parser.parse_args()

    client = OpenAI(base_url=arguments.base_url, api_key="not-needed-for-local")
    for custom_id, answer in run_batch(client, arguments.model).items():
        print(f"\n{custom_id}: {QUESTIONS[custom_id]}\n  {answer}")


if __name__ == "__main__":
    main()
