"""The documents for readers (README.md and all below docs/), and their fenced blocks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
}
README = DOCUMENTS["README.md"]
_FENCE = re.compile(
    r"^(?: *<!-- (run by|not run): ([^\n]+) -->\n)?( *)```(\w*)\n(.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


class Fence(NamedTuple):
    """One fenced block: its language and its text, and what the mark in the line before it says.

    `<!-- run by: test_demo.py -->` names the tests that run it in place of those of its page.
    `<!-- not run: why -->` says why no test runs it. The first line of a page names its tests.
    """

    language: str
    text: str
    run_by: str = ""
    not_run: str = ""


def fences(text: str) -> list[Fence]:
    """Return the fenced blocks of a Markdown text in their order."""
    return [
        Fence(
            language,
            re.sub(rf"^{margin}", "", block, flags=re.MULTILINE),
            reason if mark == "run by" else "",
            reason if mark == "not run" else "",
        )
        for mark, reason, margin, language, block in _FENCE.findall(text)
    ]


def marked(page: str, test: str) -> list[str]:
    """Return the blocks of a page whose own mark names a test."""
    return [each.text for each in fences(DOCUMENTS[page]) if test in each.run_by.split(", ")]


def commands(block: str) -> list[list[str]]:
    """Return the words of each line of a block of shell, without its program."""
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines()]


def without_fences(text: str) -> str:
    """Return a Markdown text without its fenced blocks."""
    return _FENCE.sub("", text)
