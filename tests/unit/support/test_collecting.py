"""Each process of a run prepares its share of the test files; children are rarely measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import measuring
from tests.support.collecting import names_of
from tests.support.documents import REPOSITORY
from tests.support.examples import FEWER, SWITCH, number
from tests.system.service import environment


def test_shares_are_of_all_files_that_are_collected(tmp_path: Path) -> None:
    """Of folders, files and single tests, each once; what is elsewhere is left to pytest."""
    (tmp_path / "test_elsewhere.py").write_text("")
    here = Path(__file__).relative_to(REPOSITORY)
    where = ["tests/unit/support", str(here), f"{here}::test_one", str(tmp_path)]
    names = names_of(REPOSITORY, where)
    assert names == sorted(set(names))
    assert __name__ in names
    assert len(names) == len(list((REPOSITORY / here).parent.glob("test_*.py")))
    assert names_of(REPOSITORY, ["no/such/folder"]) == []


def test_child_is_measured_only_if_it_is_named() -> None:
    """The variables of coverage are not inherited; `measured` gives them to a child."""
    assert [name for name in os.environ if name.startswith("COVERAGE_")] == []
    for measured in (True, False):
        found = environment({"A": "b"}, measured=measured)
        given = {name: text for name, text in found.items() if name.startswith("COVERAGE_")}
        assert given == (measuring.variables() if measured else {})
        assert found["A"] == "b"


def test_usual_run_tries_a_part_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The long run tries all of them."""
    monkeypatch.delenv(SWITCH, raising=False)
    assert number(100) == 100 // FEWER
    monkeypatch.setenv(SWITCH, "many")
    assert number(100) == 100
    assert f'{SWITCH}="${{{SWITCH}-many}}"' in (REPOSITORY / "run").read_text()
