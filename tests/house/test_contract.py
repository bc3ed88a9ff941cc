"""docs/reference/contract.md and docs/run/operating.md agree with the code: verdicts, states."""

from __future__ import annotations

import re
from pathlib import Path

import asyncpg
import pytest

from ingest.app.health import UNREADY
from ingest.model.causes import Verdict
from ingest.model.ports import STATES
from ingest.model.reading import REASONS
from ingest.sinks.postgres.schema import KEY
from ingest.sinks.postgres.sqlstate import verdict_for
from tests.support.documents import DOCUMENTS

CONTRACT = DOCUMENTS["docs/reference/contract.md"]
OPERATING = DOCUMENTS["docs/run/operating.md"]
TESTS = Path(__file__).parents[1]
BY_COLUMN = "23502"  # the verdict depends on the column
OPERATORS_OWN = frozenset("IJKLMNOPQRSTUVWXYZ")


def verdicts(contract: str) -> dict[str, Verdict]:
    """Return the table of the contract: verdict by SQLSTATE, or by class (two characters)."""
    table = contract.split("<!-- verdicts -->")[1].split("<!-- end verdicts -->", maxsplit=1)[0]
    found: dict[str, Verdict] = {}
    for name, codes in re.findall(r"^\| \*\*(\w+)\*\* \| (.+?) \|", table, re.MULTILINE):
        for code in re.findall(r"`([0-9A-Zx]{5})`", codes):
            key = code.removesuffix("xxx")
            assert key not in found, f"{code} stands twice"
            found[key] = Verdict(name)
    return found


def expected_verdict(table: dict[str, Verdict], code: str) -> Verdict:
    """Return the verdict of the contract for a code."""
    verdict = table.get(code) or table.get(code[:2])
    if verdict is None and code[0] in OPERATORS_OWN and code[:2] != "P0":
        return Verdict.ISOLATE
    return verdict or Verdict.UNKNOWN


def known_codes() -> set[str]:
    """Return all SQLSTATEs that the driver knows, and some unknown ones."""
    classes = [asyncpg.PostgresError]
    for each in classes:
        classes += each.__subclasses__()
    driver = {str(each.sqlstate) for each in classes if getattr(each, "sqlstate", None)}
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return driver | {f"{a}{b}777" for a in letters for b in letters}


def differing(table: dict[str, Verdict]) -> set[str]:
    """Return the codes for which the service's verdict is not that of the table."""
    codes = known_codes() | {code for code in table if len(code) == 5}
    return {
        code
        for code in codes - {BY_COLUMN}
        if verdict_for(code) is not expected_verdict(table, code)
    }


def test_verdicts_are_those_of_the_contract() -> None:
    """For each SQLSTATE the service does what the table says."""
    assert len(known_codes()) > 1_400
    assert differing(verdicts(CONTRACT)) == set()
    assert verdicts(CONTRACT)[BY_COLUMN] is Verdict.ISOLATE
    assert {verdict_for(BY_COLUMN, column=each) for each in KEY} == {Verdict.ISOLATE}
    assert verdict_for(BY_COLUMN, column="site") is Verdict.HOLD
    assert verdict_for(None) is Verdict.WAIT


@pytest.mark.parametrize("gone", ["`08P01`, ", "`22xxx`, ", "`57014`, ", "`P0004` "])
def test_code_that_is_missing_in_the_table_is_noticed(gone: str) -> None:
    """The comparison finds a missing code and a missing class."""
    assert gone in CONTRACT
    assert differing(verdicts(CONTRACT.replace(gone, " ")))


def test_states_are_those_of_operating() -> None:
    """The page has each state of /readyz, with its status."""
    rows = re.findall(r"^\| `(\w+)` \| (200|503) \|", OPERATING, re.MULTILINE)
    assert {state for state, _ in rows} == set(STATES)
    assert {state for state, status in rows if status == "503"} == set(UNREADY)


def test_reasons_of_dead_letters_are_those_of_operating() -> None:
    """The page explains each reason of dead letters."""
    table = OPERATING.split("\n| reason |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(REASONS)


def test_steps_of_a_kill_name_tests_that_are_there() -> None:
    """The table stays short, and each of its tests exists."""
    table = CONTRACT.split("<!-- kills -->")[1].split("<!-- end kills -->", maxsplit=1)[0]
    named = re.findall(r"^\| .+ \| .+ \| `(test_\w+)` \|$", table, re.MULTILINE)
    rows = len(re.findall(r"^\| (?!\*\*)", table, re.MULTILINE)) - 2
    assert len(named) == rows <= 25
    sources = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    assert [each for each in named if f"def {each}(" not in sources] == []
