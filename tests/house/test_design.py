"""DESIGN.md, the glossary, citations: each decision is short and dated, each citation exists."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from datetime import date
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

import ingest
from ingest.config.settings import Settings

PACKAGE = Path(ingest.__file__).parent
REPOSITORY = PACKAGE.parent
DESIGN = (REPOSITORY / "DESIGN.md").read_text()
GLOSSARY = (
    (REPOSITORY / "docs" / "reference" / "contract.md").read_text().split("\n## Glossary\n")[1]
)
METRICS = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text()
WORDS_MAX = 90
NOUNS_MAX = 30

_DECISION = re.compile(
    r"^\*\*(\d+)\. (.+?)\*\* \*(\d{4}-\d\d-\d\d), (in force|replaced by (\d+))(?:, from (\d+))?\.\*"
    r"\n(.+?)(?=\n\n|\n?\Z)",
    re.MULTILINE | re.DOTALL,
)
# Documents of the authors that are in no repository.
_OUT_OF_REACH = re.compile(r"\.\./(?:research|design)\b|\breliab" r"ility [0-9]|CONT" r"RACT\.md")
_CITATION = re.compile(r"\bDESIGN(?:\.md)?,? ([0-9]+)\b|\b[Dd]ecision ([0-9]+)\b")


class Decision(NamedTuple):
    """One decision of DESIGN.md; `replaced_by` and `split_from` are numbers of others."""

    title: str
    day: str
    replaced_by: int | None
    split_from: int | None
    text: str


def decisions(design: str) -> dict[int, Decision]:
    """Return the decisions by number. A number twice, or a decision without a date, is an error."""
    found = {}
    for number, title, day, _, replaced_by, split_from, text in _DECISION.findall(design):
        assert int(number) not in found, f"{number} stands twice"
        found[int(number)] = Decision(
            title, day, int(replaced_by or 0) or None, int(split_from or 0) or None, text
        )
    begun = {int(each) for each in re.findall(r"^\*\*(\d+)\. ", design, re.MULTILINE)}
    assert begun == set(found), f"not written as the others: {begun ^ set(found)}"
    return found


def never_used(design: str) -> set[int]:
    """Return the numbers that the design says no decision ever had."""
    (line,) = re.findall(r"^(\d[0-9, to\n]+): never used\.", design, re.MULTILINE)
    numbers = set()
    for each in re.split(r",\s", line):
        first, _, last = each.partition(" to ")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def faults_of(design: str) -> Iterator[str]:
    """Yield the faults of the decisions."""
    found = decisions(design)
    unused = never_used(design)
    if unused | set(found) != set(range(1, max(found) + 1)) or unused & set(found):
        yield "a number is missing, or said not to be used"
    for number, each in found.items():
        words = len(each.text.split())
        if words > WORDS_MAX:
            yield f"{number} has {words} words"
        date.fromisoformat(each.day)
        if {each.replaced_by, each.split_from} - {None, *found} or each.replaced_by == number:
            yield f"{number} names a decision that is not there"
        if re.search(r"\bcontract\b", each.text) and "docs/reference/contract.md" not in each.text:
            yield f"{number} speaks of the contract and does not lead there"


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


def test_decisions_are_numbered_dated_and_short() -> None:
    """Each number is a decision or was never used; each decision has a date, a status, one idea."""
    assert len(decisions(DESIGN)) > 100
    assert list(faults_of(DESIGN)) == []


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("**6. ", "**62. "),
        ("**133. ", "**999. "),
        ("in force.*\nFull jitter", "in force.*\n" + "so " * WORDS_MAX + "Full jitter"),
        ("in force.*\nFull jitter", "replaced by 36.*\nFull jitter"),
        ("Full jitter alone", "As in the contract, full jitter alone"),
    ],
)
def test_fault_of_a_decision_is_found(was: str, becomes: str) -> None:
    """Each of the checks can fail."""
    forged = DESIGN.replace(was, becomes)
    assert forged != DESIGN
    assert list(faults_of(forged))


@pytest.mark.parametrize(
    ("was", "becomes"),
    [("**6. ", "**7. "), ("*2026-11-25, in force.*\nFull jitter", "*in force.*\nFull jitter")],
)
def test_decision_that_is_twice_or_without_a_date_is_found(was: str, becomes: str) -> None:
    """A decision that is there twice, or has no date, is an error."""
    with pytest.raises(AssertionError, match=r"twice|not written as the others"):
        decisions(DESIGN.replace(was, becomes))


def test_cited_decisions_are_in_force() -> None:
    """Code cites only decisions that are in force."""
    found = decisions(DESIGN)
    cited = {
        (path, int(first or second))
        for path, text in texts()
        for first, second in _CITATION.findall(text)
        if Path(path).name != Path(__file__).name
    }
    assert any(path.endswith(".py") for path, _ in cited)
    assert [each for each in cited if each[1] not in found or found[each[1]].replaced_by] == []


def test_nothing_cites_what_a_reader_cannot_open() -> None:
    """Each cited page is in the repository."""
    assert [
        f"{path}: {found}" for path, text in texts() for found in _OUT_OF_REACH.findall(text)
    ] == []
    assert _OUT_OF_REACH.search("see .." + "/research/x.md")
    assert _OUT_OF_REACH.search("then reliab" + "ility 3.2")


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
                assert place in settings or f"| `{place}` |" in METRICS, place


@pytest.mark.parametrize("name", ["DESIGN.md", "docs/reference/contract.md"])
def test_settings_that_a_document_names_are_there(name: str) -> None:
    """Each setting in a document exists under this name."""
    named = set(
        re.findall(
            r"`(?!ingest_)([a-z_]+_(?:max|min|s|rows|bytes|days))`",
            (REPOSITORY / name).read_text(),
        )
    )
    assert len(named) > 5
    assert sorted(named - {each.name for each in fields(Settings)}) == []
