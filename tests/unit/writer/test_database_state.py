"""The database state: open, away or paused. Who probes, how often, and what is logged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from ingest.model.causes import Verdict, WriteFailed
from ingest.system.clock import monotonic_s
from ingest.writer.database_state import DatabaseState

AWAY = WriteFailed(Verdict.WAIT, "connection refused")
HELD = WriteFailed(Verdict.HOLD, "no such table", sqlstate="42P01", reason="schema")
FULL = WriteFailed(Verdict.HOLD, "no room", reason="dead_letters_full")


@pytest.fixture
def state() -> DatabaseState:
    """Give a database state with the service's own times."""
    return DatabaseState(wait_s_min=0.1, wait_s_max=10.0, hold_probe_s=5.0)


def test_every_way_from_one_state_to_another(state: DatabaseState) -> None:
    """Every way from one state to another; a reason only while on hold."""
    assert (state.is_open, state.up, state.hold_reason) == (
        True,
        True,
        None,
    )
    state.failed(AWAY)
    assert (state.is_open, state.up, state.hold_reason) == (
        False,
        False,
        None,
    )
    state.failed(HELD)
    assert (state.is_open, state.up, state.hold_reason) == (
        False,
        True,
        "schema",
    )
    state.failed(FULL)
    assert (state.is_open, state.hold_reason, state.message) == (
        False,
        "dead_letters_full",
        "no room",
    )
    state.failed(AWAY)
    assert (state.up, state.hold_reason, state.message) == (
        False,
        None,
        "connection refused",
    )
    state.opened()
    assert (
        state.is_open,
        state.up,
        state.reason,
        state.message,
    ) == (True, True, "", "")


def test_cause_of_an_outage_does_not_change_with_each_try(state: DatabaseState) -> None:
    """A server that stops says so, then is gone, then starts: one outage, with one start."""
    causes = [state.cause]
    for reason in ("sqlstate_57P01", "unreachable", "sqlstate_57P03", "sqlstate_53100"):
        state.failed(WriteFailed(Verdict.WAIT, "", reason=reason))
        causes.append(state.cause)
    state.failed(WriteFailed(Verdict.HOLD, "", reason="sqlstate_57P01"))
    causes.append(state.cause)
    away = ["unreachable"] * 3
    assert causes == ["", *away, "sqlstate_53100", "sqlstate_57P01"]


def test_only_wait_is_away_and_all_other_verdicts_hold(state: DatabaseState) -> None:
    """A failure that a writer cannot handle pauses writes; an unknown code too, after its tries."""
    for verdict in (Verdict.HOLD, Verdict.UNKNOWN, Verdict.ISOLATE):
        state.failed(WriteFailed(verdict, "", reason=verdict.value))
        assert state.hold_reason == verdict.value


def test_answer_of_a_probe_opens_after_waiting_and_never_after_a_hold(
    state: DatabaseState,
) -> None:
    """A failed batch proves that the server is there. It does not prove that the pause may end."""
    retry = WriteFailed(Verdict.RETRY, "deadlock")
    state.failed(AWAY)
    state.answered(AWAY)
    state.answered(HELD)
    assert not state.is_open
    state.answered(retry)
    assert state.is_open
    state.failed(HELD)
    state.answered(retry)
    assert state.hold_reason == "schema"


def test_pause_grows_while_the_server_is_away_within_its_bounds(
    state: DatabaseState,
) -> None:
    """Full jitter below a ceiling that doubles from 0.1 s to 10 s, and never near 0."""
    for tries in range(12):
        state.failed(AWAY)
        ceiling_s = min(10.0, 0.1 * 2**tries)
        pauses = [state.pause_s() for _ in range(200)]
        assert ceiling_s / 10 <= min(pauses) < ceiling_s / 3
        assert ceiling_s * 2 / 3 < max(pauses) <= ceiling_s
    state.opened()
    state.failed(AWAY)
    assert state.pause_s() <= 0.1, "a new outage begins with a short pause"


def test_pause_on_hold_is_steady(state: DatabaseState) -> None:
    """While writes are paused, a probe every 5 s is enough: an operator has to fix the fault."""
    for _ in range(20):
        state.failed(HELD)
        assert state.pause_s() == 5.0


def test_one_line_tells_of_a_hold_or_outage_however_many_tries(
    state: DatabaseState,
) -> None:
    """One log line when it begins, and one with its duration when it ends."""
    with structlog.testing.capture_logs() as lines:
        for failure in (AWAY, HELD, FULL):
            for _ in range(50):
                state.failed(failure)
        state.opened()
        state.opened()
        state.failed(AWAY)
        state.opened()
    assert [line["event"] for line in lines] == [
        "database_away",
        "on_hold",
        "on_hold",
        "writing_resumed",
        "database_away",
        "database_back",
    ]
    assert [line.get("reason") for line in lines[1:3]] == ["schema", "dead_letters_full"]
    assert lines[1]["sqlstate"] == "42P01"
    assert lines[3]["after_s"] >= 0
    assert lines[3]["reason"] == "dead_letters_full", "the database itself was fine"


async def paused_s(state: DatabaseState, halted: asyncio.Event) -> float:
    """Return how long a pause took, in seconds."""
    began_s = monotonic_s()
    async with asyncio.timeout(2):
        await state.pause(halted)
    return monotonic_s() - began_s


async def test_pause_ends_by_itself_by_a_command_or_by_the_stop() -> None:
    """`ingest hold release` and SIGTERM do not wait for the next probe."""
    loop, halted = asyncio.get_running_loop(), asyncio.Event()
    short = DatabaseState(wait_s_min=0.02, wait_s_max=0.02, hold_probe_s=0.02)
    short.failed(HELD)
    assert 0.015 <= await paused_s(short, halted) < 1
    long = DatabaseState(wait_s_min=60, wait_s_max=60, hold_probe_s=60)
    long.failed(HELD)
    for end in (long.nudge, long.nudge, halted.set):  # a nudge serves one pause
        loop.call_later(0.01, end)
        assert await paused_s(long, halted) < 1
    assert await paused_s(long, halted) < 1, "halted stays"


async def test_pause_cancelled_leaves_no_task_behind() -> None:
    """Both waits of the pause are cancelled too."""
    state = DatabaseState(wait_s_min=60, wait_s_max=60, hold_probe_s=60)
    before = asyncio.all_tasks()
    task = asyncio.create_task(state.pause(asyncio.Event()))
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.001)
    assert asyncio.all_tasks() == before


async def test_wait_for_a_hold_gives_its_reason(state: DatabaseState) -> None:
    """So a post is answered with `database_on_hold` at once, and not at the end of its wait."""
    waiting = asyncio.create_task(state.wait_hold())
    state.failed(AWAY)
    await asyncio.sleep(0.001)
    assert not waiting.done()
    state.failed(HELD)
    assert await waiting == "schema"
    assert await state.wait_hold() == "schema"


async def test_wait_for_a_hold_that_was_over_in_a_moment_goes_on(
    state: DatabaseState,
) -> None:
    """The reason is never empty. A pause that is over does not end the wait."""
    waiting = asyncio.create_task(state.wait_hold())
    await asyncio.sleep(0)
    state.failed(HELD)
    state.opened()
    await asyncio.sleep(0.001)
    assert not waiting.done()
    state.failed(FULL)
    assert await waiting == "dead_letters_full"


async def test_wait_for_a_hold_can_be_cancelled(state: DatabaseState) -> None:
    """If one client hangs up, other waits still get the reason."""
    waits: list[asyncio.Task[Any]] = [asyncio.create_task(state.wait_hold()) for _ in range(2)]
    await asyncio.sleep(0)
    waits[0].cancel()
    state.failed(HELD)
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1] == "schema"
