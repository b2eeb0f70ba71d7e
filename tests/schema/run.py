#!/usr/bin/env python3
"""Sends the server requests that its own document allows, and some that it does not, and holds the answers against the document: no
failure of the server, no status, media type or body that is not documented. A request that fails is printed as a curl command.

    run.py quick [OPTION…]       20 requests for each operation, the same each time
    run.py thorough [OPTION…]    500, others each time, every bound of every field, and operations one after another

Further options are those of `schemathesis run`; a failure of `thorough` comes again with the --seed that it prints.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "scripts"))

from tandem_server import TandemServer, default_binary  # noqa: E402

ARGUMENTS = ["--profile", "sim", "--config", str(HERE.parent / "sdk" / "documented.toml")]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance"
)
MODES = {
    "quick": ["--max-examples", "20", "--phases", "examples,fuzzing", "--generation-deterministic"],
    "thorough": ["--max-examples", "500", "--continue-on-failure", "--generation-database", "none"],
}
ENDS_WITHIN_S = 60


def request(url: str, body: bytes | None = None, media: str = "application/json") -> dict:
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": media})) as response:
        return json.load(response)


def upload(address: str) -> str:
    line = {
        "custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
    }
    edge = uuid.uuid4().hex
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
        f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n{json.dumps(line)}\n\r\n',
        f"--{edge}--\r\n",
    ]
    return request(f"{address}/v1/files", "".join(parts).encode(), f"multipart/form-data; boundary={edge}")["id"]


def known(address: str) -> dict:
    """What requests may name: models, a file, a batch that has ended and its output."""
    file = upload(address)
    order = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = request(f"{address}/v1/batches", json.dumps(order).encode())
    deadline = time.monotonic() + ENDS_WITHIN_S
    while batch["status"] != "completed":
        assert time.monotonic() < deadline, f"the batch is still {batch['status']} after {ENDS_WITHIN_S} s"
        time.sleep(0.05)  # sleep: between two polls, within a deadline
        batch = request(f"{address}/v1/batches/{batch['id']}")
    paths = {path: batch["id"] for path in request(f"{address}/openapi.json")["paths"] if path.startswith("/v1/batches/{id}")}
    paths |= {
        "/v1/files/{id}": upload(address),
        "/v1/files/{id}/content": batch["output_file_id"],
        "/v1/files/{id}/estimate": file,
        "/v1/models/{id}": "demo",
    }
    return {"model": "demo", "embedder": "embedder", "reranker": "reranker", "file": file, "paths": paths}


def main() -> int:
    mode, *options = sys.argv[1:]
    # It keeps failures where it runs, to begin with them the next time.
    with TandemServer(default_binary(), ARGUMENTS) as server, tempfile.TemporaryDirectory() as directory:
        address = server.base_url.removesuffix("/v1")
        hooks = {"PYTHONPATH": str(HERE), "SCHEMATHESIS_HOOKS": "hooks", "TANDEM_KNOWN": json.dumps(known(address))}
        command = [
            Path(sys.executable).with_name("schemathesis"), "run", f"{address}/openapi.json", "--checks", CHECKS,
            "--no-color", *MODES[mode], *options,
        ]
        return subprocess.run(command, cwd=directory, env=os.environ | hooks).returncode


if __name__ == "__main__":
    sys.exit(main())
