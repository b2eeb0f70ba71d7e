"""The examples in docs/CLIENTS.md run as they stand there."""

import re
import subprocess
from pathlib import Path

import pytest
from support import chat_line

from tandem_server import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "CLIENTS.md"
BLOCK = re.compile(r"^```(python|javascript)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "http://localhost:8000/v1"
RUNS_WITHIN_S = 120


def examples(language: str) -> list[tuple[str, str]]:
    """Each with the heading above it."""
    _, *parts = re.split(r"^## (.+)$", DOCUMENT.read_text(), flags=re.MULTILINE)
    sections = zip(parts[::2], parts[1::2], strict=True)
    return [
        (heading, code)
        for heading, text in sections
        for written_in, code in BLOCK.findall(text)
        if written_in == language
    ]


def at(code: str, demo: str, sim: str) -> str:
    """The example with the address of a server that has its model."""
    assert ADDRESS in code
    return code.replace(ADDRESS, sim if "embedder" in code else demo)


def test_every_framework_has_examples():
    headings = [heading for language in ("python", "javascript") for heading, _ in examples(language)]
    assert headings == ["LangChain"] * 2 + ["LiteLLM"] * 2 + ["Instructor"] + ["AI SDK (Vercel)"] * 2


@pytest.mark.parametrize(("heading", "code"), examples("python"))
def test_python(demo, sim, heading, code, tmp_path, monkeypatch, capsys):
    (tmp_path / "requests.jsonl").write_text(chat_line("a", "tiny") + "\n")
    monkeypatch.chdir(tmp_path)
    exec(compile(at(code, demo, sim), f"{DOCUMENT} ({heading})", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("heading", "code"), examples("javascript"))
def test_node(demo, sim, heading, code, tmp_path):
    # Where Node looks for packages.
    (tmp_path / "node_modules").symlink_to(Path(__file__).with_name("node_modules"))
    (tmp_path / "example.mjs").write_text(at(code, demo, sim))
    command = [REPOSITORY / "scripts" / "node", "example.mjs"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=RUNS_WITHIN_S)
    assert run.returncode == 0, f"{heading}: {run.stderr}"
    assert run.stdout.strip()
