#!/usr/bin/env python3
"""Writes what Hugging Face's transformers makes of conversations with the chat templates of the tests.

For every template, every conversation is rendered by the code behind `tokenizer.apply_chat_template`. Kept is the text, or the words of the
template if it refused the conversation; conversations that a template breaks on are left out, for there is nothing to be compared with.

    pip install -r scripts/fixtures_requirements.txt
    python scripts/make_template_fixtures.py [TEMPLATES_DIRECTORY EXPECTED_FILE]
"""

import json
import sys
from datetime import datetime
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers.utils import chat_template_utils

FIXTURES = Path(__file__).resolve().parent.parent / "tests/chat_templates"
# Those of the tests' vocabulary.
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


class Clock(datetime):
    """What templates that ask for the date are told."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 11, 24, 14, 5, 9)


chat_template_utils.datetime = Clock


def render(template: str, conversation: dict, tools: dict) -> dict | None:
    """The text, or the words of refusal."""
    listed = tools[conversation["tools"]] if "tools" in conversation else None
    add_generation_prompt = conversation.get("add_generation_prompt", True)
    try:
        [text], _ = chat_template_utils.render_jinja_template(
            conversations=[conversation["messages"]],
            tools=listed,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            **SPECIALS,
            **conversation.get("variables", {}),
        )
    except TemplateError as error:
        # What is of a kind below is a mistake of the template.
        return {"refused": error.message} if type(error) is TemplateError else None
    except (TypeError, ValueError, RecursionError):
        return None
    return {"text": text}


def main() -> None:
    templates = Path(sys.argv[1]) if len(sys.argv) > 1 else FIXTURES / "templates"
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else FIXTURES / "expected.json"
    conversations = json.loads((FIXTURES / "conversations.json").read_text())
    tools = json.loads((FIXTURES / "tools.json").read_text())
    expected: dict[str, dict] = {}
    for path in sorted(templates.glob("*.jinja")):
        rendered = {one["name"]: render(path.read_text(), one, tools) for one in conversations}
        expected[path.stem] = {name: found for name, found in rendered.items() if found is not None}
        print(f"{path.stem}: {len(expected[path.stem])} of {len(conversations)}")
    out.write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
