"""Rollups of times that have left the table, or are on their way out, are final."""

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
from ingest.sinks.postgres.housekeeping import registry, runs
from ingest.sinks.postgres.housekeeping.partitions import DAY, TimeSpan
from ingest.sinks.postgres.housekeeping.table_state import View, look_at
from ingest.years.archive.job import Archiving
from ingest.years.partition_life import DETACH
from ingest.years.retention import Policy, Retention
from ingest.years.rollups import state
from ingest.years.rollups.job import Rollups
from ingest.years.rollups.state import Progress
from tests.support.archives import archiver
from tests.support.commands import Here
from tests.support.partitions import make_partition
from tests.support.rollups import DAY_US, HOUR_US, Key, Rollup, differences, expected, raw, stored

START_US = 20_000 * DAY_US  # 2024-10-04
ODD = (math.nan, math.inf, -0.0, 0.0, 1.7e308, 5.0)
TABLE = """create table readings (ts timestamptz, device_id text collate "C",
metric text collate "C", value float8, primary key (ts, device_id, metric, value))
partition by range (ts)"""


@asynccontextmanager
async def late_while_leaving(url: str, late: Sequence[Reading]) -> AsyncIterator[None]:
    """Write the late readings of a day right after the check that its partition may leave."""
    other = await asyncpg.connect(url)
    leave = state.leave

    async def leave_and_write(
        connection: asyncpg.Connection, view: View, before_us: int, **more: Any
    ) -> None:
        await leave(connection, view, before_us, **more)
        await write(
            other, [each for each in late if each.ts_us // DAY_US == before_us // DAY_US - 1]
        )

    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(state, "leave", leave_and_write)
            yield
    finally:
        await other.close()


async def detach(connection: asyncpg.Connection, retention: runs.Job) -> None:
    """Do only these steps of the retention."""
    view = await look_at(connection, "readings", DAY)
    for step in await retention.plan(connection, view):
        if step.kind == DETACH:
            await retention.do(connection, view, step)


async def write(connection: asyncpg.Connection, readings: Sequence[Reading]) -> int:
    """Store readings, in partitions that are made if they are missing; return how many are new."""
    view = await look_at(connection, "readings", DAY)
    for day_us in {each.ts_us // DAY_US * DAY_US for each in readings}:
        await make_partition(connection, view, TimeSpan(day_us, day_us + DAY_US))
    done = await connection.execute(
        """insert into readings select to_timestamp(0) + t * interval '1 us', d, m, v
        from unnest($1::int8[], $2::text[], $3::text[], $4::float8[]) as r (t, d, m, v)
        on conflict do nothing""",
        *map(list, zip(*readings, strict=True)),
    )
    return int(done.rsplit(" ", 1)[1])


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


def jobs_in(folder: Path | None, keep_days: int = 30) -> list[runs.Job]:
    """Return the jobs of a housekeeping whose archive is in this folder."""
    policy = Policy(keep_days * DAY_US, f"{keep_days}d", "" if folder is None else str(folder))
    archive = None if folder is None else archiver(folder)
    rolled = Rollups(wanted=True)
    jobs: list[runs.Job] = [
        rolled,
        Retention(policy, rollups=True, failed=rolled.failed),
    ]
    return jobs if archive is None else [*jobs, Archiving(archive.archive)]


async def run(connection: asyncpg.Connection, jobs: Sequence[runs.Job]) -> list[str]:
    """Do all that is due; no step may fail. Return the kinds of the steps."""
    did = await runs.do_due(connection, await look_at(connection, "readings", DAY), jobs, yes=True)
    assert [each.error for each in did] == [""] * len(did)
    return [each.step.kind for each in did]


async def hours(connection: asyncpg.Connection) -> dict[Key, Rollup]:
    """Return the rollups of hours."""
    return await stored(connection, "readings_hourly", "hour")


async def differ(connection: asyncpg.Connection, readings: Sequence[Reading]) -> list[Any]:
    """Return the rollups that differ from those of these readings."""
    days = await stored(connection, "readings_daily", "day")
    return [
        *differences(await hours(connection), expected(set(readings), HOUR_US)),
        *differences(days, expected(set(readings), DAY_US)),
    ]


async def progress(connection: asyncpg.Connection) -> Progress:
    """Return how far the rollups are."""
    at = await state.progress(connection, "readings")
    assert at is not None
    return at


@pytest.fixture
async def table(connection: asyncpg.Connection) -> asyncpg.Connection:
    """Give a connection to a partitioned table without partitions."""
    await connection.execute(f"{TABLE}; set timezone = 'UTC'")
    view = await look_at(connection, "readings", DAY)
    known = await registry.make(connection, "readings")
    await registry.put(connection, known, {registry.TABLE + view.name: {"span": DAY}})
    await schema.apply(connection)
    return connection


@pytest.mark.parametrize("with_archive", [True, False])
async def test_late_readings_of_days_that_have_left_are_counted(
    table: asyncpg.Connection, shared_url: str, here: Here, tmp_path: Path, *, with_archive: bool
) -> None:
    """Rollups are final before a merge with the files and after it; other days get theirs."""
    first = drawn(1, 300)
    await write(table, first)
    jobs = jobs_in(tmp_path if with_archive else None)
    archive = ["archive"] if with_archive else []
    assert await run(table, jobs) == ["rollups", *3 * ["detach", *archive, "drop"]]
    assert await differ(table, first) == []
    late = 0
    for seed in (2, 3):
        new = Reading(START_US + 7, f"new{seed}", "t", -0.0)
        late += await write(table, [*drawn(seed, 200), *first[:100], new])
        older = Reading(START_US - 9 * DAY_US * seed, "d0", "t", 1.0)  # a day that was never there
        await write(table, [older])
        assert await run(table, jobs[:1]) == ["rollups"]
        first.append(older)
        assert await differ(table, first) == []
        assert (await progress(table)).late_left == late
        await run(table, jobs)
        assert await raw(table) == []
        assert await run(table, jobs) == []
        assert await differ(table, first) == []
    status = ("housekeeping", "status", "--database-url", shared_url)
    assert f"rollups lack:   {late} late readings of times" in (await here(*status)).stdout
    assert json.loads((await here(*status, "--json")).stdout)["rollups_lack_late"] == late


async def test_day_that_is_attached_again_is_not_final(table: asyncpg.Connection) -> None:
    """Somebody has kept it: late readings come to its rollups."""
    first, late = drawn(1, 100, days=1), drawn(2, 50, days=1)
    jobs = jobs_in(None)
    await write(table, first)
    await run(table, jobs[:1])
    await detach(table, jobs[1])
    await table.execute(
        "alter table readings attach partition readings_p20241004 "
        "for values from ('2024-10-04+00') to ('2024-10-05+00')"
    )
    await write(table, late)
    await run(table, jobs[:1])
    assert await differ(table, [*first, *late]) == []
    assert (await progress(table)).late_left == 0


async def test_what_an_older_version_has_gathered_is_counted(table: asyncpg.Connection) -> None:
    """It kept the series of archived days until their files were read."""
    first = drawn(1, 100, days=1)
    await write(table, first)
    jobs = jobs_in(None)
    await run(table, jobs)
    await table.execute("insert into readings_rollup_due values ('2024-10-04 05:00+00', 'd0', 't')")
    await run(table, jobs)
    assert await differ(table, first) == []
    assert (await progress(table)).late_left == 1


async def test_readings_are_counted_once_if_the_rollups_beside_them_are_refused(
    table: asyncpg.Connection,
) -> None:
    """The statement that counts them is undone then, and tried again with half of the series."""
    await table.execute("create index on readings (device_id, metric, ts)")
    jobs = jobs_in(None)
    await write(table, drawn(1, 100, days=1))
    await run(table, jobs)
    await write(table, [Reading(START_US + DAY_US, "d1", "t", 1.0)])
    await run(table, jobs[:1])
    await table.execute(
        """insert into readings_rollup_due values ('2024-10-04 05:00+00', 'd0', 't'),
        ('2024-10-05 00:00+00', 'd1', 't');
        alter table readings_hourly add constraint a check (device_id <> 'd1') not valid"""
    )
    (did,) = await runs.do_due(table, await look_at(table, "readings", DAY), jobs[:1])
    assert "1 rollup could not be computed" in did.error
    assert (await progress(table)).late_left == 1


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
    did = await runs.do_due(table, await look_at(table, "readings", DAY), jobs, yes=True)
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


async def test_late_readings_that_come_while_their_partition_is_detached_are_counted(
    table: asyncpg.Connection, shared_url: str
) -> None:
    """Also if they come a second time after the detach, and if the trigger is made anew."""
    jobs = jobs_in(None)
    first, late = drawn(1, 300), drawn(2, 60)
    await write(table, first)
    await run(table, jobs[:1])
    async with late_while_leaving(shared_url, late):
        await detach(table, jobs[1])
    records = await table.fetchval("select count(*) from readings_rollup_late")
    assert 0 < records <= 60
    again = await write(table, [*late[:9], *first[:9]])
    await table.execute("drop trigger ingest_rollup_mark on readings")
    await run(table, jobs[:1])
    assert (await progress(table)).late_left == records + again
    assert await differ(table, first) == []
    await run(table, jobs)
    await run(table, jobs)
    assert await raw(table) == []
    assert await differ(table, first) == []


def one_an_hour(value: float) -> list[Reading]:
    """Return a reading of each hour of a day: as many late ones are not fewer."""
    return [Reading(START_US + hour * HOUR_US + int(value), "d0", "t", value) for hour in range(24)]


@pytest.mark.parametrize(
    "how", [pytest.param("off", marks=pytest.mark.slow), "dropped while off", "anew"]
)
async def test_what_was_dropped_stays_known(table: asyncpg.Connection, how: str) -> None:
    """Off and on again, or computed anew: late readings do not replace the rollups of before."""
    jobs = jobs_in(None)
    await write(table, one_an_hour(1))
    await run(table, jobs[:1])
    before = await hours(table)
    if how == "dropped while off":
        await run(table, [Rollups(wanted=False), Retention(Policy(30 * DAY_US, "30d"))])
    else:
        await run(table, jobs)
        if how == "off":
            await run(table, [Rollups(wanted=False)])
    assert await raw(table) == []
    await write(table, one_an_hour(2))
    if how == "anew":
        await table.execute("drop trigger ingest_rollup_mark on readings")
    await run(table, jobs[:1])  # on
    await write(table, one_an_hour(3))
    await run(table, jobs[:1])
    assert differences(await hours(table), before) == []
    assert (await progress(table)).gone == (TimeSpan(START_US, START_US + DAY_US),)


async def test_many_dropped_times_cost_little(table: asyncpg.Connection) -> None:
    """The planner of the server needs seconds for a condition of thousands of times."""
    await write(table, one_an_hour(1))
    await run(table, jobs_in(None)[:1])
    view = await look_at(table, "readings", DAY)
    at = await progress(table)
    gone = tuple(TimeSpan(2 * n * HOUR_US, (2 * n + 1) * HOUR_US) for n in range(40_000))
    await state.put(table, "ingest_housekeeping", at._replace(gone=gone))
    async with asyncio.timeout(20):  # it takes a fraction of a second
        await state.leave(table, view, START_US + DAY_US, from_us=START_US)
        await state.left(table, view, TimeSpan(START_US, START_US + DAY_US))
    assert (await progress(table)).gone == (*gone, TimeSpan(START_US, START_US + DAY_US))


async def test_off_ends_also_if_somebody_has_dropped_the_trigger(
    table: asyncpg.Connection,
) -> None:
    """Else nothing would ever leave the table: it would wait for rollups that nobody computes."""
    await write(table, one_an_hour(1))
    await run(table, jobs_in(None)[:1])
    await write(table, [Reading(START_US + 100 * DAY_US, "d0", "t", 1.0)])
    await table.execute("drop trigger ingest_rollup_mark on readings")
    at = await progress(table)
    await state.put(table, "ingest_housekeeping", at._replace(until_us=START_US + DAY_US))
    await run(table, [Rollups(wanted=False), Retention(Policy(30 * DAY_US, "30d"))])
    assert await raw(table) == []


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
    """At every second one, while late readings come: each one is counted once."""
    jobs = jobs_in(tmp_path)
    first = drawn(1, 100, days=2)
    await write(table, first)
    await run(table, jobs)
    late = 0
    for moment in range(1, 1_000, 2):
        late += await write(table, drawn(1_000 + moment, 10, days=2))
        real = await asyncpg.connect(shared_url, server_settings={"timezone": "UTC"})
        pid = real.get_server_pid()
        dying: Any = _Dying(real, moment)
        try:
            view = await look_at(table, "readings", DAY)
            await runs.do_due(dying, view, jobs_in(tmp_path))
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
    assert await differ(table, first) == []
    assert (await progress(table)).late_left == late
