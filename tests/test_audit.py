"""The audit of DESIGN.md, `Who may wait`: it names every await of the path, and real tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
# From the body to the acknowledgement, and what holds readings meanwhile.
MODULES = (
    *(
        "connections",
        "site",
        "body",
        "intake",
        "turns",
        "inflate",
        "endpoint",
        "waiting",
        "buffer_memory",
        "buffer_journal",
    ),
    *("journal_entries", "buffer_journal_loader", "journal", "dead_letter", "writer"),
    *("batch", "gate", "set_aside", "app_buffer", "ports", "outcomes"),
    *("sink_postgres", "sink_connection"),
)
# Awaits of these come before the first reading, or are of no reading's way.
ELSEWHERE = {
    "connections.listen",
    "connections._sweep",
    "site.start",
    "endpoint.start",
    "dead_letter.open",
    "dead_letter.mark_done",
    "dead_letter.tidy",
    "dead_letter.refresh",
}


def rows() -> list[list[str]]:
    """Return the cells of the audit's rows."""
    text = (REPOSITORY / "DESIGN.md").read_text()
    section = text[text.index("## Who may wait") : text.index("## Decisions")]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def awaiting(module: str) -> Iterator[str]:
    """Yield `module.function` for each function that awaits something itself."""
    tree = ast.parse((REPOSITORY / "ingest" / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef) and any(
            isinstance(inner, ast.Await | ast.AsyncWith | ast.AsyncFor) for inner in ast.walk(node)
        ):
            yield f"{module}.{node.name}"


def test_every_await_of_the_path_is_in_the_audit() -> None:
    """A function that begins to wait, or is gone, changes the table with it."""
    named = {name for row in rows() for name in re.findall(r"`(\w+\.\w+)`", row[0])}
    there = {name for module in MODULES for name in awaiting(module)}
    assert there - ELSEWHERE - named == set()
    assert named - there == set()


def test_audit_says_what_happens_in_each_case_and_which_test_shows_it() -> None:
    """All cells are filled, and the tests are there by these names."""
    tests = {
        match
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for match in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert len(rows()) > 15
    for row in rows():
        assert len(row) == 5, row
        assert all(row), row
        shown = re.findall(r"`(test_\w+)`", row[4])
        assert shown, row
        assert set(shown) <= tests, set(shown) - tests


@pytest.mark.parametrize("source", ["async def f():\n    await g()", "async def f():\n    pass"])
def test_awaits_are_found(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that finds nothing would be green."""
    (tmp_path / "ingest").mkdir()
    (tmp_path / "ingest" / "m.py").write_text(source)
    monkeypatch.setattr("tests.test_audit.REPOSITORY", tmp_path)
    assert list(awaiting("m")) == (["m.f"] if "await" in source else [])
