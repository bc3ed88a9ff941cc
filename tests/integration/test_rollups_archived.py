"""Rollups of archived days equal a computation from table and files, whatever comes late."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.model.reading import Reading
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import (
    archived,
    plan,
    registry,
    rollup_archived,
    rollup_late,
    rollup_left,
    rollup_state,
)
from ingest.sinks.postgres.housekeeping.archiving import Archiving
from ingest.sinks.postgres.housekeeping.keeping import Policy
from ingest.sinks.postgres.housekeeping.making import make_partition
from ingest.sinks.postgres.housekeeping.retention import DETACH, Retention
from ingest.sinks.postgres.housekeeping.rollup_archived import ArchivedRollups
from ingest.sinks.postgres.housekeeping.rollup_tables import RollupSpans
from ingest.sinks.postgres.housekeeping.rollups import Rollups
from ingest.sinks.postgres.housekeeping.spans import DAY, TimeSpan
from ingest.sinks.postgres.housekeeping.view import View, look_at
from tests.support.archives import Row, archiver, key_of, rows_in_files, value_of
from tests.support.commands import Here
from tests.support.rollups import DAY_US, HOUR_US, differences, expected, raw, stored

START_US = 20_000 * DAY_US  # 2024-10-04
ODD = (math.nan, math.inf, -0.0, 0.0, 1.7e308, 5.0)
TABLE = """create table readings (ts timestamptz, device_id text collate "C",
metric text collate "C", value float8, primary key (ts, device_id, metric, value))
partition by range (ts)"""


@asynccontextmanager
async def late_while_leaving(url: str, late: Sequence[Reading]) -> AsyncIterator[None]:
    """Write the late readings of a day right after the check that its partition may leave."""
    other = await asyncpg.connect(url)
    leave = rollup_state.leave

    async def leave_and_write(
        connection: asyncpg.Connection, view: View, before_us: int, **more: Any
    ) -> None:
        await leave(connection, view, before_us, **more)
        await write(
            other, [each for each in late if each.ts_us // DAY_US == before_us // DAY_US - 1]
        )

    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(rollup_state, "leave", leave_and_write)
            yield
    finally:
        await other.close()


async def detach(connection: asyncpg.Connection, retention: plan.Job) -> None:
    """Do only these steps of the retention."""
    view = await look_at(connection, "readings", DAY)
    for step in await retention.plan(connection, view):
        if step.kind == DETACH:
            await retention.do(connection, view, step)


async def write(connection: asyncpg.Connection, readings: Sequence[Reading]) -> None:
    """Store readings, in partitions that are made if they are missing."""
    view = await look_at(connection, "readings", DAY)
    for day_us in {each.ts_us // DAY_US * DAY_US for each in readings}:
        await make_partition(connection, view, TimeSpan(day_us, day_us + DAY_US))
    await connection.execute(
        """insert into readings select to_timestamp(0) + t * interval '1 us', d, m, v
        from unnest($1::int8[], $2::text[], $3::text[], $4::float8[]) as r (t, d, m, v)
        on conflict do nothing""",
        *map(list, zip(*readings, strict=True)),
    )


def drawn(seed: int, count: int, days: int = 3) -> list[Reading]:
    """Return readings of few series, also several at one time."""
    some = random.Random(seed)
    return [
        Reading(
            START_US + some.randrange(days * 24) * HOUR_US + some.randrange(60) * 60_000_000,
            f"d{some.randrange(3)}",
            some.choice(("t", "ü")),
            some.choice(ODD) if some.random() < 0.3 else some.gauss(0, 1e3),
        )
        for _ in range(count)
    ]


def jobs_in(folder: Path | None, keep_days: int = 30) -> list[plan.Job]:
    """Return the jobs of a housekeeping whose archive is in this folder."""
    policy = Policy(keep_days * DAY_US, f"{keep_days}d", "" if folder is None else str(folder))
    archive = None if folder is None else archiver(folder)
    rolled = Rollups(wanted=True)
    jobs: list[plan.Job] = [
        rolled,
        ArchivedRollups(archive),
        Retention(policy, rollups=True, failed=rolled.failed),
    ]
    return jobs if archive is None else [*jobs, Archiving(archive)]


async def run(connection: asyncpg.Connection, jobs: Sequence[plan.Job]) -> list[str]:
    """Do all that is due; no step may fail. Return the kinds of the steps."""
    did = await plan.run(connection, await look_at(connection, "readings", DAY), jobs, yes=True)
    assert [each.error for each in did] == [""] * len(did)
    return [each.step.kind for each in did]


async def wrong(connection: asyncpg.Connection, folder: Path) -> list[Any]:
    """Return the rollups that differ from what files and table together amount to."""
    kept: dict[object, Row] = {}
    for row in rows_in_files(sorted(folder.glob("*.parquet"))):
        kept.setdefault(key_of(row), row)
    found = {key: Reading(*row[:3], value_of(row[3])) for key, row in kept.items()}
    for reading in await raw(connection):
        key = (*reading[:3], "NaN" if math.isnan(reading.value) else reading.value + 0.0)
        found.setdefault(key, reading)
    hours = await stored(connection, "readings_hourly", "hour")
    days = await stored(connection, "readings_daily", "day")
    return [
        *differences(hours, expected(found.values(), HOUR_US)),
        *differences(days, expected(found.values(), DAY_US)),
    ]


async def waiting(connection: asyncpg.Connection) -> list[int]:
    """Return the days that `status` names, as numbers from the first one."""
    view = await look_at(connection, "readings", DAY)
    left = await rollup_left.left(connection, view.table, RollupSpans())
    days = await rollup_left.days_with_late(connection, view, left, RollupSpans())
    return [(each - START_US) // DAY_US for each in days]


@pytest.fixture
async def table(connection: asyncpg.Connection) -> asyncpg.Connection:
    """Give a connection to a partitioned table without partitions."""
    await connection.execute(f"{TABLE}; set timezone = 'UTC'")
    view = await look_at(connection, "readings", DAY)
    known = await registry.make(connection, "readings")
    await registry.put(connection, known, registry.TABLE + view.name, {"span": DAY})
    await schema.apply(connection)
    return connection


async def test_late_and_repeated_readings_of_archived_days(
    table: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right before the merge and after it, of new series and new days too; then nothing is due."""
    monkeypatch.setattr(rollup_archived, "ROWS_MAX", 50)
    first = drawn(1, 900)
    await write(table, first)
    jobs = jobs_in(tmp_path)
    assert await run(table, jobs) == ["rollups", *3 * ["detach", "archive", "drop"]]
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    assert await wrong(table, tmp_path) == []
    for seed in (2, 3):
        new = Reading(START_US + 7, f"new{seed}", "t", -0.0)
        older = Reading(START_US - 9 * DAY_US + seed, "d0", "t", 1.0)  # a day without a file
        await write(table, [*drawn(seed, 200), *first[:200], new, older])
        assert await waiting(table) == ([0, 1, 2] if seed == 2 else [-9, 0, 1, 2])
        await run(table, jobs[:2])
        assert await wrong(table, tmp_path) == []
        assert await waiting(table) == []
        assert await run(table, jobs) == 4 * ["detach", "archive", "drop"]
        assert await raw(table) == []
        assert await wrong(table, tmp_path) == []
        assert await run(table, jobs) == []


@pytest.mark.parametrize("with_archive", [True, False])
async def test_rollup_that_the_database_refuses_holds_up_no_other_day(
    table: asyncpg.Connection, tmp_path: Path, *, with_archive: bool
) -> None:
    """With an archive it is given up; without one its own day stays, as nothing else has it."""
    jobs = jobs_in(tmp_path if with_archive else None)
    await run(table, jobs)
    await table.execute(
        """alter table readings_hourly add constraint a check (device_id <> 'd1'
        or hour < '2024-10-05 00:00Z' or hour >= '2024-10-06 00:00Z')"""
    )
    await write(table, drawn(1, 300))
    did = await plan.run(table, await look_at(table, "readings", DAY), jobs, yes=True)
    assert [each.step.kind for each in did if each.error] == ["rollups"]
    left = (await look_at(table, "readings", DAY)).partitions
    assert [each.name for each in left] == ([] if with_archive else ["readings_p20241005"])
    await table.execute("alter table readings_hourly drop constraint a")
    assert await run(table, jobs) == ([] if with_archive else ["rollups", "detach", "drop"])
    hours = await stored(table, "readings_hourly", "hour")
    lacks = [key for key in expected(drawn(1, 300), HOUR_US) if key not in hours]
    days = {key[0] // DAY_US - START_US // DAY_US for key in lacks}
    assert days == ({1} if with_archive else set())
    assert {key[1] for key in lacks} <= {"d1"}


async def test_records_of_a_partition_on_its_way_wait(
    table: asyncpg.Connection, tmp_path: Path
) -> None:
    """Killed after a detach, at which a late reading came: it is neither in a file nor seen."""
    jobs = jobs_in(tmp_path)
    await write(table, drawn(1, 300))
    await run(table, jobs)
    await write(table, drawn(2, 100))
    view = await look_at(table, "readings", DAY)
    steps = [each for each in await plan.plan(table, view, jobs) if each.kind == "detach"]
    await jobs[0].do(table, view, (await jobs[0].plan(table, view))[0])
    for step in await jobs[1].plan(table, view):
        await jobs[1].do(table, view, step)
    await jobs[2].do(table, view, steps[0])
    await table.execute(
        f"""insert into {steps[0].partition} values ('2024-10-04 05:00+00', 'd0', 't', 77);
        insert into readings_rollup_late values ('2024-10-04 05:00+00', 'd0', 't')"""
    )
    assert await waiting(table) == [0]
    assert "rollups_archived" not in await run(table, [*jobs[:2], jobs[3]])
    assert await waiting(table) == [0]
    await run(table, jobs)
    await run(table, jobs)
    assert await waiting(table) == []
    assert await wrong(table, tmp_path) == []


async def test_without_the_files_a_day_is_named_and_nothing_is_guessed(
    table: asyncpg.Connection, shared_url: str, here: Here, tmp_path: Path
) -> None:
    """Without archive_dir its records wait. If its files are lost, its rollups stay as they are."""
    jobs = jobs_in(tmp_path)
    await write(table, drawn(1, 300))
    await run(table, jobs)
    hours = await stored(table, "readings_hourly", "hour")
    await write(table, drawn(2, 100, days=1))
    assert await run(table, [Rollups(wanted=True), ArchivedRollups(None)]) == ["rollups"]
    assert await waiting(table) == [0]
    status = ("housekeeping", "status", "--database-url", shared_url)
    said = (await here(*status)).stdout
    assert "rollups lack:   late readings of 1 archived day: 2024-10-04\n" in said
    found = json.loads((await here(*status, "--json")).stdout)
    assert found["rollups_lack_late"] == ["2024-10-04T00:00:00Z"]
    assert differences(await stored(table, "readings_hourly", "hour"), hours) == []
    (found, *_) = await archived.contents(table, "readings")
    path = tmp_path / found.files[0][0]
    path.rename(path.with_suffix(".away"))
    view = await look_at(table, "readings", DAY)
    did = await plan.run(table, view, jobs)
    assert "No such file" in did[0].error
    assert await waiting(table) == [0]
    await registry.remove(table, "ingest_housekeeping", registry.FILES + found.name)
    await run(table, jobs[:2])
    assert await waiting(table) == []
    assert differences(await stored(table, "readings_hourly", "hour"), hours) == []


async def test_rollups_that_are_made_again_keep_those_of_archived_days(
    table: asyncpg.Connection, tmp_path: Path
) -> None:
    """Off and on again, while a late reading of such a day is in the table."""
    jobs = jobs_in(tmp_path)
    first = drawn(1, 300)
    await write(table, first)
    await run(table, jobs)
    await write(table, drawn(4, 20))
    await run(table, [Rollups(wanted=False), ArchivedRollups(archiver(tmp_path))])
    await write(table, [*drawn(2, 100), *first[:50], *drawn(3, 30, days=5)])
    await run(table, jobs[:2])
    await run(table, jobs[:2])
    assert await wrong(table, tmp_path) == []


async def test_readings_that_were_dropped_without_an_archive_stay_left_out(
    table: asyncpg.Connection, tmp_path: Path
) -> None:
    """Their rollups outlive them, also if there is an archive later."""
    await write(table, drawn(1, 300))
    await run(table, jobs_in(None))
    assert await raw(table) == []
    hours = await stored(table, "readings_hourly", "hour")
    jobs = jobs_in(tmp_path)
    for seed in (2, 3):
        await write(table, drawn(seed, 500))
        await run(table, jobs)
    assert await run(table, jobs) == []
    assert await waiting(table) == []
    assert differences(await stored(table, "readings_hourly", "hour"), hours) == []
    at = await rollup_state.progress(table, "readings")
    assert at is not None
    assert at.gone == (TimeSpan(START_US, START_US + 3 * DAY_US),)


async def test_days_that_were_dropped_leave_the_rollups_of_archived_days_alone(
    table: asyncpg.Connection, tmp_path: Path
) -> None:
    """Archived, dropped, archived: only the rollups of the dropped day stay as they are."""
    jobs = jobs_in(tmp_path)
    await write(table, drawn(1, 200, days=1))
    await run(table, jobs)
    dropped = [each._replace(ts_us=each.ts_us + DAY_US) for each in drawn(2, 200, days=1)]
    await write(table, dropped)
    await run(table, jobs_in(None))
    day_us = START_US + DAY_US
    for seed in (3, 4):
        older = Reading(START_US - 9 * DAY_US + seed, "d0", "t", 1.0)  # a day that was never there
        await write(table, [*drawn(seed, 900), older])
        for _ in range(2):  # before the merge, and after it
            await run(table, jobs[:2] if await raw(table) else jobs)
            assert await waiting(table) == []
            hours = await stored(table, "readings_hourly", "hour")
            kept = {key: each for key, each in hours.items() if 0 <= key[0] - day_us < DAY_US}
            assert differences(kept, expected(dropped, HOUR_US)) == []
            assert [each for each in await wrong(table, tmp_path) if not _is_in(each, day_us)] == []
        await run(table, jobs)
        assert await raw(table) == []
    at = await rollup_state.progress(table, "readings")
    assert at is not None
    assert at.gone == (TimeSpan(day_us, day_us + DAY_US),)


def _is_in(difference: Any, day_us: int) -> bool:
    return bool(0 <= difference[0][0] - day_us < DAY_US)


@pytest.mark.parametrize("killed", [False, True])
async def test_late_readings_that_come_while_their_partition_is_detached_are_in_the_rollups(
    table: asyncpg.Connection, shared_url: str, monkeypatch: pytest.MonkeyPatch, *, killed: bool
) -> None:
    """Nothing else has them: without an archive, their partition is dropped.

    One was adopted: it is in another schema.
    """
    monkeypatch.setattr(rollup_late, "KEYS_MAX", 7)
    jobs = jobs_in(None)
    first, late = drawn(1, 300), [*drawn(2, 60), Reading(START_US + 7, "new", "t", -0.0)]
    await write(table, first)
    await table.execute(
        "drop schema if exists theirs cascade; create schema theirs; "
        "alter table readings_p20241004 set schema theirs"
    )
    await run(table, jobs[:2])
    async with late_while_leaving(shared_url, late):
        if killed:  # after each detach
            await detach(table, jobs[2])
            assert await waiting(table) == [0, 1, 2]
            await run(table, jobs[:2])
        await run(table, jobs)
    assert await raw(table) == []
    everything = [*first, *late]
    hours = await stored(table, "readings_hourly", "hour")
    assert differences(hours, expected(set(everything), HOUR_US)) == []
    days = await stored(table, "readings_daily", "day")
    assert differences(days, expected(set(everything), DAY_US)) == []
    await run(table, jobs)
    assert await run(table, jobs) == []
    assert await waiting(table) == []
    await table.execute("drop schema theirs")


async def test_reading_that_comes_again_after_the_detach_counts_once(
    table: asyncpg.Connection,
) -> None:
    """It is in the detached table, and in a new partition of that time."""
    jobs = jobs_in(None)
    await write(table, drawn(1, 200, days=1))
    readings = await raw(table)
    await run(table, jobs[:2])
    view = await look_at(table, "readings", DAY)
    detach, _ = await jobs[2].plan(table, view)
    await jobs[2].do(table, view, detach)
    late = Reading(START_US + 7, "d0", "t", 1.0)
    await write(table, [*readings[:100], late])
    await run(table, jobs)
    hours = await stored(table, "readings_hourly", "hour")
    assert differences(hours, expected([*readings, late], HOUR_US)) == []
    days = await stored(table, "readings_daily", "day")
    assert differences(days, expected([*readings, late], DAY_US)) == []


async def test_late_readings_that_somebody_has_dropped_end_nothing(
    table: asyncpg.Connection, tmp_path: Path
) -> None:
    """Their table was on its way into the archive, which has the day: its rollups go on."""
    jobs = jobs_in(tmp_path)
    await write(table, drawn(1, 300))
    await run(table, jobs)
    late = drawn(2, 60, days=1)
    await write(table, late)
    await run(table, jobs[:2])
    view = await look_at(table, "readings", DAY)
    (detach, *_) = await jobs[2].plan(table, view)
    await jobs[2].do(table, view, detach)
    await table.execute(f"drop table {detach.partition}")
    did = await plan.run(table, view, jobs, yes=True)
    assert "was dropped or renamed by somebody" in did[-1].error
    await write(table, [*late, Reading(START_US + 7, "new", "t", 1.0)])
    await run(table, jobs[:2])
    assert await wrong(table, tmp_path) == []
    assert await waiting(table) == []


class Killed(BaseException):
    """The process was killed here."""


class _Dying:
    """A connection whose user is killed after some statements."""

    def __init__(self, real: asyncpg.Connection, statements: int) -> None:
        self._real = real
        self._left = statements
        for name in ("execute", "fetch", "fetchrow", "fetchval", "copy_to_table"):
            setattr(self, name, self._counted(getattr(real, name)))

    def _counted(self, call: Any) -> Any:
        async def counted(*args: Any, **more: Any) -> Any:
            result = await call(*args, **more)
            self._left -= 1
            if self._left == 0:
                self._real.terminate()
                raise Killed
            return result

        return counted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def _ended(table: asyncpg.Connection, pid: int) -> None:
    """Wait for the end of a session, and of its locks: the server notices it a little later."""
    there = "select exists (select from pg_stat_activity where pid = $1)"
    async with asyncio.timeout(20):
        while True:
            if not await table.fetchval(there, pid):
                return
            await asyncio.sleep(0.002)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_killed_after_any_statement(
    table: asyncpg.Connection, shared_url: str, tmp_path: Path
) -> None:
    """At every second one, while late readings come: the next run goes on, and all is right."""
    jobs = jobs_in(tmp_path)
    await write(table, drawn(1, 100, days=2))
    await run(table, jobs)
    for moment in range(1, 1_000, 2):
        await write(table, drawn(1_000 + moment, 10, days=2))
        real = await asyncpg.connect(shared_url, server_settings={"timezone": "UTC"})
        pid = real.get_server_pid()
        dying: Any = _Dying(real, moment)
        try:
            view = await look_at(table, "readings", DAY)
            await plan.run(dying, view, jobs_in(tmp_path))
            if not real.is_closed():  # asyncpg hides the kill in a transaction by its own error
                break
        except Killed:
            pass
        finally:
            real.terminate()
            await _ended(table, pid)
    else:
        pytest.fail("it does not end")
    assert moment > 100
    while await run(table, jobs):
        pass
    assert await raw(table) == []
    assert await wrong(table, tmp_path) == []
