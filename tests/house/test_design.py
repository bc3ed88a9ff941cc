"""DESIGN.md, decisions, glossary: decisions are few, short and dated; what is cited exists."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import date
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

import ingest
from ingest.config.settings import Settings
from tests.support.documents import DOCUMENTS

PACKAGE = Path(ingest.__file__).parent
REPOSITORY = PACKAGE.parent
DESIGN = (REPOSITORY / "DESIGN.md").read_text()
DECISIONS = {name: text for name, text in DOCUMENTS.items() if name.startswith("docs/decisions/")}
GLOSSARY = DOCUMENTS["docs/reference/contract.md"].split("\n## Glossary\n")[1]
METRICS = DOCUMENTS["docs/reference/metrics.md"]
LINES_MAX = 300  # of DESIGN.md
DECISIONS_MAX = 120
WORDS_MAX = 60
NOUNS_MAX = 30

_DECISION = re.compile(
    r"^### (\d+)\. [^\n]+\n\n\*(\d{4}-\d\d-\d\d)\.\* (.+?)(?=\n\n|\n?\Z)", re.MULTILINE | re.DOTALL
)
_CITATION = re.compile(r"\bDESIGN(?:\.md)?,? ([0-9]+)\b|\b[Dd]ecisions? ([0-9]+)\b")
_LINK = re.compile(r"\[([0-9]+)\]\((?:docs/decisions/)?(\w+\.md)\)")  # in DESIGN.md and the like


def faults_of(texts: Mapping[str, str]) -> Iterator[str]:
    """Yield the faults of the files of decisions."""
    numbers: list[str] = []
    for name, text in texts.items():
        found = _DECISION.findall(text)
        if len(found) != len(re.findall("^###", text, re.MULTILINE)):
            yield f"{name}: one is not written as the others, or has no date"
        for number, day, reason in found:
            date.fromisoformat(day)
            words = len(reason.split())
            if words > WORDS_MAX:
                yield f"{name}: {number} has {words} words"
            if number in numbers:
                yield f"{number} stands twice"
            numbers.append(number)
    if len(numbers) > DECISIONS_MAX:
        yield f"{len(numbers)} decisions, at most {DECISIONS_MAX}: merge two, or take one out"


@cache
def texts() -> list[tuple[str, str]]:
    """Return path and text of code, tests and documents."""
    found = []
    for folder, folders, names in os.walk(REPOSITORY):  # not into packages that are installed here
        hidden = {each for each in folders if each.startswith(".")}
        folders[:] = sorted({*folders} - hidden - {"node_modules", "__pycache__"})
        paths = [Path(folder) / each for each in sorted(names) if not each.startswith(".")]
        found += [
            (str(path.relative_to(REPOSITORY)), path.read_text())
            for path in paths
            if path.suffix in {".py", ".md", ".yml", ".yaml", ".toml", ".js"}
        ]
    return found


def test_decisions_are_few_dated_and_short() -> None:
    """Each has a number of its own, a date, and at most 60 words."""
    assert list(faults_of(DECISIONS)) == []
    assert len(DESIGN.splitlines()) <= LINES_MAX


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("### 3. ", "### 7. "),
        ("*2026-11-25.* asyncpg", "asyncpg"),
        ("*2026-11-25.* asyncpg", "*2026-11-25.* " + "so " * WORDS_MAX + "asyncpg"),
    ],
)
def test_fault_of_a_decision_is_found(was: str, becomes: str) -> None:
    """A number that is there twice, no date, too many words."""
    writer = "docs/decisions/writer.md"
    forged = DECISIONS[writer].replace(was, becomes)
    assert forged != DECISIONS[writer]
    assert list(faults_of({**DECISIONS, writer: forged}))


def test_cited_decisions_are_there() -> None:
    """A text, a comment or a decision names numbers of decisions; a link leads to the file."""
    homes = {
        number: Path(name).name
        for name, text in DECISIONS.items()
        for number, _, _ in _DECISION.findall(text)
    }
    cited = [
        (path, first or second)
        for path, text in texts()
        for first, second in _CITATION.findall(text)
        if Path(path).name != Path(__file__).name
    ]
    assert any(path.endswith(".py") for path, _ in cited)
    assert [each for each in cited if each[1] not in homes] == []
    linked = [each for _, text in texts() for each in _LINK.findall(text)]
    assert len(linked) > len(DECISIONS)
    assert [each for each in linked if homes.get(each[0]) != each[1]] == []
    in_words = [
        number for text in DECISIONS.values() for number in re.findall(r"\s\(([0-9]+)\)", text)
    ]
    assert [each for each in in_words if each not in homes] == []


def test_every_dependency_earns_its_place() -> None:
    """DESIGN.md has one line for each package that is installed with the service."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras.pop("all") == [f"iot-ingest[{','.join(extras)}]"]
    needed = [*project["dependencies"], *chain(*extras.values())]
    section = DESIGN.split("## Dependencies\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| ([a-z-]+) \| .{10,} \|$", section, re.MULTILINE)
    assert sorted(set(named) - {"package"}) == sorted(
        re.split(r"[^a-z-]", each, maxsplit=1)[0] for each in needed
    )


def glossary() -> list[tuple[str, str, str]]:
    """Return word, meaning and place of each row."""
    rows = re.findall(r"^\| ([a-z -]+) \| (.+?) \| (.+?) \|$", GLOSSARY, re.MULTILINE)
    return [row for row in rows if row[0] not in {"word", "---"}]


def test_glossary_is_short_and_says_one_meaning_each() -> None:
    """At most 30 nouns, each once, in one or two sentences."""
    words = [word for word, _, _ in glossary()]
    assert 20 < len(words) <= NOUNS_MAX
    assert len(set(words)) == len(words)
    assert [word for word, text, _ in glossary() if not 1 <= text.count(". ") + 1 <= 2] == []


def test_glossary_leads_to_what_is_there() -> None:
    """Each file, setting and metric that it names exists."""
    settings = {each.name for each in fields(Settings)}
    for word, _, where in glossary():
        places = re.findall(r"`([^`]+)`", where)
        assert places, word
        for place in places:
            if "/" in place:
                assert (PACKAGE / place).exists(), place
            else:
                assert place in settings or re.search(rf"\| `{place}\b", METRICS), place


def test_settings_that_contract_and_decisions_name_are_there() -> None:
    """Each setting exists under this name."""
    pattern = r"`(?!ingest_)([a-z_]+_(?:max|min|s|rows|bytes|days))`"
    texts_of = (DOCUMENTS["docs/reference/contract.md"], *DECISIONS.values())
    named = set(re.findall(pattern, "\n".join(texts_of)))
    assert len(named) > 5
    assert sorted(named - {each.name for each in fields(Settings)}) == []
