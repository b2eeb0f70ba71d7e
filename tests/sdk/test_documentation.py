"""The examples in docs/API.md: each operation of the server has one in each language, and each of them runs."""

import json
import os
import re
import shutil
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

from support import chat_line, submit, upload, wait
from tandem_server import REPOSITORY, TandemServer, default_binary

DOCUMENT = REPOSITORY / "docs" / "API.md"
LANGUAGES = ("python", "javascript", "bash")
ARGUMENTS = ["--profile", "sim", "--config", str(Path(__file__).with_name("documented.toml"))]
HEADING = re.compile(r"^##+ (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPERATION = re.compile(r"`(GET|POST|DELETE|PUT|PATCH) (/\S*)`")
# What stands in the examples for something that the reader has.
FILE, BATCH, ADDRESS = "file-abc123", "batch_abc123", "http://localhost:8000"
RUNS_WITHIN_S = 120


@dataclass(frozen=True)
class Example:
    operation: str
    language: str
    code: str


def sections() -> dict[str, list[tuple[str, str]]]:
    """The blocks of code under each heading."""
    _, *parts = HEADING.split(DOCUMENT.read_text())
    return {heading: BLOCK.findall(text) for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def examples() -> list[Example]:
    """One for each block under the heading of an operation, with what all examples of its language begin with."""
    found = sections()
    beginning = dict(found["Clients"])
    return [
        Example(f"{match[1]} {match[2]}", language, f"{beginning[language]}\n{code}")
        for heading, blocks in found.items()
        if (match := OPERATION.fullmatch(heading))
        for language, code in blocks
    ]


@dataclass
class World:
    """A server with what the examples take for granted, and a directory to run them in."""

    address: str
    client: OpenAI
    directory: Path

    def prepare(self, example: Example) -> str:
        """The code of the example, about things of its own on this server."""
        code = example.code.replace(ADDRESS, self.address)
        if FILE in code:
            lines = (self.directory / "requests.jsonl").read_text().splitlines()
            code = code.replace(FILE, upload(self.client, lines).id)
        if BATCH in code:
            code = code.replace(BATCH, self.batch(example.operation.rsplit("/", 1)[1]))
        return code

    def batch(self, what_for: str) -> str:
        ended = what_for not in ("cancel", "pause", "resume")
        lines = 1 if ended else 500  # more than can be done before the example is run
        # Out of range, so that there is something to retry.
        wrong = {"temperature": 3} if what_for == "retry" else {}
        fields = {"max_tokens": 8 if ended else 2000, "ignore_eos": True} | wrong
        batch = submit(self.client, [chat_line(f"{n}", "demo", **fields) for n in range(lines)])
        return (wait(self.client, batch) if ended else batch).id


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("examples")
    [requests] = [code for language, code in sections()["Batches"] if language == "json"]
    (directory / "requests.jsonl").write_text(requests)
    # Where Node looks for the SDK.
    (directory / "node_modules").symlink_to(Path(__file__).with_name("node_modules"))
    with TandemServer(default_binary(), ARGUMENTS) as server:
        with OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=RUNS_WITHIN_S) as client:
            yield World(server.base_url.removesuffix("/v1"), client, directory)


def test_every_operation_has_an_example_in_each_language(world):
    with urllib.request.urlopen(f"{world.address}/openapi.json") as response:
        paths = json.load(response)["paths"]
    operations = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    wanted = {(operation, language) for operation in operations for language in LANGUAGES}
    assert {(example.operation, example.language) for example in examples()} == wanted


@pytest.mark.parametrize(
    "example", [one for one in examples() if one.language == "python"], ids=lambda example: example.operation
)
def test_python(world, example, monkeypatch, capsys):
    monkeypatch.chdir(world.directory)
    exec(compile(world.prepare(example), str(DOCUMENT), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "example", [one for one in examples() if one.language == "bash"], ids=lambda example: example.operation
)
def test_curl(world, example):
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", world.prepare(example)],
        cwd=world.directory, capture_output=True, text=True, timeout=RUNS_WITHIN_S,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    assert run.stdout.strip()


def test_node(world):
    """All in one process, which takes most of a second to start."""
    wanted = [one for one in examples() if one.language == "javascript"]
    names = []
    for number, example in enumerate(wanted):
        names.append(f"./{number}.mjs")
        (world.directory / names[-1]).write_text(f"{world.prepare(example)}\n")
    runner = f"""
        for (const [name, operation] of {json.dumps(list(zip(names, (one.operation for one in wanted))))}) {{
          try {{ await import(name) }} catch (error) {{ console.error(operation); throw error }}
        }}
        console.log("all ran");
    """
    (world.directory / "all.mjs").write_text(runner)
    run = subprocess.run(
        [str(REPOSITORY / "scripts" / "node"), "all.mjs"],
        cwd=world.directory, capture_output=True, text=True, timeout=RUNS_WITHIN_S, env=os.environ,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.rstrip().endswith("all ran")


def test_the_page_shows_every_operation(world):
    """In a real browser, where there is one."""
    browser = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("there is no Chromium")
    run = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom", f"{world.address}/docs"],
        cwd=world.directory, capture_output=True, text=True, timeout=RUNS_WITHIN_S,
    )
    assert run.returncode == 0, run.stderr
    with urllib.request.urlopen(f"{world.address}/openapi.json") as response:
        document = json.load(response)
    shown = set(re.findall(r'<section id="(\w+)"', run.stdout))
    assert shown == {operation["operationId"] for methods in document["paths"].values() for operation in methods.values()} | {"schemas"}
    for name in document["components"]["schemas"]["ChatRequest"]["properties"]:
        assert f'<span class="name">{name}</span>' in run.stdout
