"""Sweeps of faults over the writers: call n fails, for every n and verdict, once or for ever.

The balance check is 0, each post gets one true answer, and no row is stored twice.
"""

from __future__ import annotations

import pytest

from ingest.model.causes import Verdict
from ingest.model.reading import EXHAUSTED, REFUSED, Reading
from tests.support.fake_sink_scripted import AFTER, BEFORE, HANG, MIDDLE, Script
from tests.support.writing import Writing, refuse_bad

CALLS_MAX = 60  # more than any clean run needs
ROWS, BAD_ROWS = 261, 4
VERDICTS = (Verdict.WAIT, Verdict.RETRY, Verdict.ISOLATE, Verdict.HOLD, Verdict.UNKNOWN)
# How a call may fail: refused, cut before anything was stored, at the commit, after the commit.
PLACES = [(BEFORE, False), (BEFORE, True), (MIDDLE, True), (AFTER, True)]
FAULT = ("verdict", "where", "doubtful")
FAULTS = [(each, *place) for each in VERDICTS for place in PLACES]
every_fault = pytest.mark.parametrize(FAULT, FAULTS)
main_faults = pytest.mark.parametrize(
    FAULT,
    [
        pytest.param(*each, marks=pytest.mark.slow) if each[1:] == PLACES[2] else each
        for each in FAULTS
        if each[1:] != PLACES[1]
    ],
)


async def posted(script: Script) -> Writing:
    """Post blocks of mixed sizes, one of them of several posts; start two writers.

    Four of the rows are bad.
    """
    path = Writing(script, batch_rows_max=60)
    for rows in (1, 30, 2, 2, 60, 9, 40, 1, 1, 1, 1, 50, 6, 50):
        await path.post(rows, bad={30: (4,), 9: (0, 8)}.get(rows, ()))
        if rows == 9:
            for number in range(4):
                path.post_small(1 + number % 3, bad=(1,) if number == 1 else ())
    path.start()
    return path


async def all_answered(path: Writing) -> None:
    """Let the writers finish, and check where each row is."""
    await path.until(path.resolved)
    await path.drain()
    assert path.left() == []


async def has_lasted(path: Writing) -> None:
    """Wait until a lasting fault has occurred many times, or all posts are answered."""
    await path.until(lambda: path.script.fired > 14 or path.resolved())


@every_fault
async def test_no_reading_is_lost_or_doubled_when_any_call_fails_once(
    verdict: Verdict, where: str, doubtful: bool
) -> None:
    """After one fault all rows are stored, except those that the table refuses."""
    for call in range(1, CALLS_MAX):
        path = await posted(Script(call, verdict, where, doubtful))
        await all_answered(path)
        assert len(path.table) == ROWS - BAD_ROWS
        assert path.letters.rows(REFUSED) == BAD_ROWS == len(path.letters.letters)
        assert path.database_state.is_open
        if not path.script.fired:
            return
    pytest.fail("the sweep did not come to a clean run")


@main_faults
async def test_no_reading_is_lost_or_doubled_when_every_call_from_one_on_fails(
    verdict: Verdict, where: str, doubtful: bool
) -> None:
    """With WAIT and HOLD all rows are kept. Only RETRY makes dead letters."""
    for call in range(1, CALLS_MAX):
        path = await posted(Script(call, verdict, where, doubtful, forever=True))
        await has_lasted(path)
        await path.check()
        struck = path.script.fired
        if verdict is Verdict.WAIT and struck:
            assert path.database_state.state == "wait"
        elif verdict is not Verdict.RETRY and struck:
            assert path.database_state.state == "hold"
        path.script.heal()
        await all_answered(path)
        if verdict is not Verdict.RETRY:
            assert path.letters.rows(EXHAUSTED) == 0
            assert len(path.table) == ROWS - BAD_ROWS
        if not struck:
            return
    pytest.fail("the sweep did not come to a clean run")


@main_faults
async def test_halted_at_any_call_leaves_all_in_the_buffer_or_answered(
    verdict: Verdict, where: str, doubtful: bool
) -> None:
    """`drain_s_max` may end at any moment, right after a fault too."""
    for call in range(1, CALLS_MAX):
        script = Script(call - 1, verdict, where, doubtful)
        path = await posted(script)
        script.hooks[call] = path.halted.set
        await path.until(path.over)
        halted = path.halted.is_set()
        await path.halt()
        path.left()
        if not halted:
            return
    pytest.fail("the sweep did not come to a clean run")


@pytest.mark.parametrize("lines_hanging", [1, 2])
async def test_connection_cut_in_any_hanging_call_leaves_all_in_the_buffer_or_answered(
    lines_hanging: int,
) -> None:
    """A server that never answers delays a drain only until the connection is cut."""
    for call in range(1, CALLS_MAX):
        script = Script(call, where=HANG, forever=lines_hanging == 2)
        path = await posted(script)
        await path.settled()
        struck = script.fired
        assert struck <= lines_hanging
        await path.halt()
        path.left()
        if not struck:
            return
    pytest.fail("the sweep did not come to a clean run")


def refuse_by_policy(reading: Reading) -> tuple[str, str] | None:
    """Refuse the bad value: of one device as a row's policy would, else as a CHECK would."""
    refused = refuse_bad(reading)
    return ("42501", "policy") if refused and reading.device_id == "foreign" else refused


async def test_rows_that_a_policy_refuses_never_pause_writes_of_a_batch_with_other_bad_rows() -> (
    None
):
    """Once rows are known to be at fault, each piece of the batch is isolated for class 42 too."""
    path = Writing(batch_rows_max=1_000, breaker_rows_max=1_000)
    for device in (None, "foreign", "foreign", "foreign"):
        await path.post(20, bad=(0,), device_id=device)
    path.start(1, refuse=refuse_by_policy)
    await all_answered(path)
    assert path.ledger.retries["hold"] == 0
    assert len(path.table) == 4 * 19
    assert path.letters.rows(REFUSED) == 4
