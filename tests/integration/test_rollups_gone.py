"""Rollups of times that were dropped, or are on their way out: computed anew, off and on."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from ingest.model.reading import Reading
from ingest.sinks.postgres.housekeeping import plan, rollup_leaving, rollup_state
from ingest.sinks.postgres.housekeeping.keeping import Policy
from ingest.sinks.postgres.housekeeping.retention import Retention
from ingest.sinks.postgres.housekeeping.rollup_archived import ArchivedRollups
from ingest.sinks.postgres.housekeeping.rollups import Rollups
from ingest.sinks.postgres.housekeeping.spans import DAY, TimeSpan
from ingest.sinks.postgres.housekeeping.view import look_at
from tests.integration.test_rollups_archived import (
    START_US,
    detach,
    drawn,
    jobs_in,
    late_while_leaving,
    run,
    table,
    write,
)
from tests.support.rollups import DAY_US, HOUR_US, Key, Rollup, differences, expected, raw, stored

__all__ = ["table"]

KEEP = Policy(30 * DAY_US, "30d")
OFF: list[plan.Job] = [Rollups(wanted=False), ArchivedRollups(None)]


def one_an_hour(value: float) -> list[Reading]:
    """Return a reading of each hour of a day: as many late ones are not fewer."""
    return [Reading(START_US + hour * HOUR_US + int(value), "d0", "t", value) for hour in range(24)]


async def hours(connection: asyncpg.Connection) -> dict[Key, Rollup]:
    """Return the rollups of hours."""
    return await stored(connection, "readings_hourly", "hour")


@pytest.mark.parametrize(
    "how", [pytest.param("off", marks=pytest.mark.slow), "dropped while off", "anew"]
)
async def test_what_was_dropped_stays_known(table: asyncpg.Connection, how: str) -> None:
    """Off and on again, or computed anew: late readings do not replace the rollups of before."""
    jobs = jobs_in(None)
    await write(table, one_an_hour(1))
    await run(table, jobs[:2])
    before = await hours(table)
    if how == "dropped while off":
        await run(table, [*OFF, Retention(KEEP)])
    else:
        await run(table, jobs)
        if how == "off":
            await run(table, OFF)
    assert await raw(table) == []
    await write(table, one_an_hour(2))
    if how == "anew":
        await table.execute("drop trigger ingest_rollup_mark on readings")
    await run(table, jobs[:2])  # on
    await write(table, one_an_hour(3))
    await run(table, jobs[:2])
    assert differences(await hours(table), before) == []
    at = await rollup_state.progress(table, "readings")
    assert at is not None
    assert at.gone == (TimeSpan(START_US, START_US + DAY_US),)


async def test_many_dropped_times_cost_little(table: asyncpg.Connection) -> None:
    """The planner of the server needs seconds for a condition of thousands of times."""
    await write(table, one_an_hour(1))
    await run(table, jobs_in(None)[:2])
    view = await look_at(table, "readings", DAY)
    at = await rollup_state.progress(table, "readings")
    assert at is not None
    gone = tuple(TimeSpan(2 * n * HOUR_US, (2 * n + 1) * HOUR_US) for n in range(40_000))
    await rollup_state.put(table, "ingest_housekeeping", at._replace(gone=gone))
    async with asyncio.timeout(20):  # it takes a fraction of a second
        await rollup_state.leave(table, view, START_US + DAY_US, from_us=START_US)
        await rollup_state.left(table, view, TimeSpan(START_US, START_US + DAY_US))
    at = await rollup_state.progress(table, "readings")
    assert at is not None
    assert at.gone == (*gone, TimeSpan(START_US, START_US + DAY_US))


async def test_off_ends_also_if_somebody_has_dropped_the_trigger(
    table: asyncpg.Connection,
) -> None:
    """Else nothing would ever leave the table: it would wait for rollups that nobody computes."""
    await write(table, one_an_hour(1))
    await run(table, jobs_in(None)[:2])
    await write(table, [Reading(START_US + 100 * DAY_US, "d0", "t", 1.0)])
    await table.execute("drop trigger ingest_rollup_mark on readings")
    at = await rollup_state.progress(table, "readings")
    assert at is not None
    await rollup_state.put(table, "ingest_housekeeping", at._replace(until_us=START_US + DAY_US))
    await run(table, [*OFF, Retention(KEEP)])
    assert await raw(table) == []


@pytest.fixture
async def late(table: asyncpg.Connection, shared_url: str) -> set[Reading]:
    """Detach three days, while late readings of them come; return all readings."""
    jobs = jobs_in(None)
    first, late = drawn(1, 300), drawn(2, 60)
    await write(table, first)
    await run(table, jobs[:2])
    async with late_while_leaving(shared_url, late):
        await detach(table, jobs[2])
    return {*first, *late}


async def differ(connection: asyncpg.Connection, readings: set[Reading]) -> list[Any]:
    """Return the rollups that differ from those of these readings."""
    days = await stored(connection, "readings_daily", "day")
    return [
        *differences(await hours(connection), expected(readings, HOUR_US)),
        *differences(days, expected(readings, DAY_US)),
    ]


async def test_late_readings_of_a_detached_table_survive_a_computation_anew(
    table: asyncpg.Connection, late: set[Reading]
) -> None:
    """It does not see them, so their records must wait for the drop."""
    await table.execute("drop trigger ingest_rollup_mark on readings")
    await run(table, jobs_in(None)[:2])
    await run(table, jobs_in(None))
    assert await raw(table) == []
    assert await differ(table, late) == []


@pytest.mark.parametrize("why", [pytest.param("stop", marks=pytest.mark.slow), "budget"])
async def test_drop_ends_early_and_the_next_run_goes_on(
    table: asyncpg.Connection, late: set[Reading], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """At a stop, or after too long: no table is dropped whose late readings are in no rollup."""
    job = Retention(KEEP, rollups=True, stopped=lambda: why == "stop")
    view = await look_at(table, "readings", DAY)
    with monkeypatch.context() as patched:
        if why == "budget":
            patched.setattr(rollup_leaving, "BUDGET_S", 0.0)
        async with asyncio.timeout(20):
            did = await plan.run(table, view, [job], yes=True)
    assert [each.left for each in did] == 3 * [rollup_state.LATE_MISSING]
    assert (await run(table, jobs_in(None)))[-3:] == 3 * ["drop"]
    assert await raw(table) == []
    assert await differ(table, late) == []
