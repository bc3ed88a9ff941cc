"""docs/reference/contract.md and docs/run/operating.md agree with the code: verdicts, states."""

from __future__ import annotations

import re
from itertools import chain
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
SHOWN_BY = {  # each test kills at these steps, cuts them off, or repeats them
    "test_whole_path_keeps_its_promises_after_any_steps": (
        "a body arrives, is decoded, or waits for space",
        "a `buffered` post was answered",
        "a `committed` post waits",
    ),
    "test_kill_9_while_two_processes_append_loses_nothing": (
        "invalid items are written to the dead letters",
    ),
    "test_torn_tail_is_cut_off_and_is_no_damage": ("a block is written to the journal",),
    "test_nth_call_fails_and_each_answer_is_true": (
        "a block is on the disk, its post not answered",
    ),
    "test_post_of_which_a_part_is_kept_has_no_known_outcome": (
        "some blocks of lines or of a source are on the disk",
    ),
    "test_killed_service_recovers_exactly_what_it_had_acknowledged": (
        "a `durable` post was answered",
    ),
    "test_every_call_to_the_table_fails": (
        "a batch is written",
        "refused rows are dead letters, the others not committed",
    ),
    "test_killed_process_is_recovered_but_for_what_was_settled": (
        "a batch is stored, and the journal does not know it",
    ),
    "test_partition_that_is_cut_off_half_made_leaves_nothing": ("a partition is made",),
    "test_story_of_many_processes_loses_and_doubles_nothing": ("a journal is read back",),
    "test_every_call_to_the_dead_letters_fails_while_they_come_back": ("a replay runs",),
    "test_killed_processes_lose_nothing_that_was_acknowledged": ("a gateway publishes posts",),
    "test_killed_broker_costs_no_letter_and_lists_none_twice": ("dead letters are appended",),
    "test_nothing_is_lost_or_doubled_after_any_steps": ("a writer process has messages",),
    "test_replay_killed_between_commit_and_delete_doubles_nothing": (
        "a writer process replays dead letters",
    ),
    "test_killed_broker_loses_nothing": ("a broker takes or gives messages",),
    "test_killed_supervisor_loses_nothing_that_was_acknowledged": (
        "the supervisor of `ingest up` runs",
    ),
}


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


def test_steps_of_a_kill_have_tests_that_are_there() -> None:
    """The table stays short, and each of its rows has a test."""
    table = CONTRACT.split("<!-- kills -->")[1].split("<!-- end kills -->", maxsplit=1)[0]
    rows = re.findall(r"^\| (?!\*\*|---)(.+?) \|", table, re.MULTILINE)[1:]
    assert sorted(rows) == sorted(chain(*SHOWN_BY.values()))
    assert len(rows) <= 25
    sources = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    assert [each for each in SHOWN_BY if f"def {each}(" not in sources] == []
