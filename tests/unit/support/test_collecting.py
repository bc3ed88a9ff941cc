"""Each process of a run prepares its share of the test files; children are rarely measured."""

from __future__ import annotations

from pathlib import Path

from tests.support.collecting import names_of
from tests.support.documents import REPOSITORY


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
