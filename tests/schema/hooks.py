"""Brings requests that schemathesis makes up to where something happens: to the model and to the things that this server has.

Half of what is made up stays as it is, so that names which nobody has are tried as well.
"""

import json
import os

import schemathesis

KNOWN = json.loads(os.environ["TANDEM_KNOWN"])
# Only one of them may ask for something.
STRUCTURED = (
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
)
# Answers are long enough to stream, and short enough to be many.
MAX_TOKENS = 8


def half(text) -> bool:
    """The same each time for the same text, so that a failure can be repeated."""
    return sum(str(text).encode(errors="replace")) % 2 == 0


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    known = KNOWN["paths"].get(context.operation.path)
    if known and path_parameters and half(path_parameters.get("id")):
        return path_parameters | {"id": known}
    return path_parameters


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    path = context.operation.path
    if isinstance(body.get("model"), str) and not half(f"{body['model']}{len(body)}"):
        kind = "embedder" if path == "/v1/embeddings" else "reranker" if path.endswith("/rerank") else "model"
        body["model"] = KNOWN[kind]
    if isinstance(body.get("input_file_id"), str):
        body["input_file_id"] = KNOWN["file"]
    for name in ("max_tokens", "max_completion_tokens"):
        if isinstance(body.get(name), int) and body[name] > MAX_TOKENS:
            body[name] = MAX_TOKENS
    given = [name for name in STRUCTURED if body.get(name) is not None]
    for name in given if half(len(str(body))) else given[1:]:
        del body[name]
    return body
