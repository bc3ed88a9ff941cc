"""The audit in docs/waits.md: it names every await of the path, its outcomes, and real tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ingest

PACKAGE = Path(ingest.__file__).parent
REPOSITORY = PACKAGE.parent
PAGE = REPOSITORY / "docs" / "waits.md"
# The path from the body to the acknowledgement, and the parts that have readings meanwhile.
MODULES = (
    "http/connections",
    "http/routes",
    "http/bodies",
    "http/plain_body",
    "http/loop_share",
    "http/inflate",
    "receiver/endpoint",
    "receiver/keeper",
    "receiver/lines",
    "receiver/line_keeper",
    "receiver/line_stubs",
    "receiver/sources",
    "receiver/in_time",
    "receiver/one_by_one",
    "receiver/ack_waits",
    "model/ack",
    "buffers/memory",
    "buffers/waiting",
    "buffers/journal/buffer",
    "buffers/journal/entries",
    "buffers/journal/loader",
    "buffers/journal/log",
    "buffers/stream/inlet",
    "buffers/stream/group",
    "buffers/stream/group_queue",
    "buffers/stream/commits",
    "buffers/stream/outlet",
    "dead_letters/queue",
    "dead_letters/auto_replay",
    "dead_letters/sending",
    "dead_letters/stream/queue",
    "dead_letters/stream/auto_replay",
    "dead_letters/manual_replay",
    "admin/dashboard/tail",
    "writer/writer",
    "writer/batch",
    "writer/at_fault",
    "writer/database_state",
    "writer/set_aside",
    "sinks/postgres/sink",
    "sinks/postgres/checked_connection",
    "sinks/postgres/known_server",
    "sinks/postgres/connection",
    "sinks/postgres/statements",
    "sinks/postgres/housekeeping/late",
    "app/buffer",
    "forward/forwarder",
    "forward/sender",
    "mqtt/bridge",
    "http_client/client",
)
# Awaits of these come before the first reading, or concern no reading.
ELSEWHERE = {
    "http/connections.listen",
    "http/connections._sweep",
    "http/routes.start",
    "receiver/endpoint.start",
    "dead_letters/queue.open",
    "dead_letters/queue.mark_done",
    "dead_letters/queue.tidy",
    "dead_letters/queue.refresh",
    "http_client/client.close",
}
CASES = ("In", "Cancelled", "Times out", "Process dies", "Shown by")
LINE_CHARACTERS_MAX = 120


class Place(NamedTuple):
    """One place where the path waits: its heading, and its text for each of CASES."""

    heading: str
    said: dict[str, list[str]]


def places(page: str) -> list[Place]:
    """Return the places that the page lists; a bullet of an unknown kind is an error."""
    found = []
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        said: dict[str, list[str]] = {}
        for bullet in re.split(r"^- ", re.split(r"^## ", body, flags=re.M)[0], flags=re.M)[1:]:
            case, _, text = " ".join(bullet.split()).partition(": ")
            assert case in CASES, f"{heading}: {case}"
            said.setdefault(case, []).append(text)
        found.append(Place(heading, said))
    return found


def named_in(page: str) -> list[str]:
    """Return the functions that the page names, as often as it does."""
    return [
        name
        for place in places(page)
        for text in place.said["In"]
        for name in re.findall(r"`([\w/]+\.\w+)`", text)
    ]


def awaiting(package: Path, module: str) -> Iterator[str]:
    """Yield `folder/module.function` for each function that awaits something itself."""
    tree = ast.parse((package / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef) and any(
            isinstance(inner, ast.Await | ast.AsyncWith | ast.AsyncFor) for inner in ast.walk(node)
        ):
            yield f"{module}.{node.name}"


def test_every_await_of_the_path_is_in_the_audit() -> None:
    """The page has each function of the path that awaits, and no other."""
    named = named_in(PAGE.read_text())
    there = {name for module in MODULES for name in awaiting(PACKAGE, module)}
    assert there - ELSEWHERE - set(named) == set()
    assert set(named) - there == set()
    assert sorted(named) == sorted(set(named)), "a function has one place"


def test_audit_says_what_happens_in_each_case_and_which_test_shows_it() -> None:
    """The page has a text for each case, and tests of these names exist."""
    tests = {
        match
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for match in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    found = places(PAGE.read_text())
    assert len(found) > 20
    for place in found:
        assert tuple(place.said) == CASES, place.heading
        assert all(text for texts in place.said.values() for text in texts), place.heading
        assert "`" in place.said["In"][0], place.heading
        shown = re.findall(r"`(test_\w+)`", " ".join(place.said["Shown by"]))
        assert shown, place.heading
        assert set(shown) <= tests, set(shown) - tests


def test_audit_can_be_read() -> None:
    """No line of the page is too long."""
    long = [line for line in PAGE.read_text().splitlines() if len(line) > LINE_CHARACTERS_MAX]
    assert not long


@pytest.mark.parametrize("source", ["async def f():\n    await g()", "async def f():\n    pass"])
def test_awaits_are_found(source: str, tmp_path: Path) -> None:
    """The check finds awaits in a sample, so it can fail."""
    (tmp_path / "m.py").write_text(source)
    assert list(awaiting(tmp_path, "m")) == (["m.f"] if "await" in source else [])


def test_places_are_found() -> None:
    """Places are told apart; a bullet ends where the next one or the next chapter begins."""
    page = "# P\n\n### A\n\n- In: `a/b.c`,\n  `a/b.d`\n- Cancelled: x\n\n## Q\n\n- no\n\n### B\n"
    assert [each.heading for each in places(page)] == ["A", "B"]
    assert places(page)[0].said == {"In": ["`a/b.c`, `a/b.d`"], "Cancelled": ["x"]}
    assert named_in(page.split("## Q", maxsplit=1)[0]) == ["a/b.c", "a/b.d"]
    with pytest.raises(AssertionError, match="Cancled"):
        places("### A\n\n- Cancled: x\n")
