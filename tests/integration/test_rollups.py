"""Rollups on a real PostgreSQL: they equal a computation from all readings, whatever came when."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import random
import re
import sys
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from ingest.model.errors import StartError
from ingest.model.reading import Reading
from ingest.model.tables import NO_TABLES
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import registry, runs
from ingest.sinks.postgres.housekeeping.partitions import BEGINNING_US, TimeSpan
from ingest.sinks.postgres.housekeeping.table_state import look_at
from ingest.sinks.postgres.lookup import Between, Lookup
from ingest.sinks.postgres.schema import TargetTable
from ingest.years.rollups import job as rollups
from ingest.years.rollups import run as rollup_run
from ingest.years.rollups import tables
from ingest.years.rollups.curve import rolled_curve
from ingest.years.rollups.job import Rollups
from ingest.years.rollups.state import Progress, leave, left, progress
from tests.support.commands import Here, with_user
from tests.support.rollups import DAY_US, HOUR_US, differences, expected, raw, stored

START_US = 20_000 * DAY_US  # 2024-10-04
MAX = sys.float_info.max
ODD = (math.nan, math.inf, -math.inf, -0.0, 0.0, 1.7e308, -1.7e308, 1e-320, 5.0)


async def write(connection: asyncpg.Connection, readings: Sequence[Reading]) -> None:
    """Store readings as any client would; those that are there already are left out."""
    await connection.execute(
        """insert into readings select to_timestamp(0) + t * interval '1 us', d, m, v
        from unnest($1::int8[], $2::text[], $3::text[], $4::float8[]) as r (t, d, m, v)
        on conflict do nothing""",
        *map(list, zip(*readings, strict=True)),
    )


def drawn(seed: int, count: int, hours: int, *, odd: bool = False) -> list[Reading]:
    """Return readings of few series in some hours, also several at one time."""
    some = random.Random(seed)
    return [
        Reading(
            START_US + some.randrange(hours) * HOUR_US + some.randrange(3_600) * 1_000_000,
            f"d{some.randrange(3)}",
            some.choice(("t", "ü")),
            some.choice(ODD) if odd and some.random() < 0.3 else some.gauss(0, 1e3),
        )
        for _ in range(count)
    ]


async def run(connection: asyncpg.Connection, **more: Any) -> list[runs.Did]:
    """Run housekeeping with nothing but rollups; no step may fail."""
    job = Rollups(**{"wanted": True, **more})
    did = await runs.do_due(connection, await look_at(connection, "readings", "none"), [job])
    assert [each.error for each in did] in ([], [""])
    return did


async def wrong(connection: asyncpg.Connection) -> list[Any]:
    """Return all rollups that differ from what the readings of the table amount to."""
    readings = await raw(connection)
    hours = await stored(connection, "readings_hourly", "hour")
    days = await stored(connection, "readings_daily", "day")
    return differences(hours, expected(readings, HOUR_US)) + differences(
        days, expected(readings, DAY_US)
    )


async def run_right(connection: asyncpg.Connection) -> None:
    """Run the rollups; all of them are right then."""
    await run(connection)
    assert await wrong(connection) == []


@pytest.fixture(params=["plain", "index", "partitioned"])
async def table(
    request: pytest.FixtureRequest, connection: asyncpg.Connection
) -> asyncpg.Connection:
    """Give a connection to a database with the table, in its three forms."""
    if request.param == "partitioned":
        await connection.execute(
            """create table readings (ts timestamptz not null, device_id text collate "C" not null,
            metric text collate "C" not null, value double precision not null,
            primary key (ts, device_id, metric, value)) partition by range (ts);
            create table readings_a partition of readings for values from (minvalue)
            to ('2024-10-05+00');
            create table readings_b partition of readings for values from ('2024-10-05+00')
            to (maxvalue)"""
        )
    await schema.apply(connection, device_index=request.param != "plain")
    return connection


async def test_rollups_equal_a_computation_from_all_readings(table: asyncpg.Connection) -> None:
    """So it is at first, after late readings and repeated ones, and after some of an old day."""
    first = drawn(1, 2_000, 40, odd=True)
    await write(table, first)
    await run_right(table)
    assert len(await stored(table, "readings_daily", "day")) == 12
    assert await run(table) == []
    await write(table, first)
    assert await table.fetchval("select count(*) from readings_rollup_late") == 0
    await write(table, [*drawn(2, 300, 40, odd=True), *first])
    await write(table, [Reading(START_US - 400 * DAY_US, "new", "t", -0.0)])
    assert len(await wrong(table)) > 10
    await run_right(table)
    assert await run(table) == []


async def test_sums_and_ties(operator: asyncpg.Connection) -> None:
    """Of values at one time the lesser is first and last; sums beyond float8 are infinite."""
    cases = {
        "tie": [(0, 7.0), (0, 5.0), (9, 3.0), (9, 4.0), (5, -1.0)],
        "nan": [(0, math.nan), (0, 5.0), (9, math.nan)],
        "back": [(0, 1.7e308), (1, 1.7e308), (2, -1.7e308), (3, -1.6e308)],
        "zero": [(0, -0.0), (1, 0.0), (2, -0.0)],
    }
    readings = [
        Reading(START_US + second * 1_000_000, name, "t", value)
        for name, members in cases.items()
        for second, value in members
    ]
    await write(operator, readings)
    await run_right(operator)
    found = {
        key[1]: each for key, each in (await stored(operator, "readings_hourly", "hour")).items()
    }
    assert (found["tie"].first, found["tie"].last) == (5.0, 3.0)
    assert (found["nan"].first, found["nan"].least) == (5.0, 5.0)
    assert math.isnan(found["nan"].last)
    assert found["back"].sum == pytest.approx(1e307, rel=1e-12)
    assert math.copysign(1, found["zero"].first) == -1
    assert math.copysign(1, found["zero"].least) == 1


TINY = (5e-324, -5e-324, 1e-320, 2.3e-308, 0.0)
HOSTILE = (*TINY, 1e-305, 1.0, 1e290, 2e290, -2e290, 1e300, -1e300, *ODD[1:3], MAX, -MAX)


async def test_no_values_make_a_sum_or_a_mean_fail(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """Any two, in one hour or in two of a day; and what is left of large ones that cancel out."""
    sets: list[tuple[float, ...]] = [*itertools.combinations_with_replacement(HOSTILE, 2)]
    sets += [(MAX, -MAX, 5e-324), (2e290, -1e290, -1e290), (1e300, 5e-324, -5e-324)]
    readings, sums = list[Reading](), dict[str, float]()
    for values, hours in itertools.product(sets, (0, 1)):
        name = f"{hours} {values}"
        for number, value in enumerate(values):
            at_us = START_US + number * (hours * HOUR_US + 1_000_000)
            readings.append(Reading(at_us, name, "t", value))
        sums[name] = sum(values) if len(values) == 2 else math.fsum(values)
    await write(operator, readings)
    await run(operator)
    for name, found in await operator.fetch("select device_id, sum from readings_daily"):
        assert repr(found) == repr(sums.pop(name))
    assert sums == {}
    lookup = Lookup(lambda: shared_url, tables=NO_TABLES, rolled_curve=rolled_curve)
    try:
        for values, hours in itertools.product(itertools.combinations(TINY, 2), (0, 1)):
            curves = [
                await lookup.curve(
                    f"{hours} {values}", "t", Between(START_US, START_US + DAY_US), step_us
                )
                for step_us in (DAY_US, 2 * DAY_US, DAY_US // 7)
            ]
            assert [each["buckets"][0][2] for each in curves] == [sum(values) / 2] * 3
    finally:
        await lookup.close()


async def test_rollup_that_the_database_refuses_stops_no_other(
    operator: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours, days and late readings of all other series go on, it is told, and it comes back."""
    monkeypatch.setattr(rollup_run, "KEYS_MAX", 16)
    await write(operator, drawn(1, 60, 30))
    await run(operator)
    refuses = "add constraint a check (device_id <> 'd1' or metric <> 't' or {}) not valid"
    hours, days = (
        refuses.format(each) for each in ("hour < '2024-10-04 05:00Z'", "day < '2024-10-05 00:00Z'")
    )
    await operator.execute(
        f"alter table readings_hourly {hours}; alter table readings_daily {days}"
    )
    await write(operator, drawn(2, 60, 60))
    name = await registry.make(operator, "readings")
    for late in (True, False):
        if not late:  # as if the hours were new
            at = Progress(START_US + 30 * HOUR_US, START_US + DAY_US)
            await registry.put(operator, name, {"rollups": at._asdict()})
        view = await look_at(operator, "readings", "none")
        (did,) = await runs.do_due(operator, view, [Rollups(wanted=True)])
        assert re.match(
            r"\d+ rollups could not be .* of d1, t, 2024-10-0.*check constraint", did.error
        )
        assert {key[1:] for key, *_ in await wrong(operator)} == {("d1", "t")}
    for table in ("readings_hourly", "readings_daily"):
        await operator.execute(f"alter table {table} drop constraint a")
    await run_right(operator)


async def test_reading_whose_commit_comes_after_a_run_is_computed_by_the_next(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """Its record is in its own transaction: no run sees one without the other."""
    await write(operator, drawn(1, 100, 5))
    await run(operator)
    other = await asyncpg.connect(shared_url)
    try:
        transaction = other.transaction()
        await transaction.start()
        await write(other, drawn(2, 50, 5))
        await write(operator, drawn(3, 10, 5))
        await run_right(operator)
        await transaction.commit()
        assert await wrong(operator) != []
        await run_right(operator)
        async with other.transaction():
            await write(other, drawn(4, 50, 5))
            await other.execute("savepoint a")
            await write(other, drawn(5, 50, 5))
            await other.execute("rollback to a")
        await run_right(operator)
    finally:
        await other.close()


async def test_hour_waits_for_a_writer_that_began_before_its_end(
    operator: asyncpg.Connection, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a short clock: a reading that is not late leaves no record, so its commit is awaited."""
    monkeypatch.setattr(rollup_run, "WRITERS_S_MAX", 0.3)
    short = {"HOUR_US": 200_000, "DAY_US": 1_000_000, "CLOSE_US": 400_000, "LATE": "00:00:00.3"}
    for name, value in short.items():
        monkeypatch.setattr(tables, name, value)
    await run(operator)
    other = await asyncpg.connect(shared_url)
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("insert into readings values (clock_timestamp(), 'd', 't', 1)")
        await asyncio.sleep(0.7)
        before = await progress(operator, "readings")
        await run(operator)
        assert await progress(operator, "readings") == before
        assert await operator.fetchval("select count(*) from readings_rollup_late") == 0
        await transaction.commit()
        await run(operator)
        assert len(await stored(operator, "readings_hourly", "hour")) == 1
        await other.execute("insert into readings values (now() - interval '1 h', 'd', 't', 1)")
        assert await operator.fetchval("select count(*) from readings_rollup_late") == 1
    finally:
        await other.close()


async def test_clock_that_is_set_back_opens_hours_again(operator: asyncpg.Connection) -> None:
    """Hours that are not over by the clock of now are computed once more, when they are over."""
    await write(operator, drawn(1, 50, 3))
    await run(operator)
    name = await registry.make(operator, "readings")
    ahead_us = 30_000 * DAY_US
    await registry.put(operator, name, {"rollups": Progress(ahead_us, ahead_us)._asdict()})
    await run(operator)
    at = await progress(operator, "readings")
    assert at is not None
    assert at.until_us is not None
    assert at.days_until_us is not None
    assert at.until_us < ahead_us
    assert at.days_until_us <= at.until_us


@pytest.mark.parametrize("where", ["part", "hour", "day", "late", "due"])
async def test_killed_run_is_continued(
    operator: asyncpg.Connection,
    shared_url: str,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """At any statement its server process may end: what is stored is right after the next run."""
    await write(operator, drawn(1, 300, 30))
    if where in {"late", "due"}:
        await run(operator)
        await write(operator, drawn(2, 100, 30))
    victim = await asyncpg.connect(shared_url)
    words = {
        "part": "insert into pg_temp.",
        "hour": 'insert into public."readings_hourly"',
        "day": 'insert into public."readings_daily"',
        "late": "with gone as",
        "due": "unnest($1::text[]::timestamptz[]",
    }
    pid = victim.get_server_pid()
    execute, fetchval, seen = victim.execute, victim.fetchval, 0

    async def maybe_killed(call: Any, sql: str, *values: Any) -> Any:
        nonlocal seen
        result = await call(sql, *values)
        seen += words[where] in sql
        if seen == (1 if where in {"late", "due", "day"} else 3) and words[where] in sql:
            await operator.execute("select pg_terminate_backend($1)", pid)
            await asyncio.sleep(0.05)
        return result

    monkeypatch.setattr(rollup_run, "KEYS_MAX", 7)
    killed = _Connection(
        victim,
        lambda sql, *v: maybe_killed(execute, sql, *v),
        lambda sql, *v: maybe_killed(fetchval, sql, *v),
    )
    view = await look_at(victim, "readings", "none")
    try:
        did = await runs.do_due(killed, view, [Rollups(wanted=True)])  # type: ignore[arg-type]
        assert [bool(each.error) for each in did] == [True]
        assert victim.is_closed()
    finally:
        victim.terminate()
    await run_right(operator)


class _Connection:
    """A connection with other ways to execute; all else is the driver's."""

    def __init__(self, real: asyncpg.Connection, execute: Any, fetchval: Any) -> None:
        self._real = real
        self.execute, self.fetchval = execute, fetchval

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def test_budget_ends_a_run_and_the_next_goes_on(
    operator: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run does little, and each is nearer to the end."""
    monkeypatch.setattr(rollups, "BUDGET_S", 0.02)
    monkeypatch.setattr(rollup_run, "KEYS_MAX", 5)
    await write(operator, drawn(1, 300, 30))
    for _ in range(1_000):
        if not await run(operator):
            break
    else:
        pytest.fail("the runs do not end")
    assert await wrong(operator) == []


async def test_stop_ends_a_long_statement(
    operator: asyncpg.Connection, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service does not wait for it; what it has done is undone, and done by the next run."""
    monkeypatch.setattr(rollups, "STOP_S", 0.0)
    monkeypatch.setattr(rollups, "STOP_POLL_S", 0.05)
    await write(operator, drawn(1, 50, 5))
    await run(operator)
    await write(operator, drawn(2, 50, 5))
    other = await asyncpg.connect(shared_url)
    stopping = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, stopping.set)
    try:
        async with operator.transaction():
            await operator.execute("lock table readings_hourly in exclusive mode")
            view = await look_at(other, "readings", "none")
            did = await runs.do_due(other, view, [Rollups(wanted=True, stopped=stopping.is_set)])
            assert did[0].error
            assert other.is_closed()
    finally:
        other.terminate()
    async with asyncio.timeout(30):
        while True:  # the server notices the end of the other session a little later
            try:
                await run(operator)
                break
            except registry.OtherRun:
                await asyncio.sleep(0.05)
    assert await wrong(operator) == []


async def test_command_computes_and_says_how_far(
    operator: asyncpg.Connection, shared_url: str, here: Here, role: str
) -> None:
    """A role that does not own the table is told so; `keep_rollups` removes old ones."""
    await write(operator, drawn(1, 50, 5))
    words = ("--database-url", shared_url, "--rollups", "true")
    assert "make the tables of rollups" in (await here("housekeeping", "plan", *words)).stdout
    assert "done" in (await here("housekeeping", "run", *words)).stdout
    assert "of all hours until 20" in (await here("housekeeping", "status", *words)).stdout
    assert await wrong(operator) == []
    assert "nothing was due" in (await here("housekeeping", "run", *words)).stdout
    await operator.execute(f"grant usage on schema public to {role}")
    await operator.execute(f"grant insert, select on readings to {role}")
    plain = ("--database-url", with_user(shared_url, role), *words[2:])
    done = await here("housekeeping", "run", *plain)
    assert done.code == 1
    assert "does not own" in done.stdout
    await here("housekeeping", "run", *words, "--keep-rollups", "30d")
    assert await stored(operator, "readings_daily", "day") == {}
    await operator.execute("drop schema public cascade; create schema public")


async def test_table_and_columns_may_have_other_names(operator: asyncpg.Connection) -> None:
    """Names that must be quoted, and columns in another order; the tables of rollups have ours."""
    await operator.execute(
        """create table "My ""Data" (
        "Value" float8 not null, "order" text not null, "at" timestamptz not null,
        "dev id" text collate "C" not null, primary key ("at", "dev id", "order", "Value"));
        insert into "My ""Data" select n, 'm', timestamptz '2024-10-04Z' + n * interval '1 min', 'd'
        from generate_series(1, 200) n"""
    )
    on = TargetTable("public", 'My "Data', "at", "dev id", "order", "Value")
    job = Rollups(wanted=True, on=on)
    for _ in range(2):
        view = await look_at(operator, '"My ""Data"', "none", target=on)
        assert [each.error for each in await runs.do_due(operator, view, [job])] == [""]
        readings = await raw(operator, on.source + " r")
        found = await stored(operator, '"My ""Data_hourly"', "hour")
        assert differences(found, expected(readings, HOUR_US)) == []
        await operator.execute(
            """insert into "My ""Data" select -n - random(), 'm', timestamptz '2024-10-04Z'
            + n * interval '1 min', 'd' from generate_series(1, 200) n"""
        )


async def test_table_that_became_a_partition_is_computed_anew(
    operator: asyncpg.Connection,
) -> None:
    """Its trigger gives way to one of the whole table; nobody knows what came in between."""
    await write(operator, drawn(1, 100, 30))
    await run(operator)
    await operator.execute(
        """alter table readings rename to readings_first;
        create table readings (like readings_first) partition by range (ts);
        alter table readings add primary key (ts, device_id, metric, value);
        alter table readings attach partition readings_first for values from (minvalue)
        to ('2024-10-06+00');
        create table readings_next partition of readings for values from ('2024-10-06+00')
        to (maxvalue)"""
    )
    await write(operator, drawn(2, 100, 30))
    await run_right(operator)
    await write(operator, drawn(3, 100, 30))
    await run_right(operator)
    assert await run(operator) == []


async def test_off_and_on_again(operator: asyncpg.Connection) -> None:
    """Off removes the trigger, and leaves the rollups. On computes all again that has readings."""
    await write(operator, drawn(1, 100, 5))
    await run(operator)
    await run(operator, wanted=False)
    assert await operator.fetchval("select count(*) from pg_trigger where tgname ~ 'rollup'") == 0
    assert await progress(operator, "readings") is None
    assert await run(operator, wanted=False) == []
    await write(operator, drawn(2, 100, 30))
    await run_right(operator)
    await operator.execute("alter table readings disable trigger ingest_rollup_mark")
    await write(operator, drawn(3, 100, 30))
    await run_right(operator)


async def test_run_that_is_cancelled_leaves_nothing_at_work(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """At a stop nobody waits for it longer: its statement ends with its connection."""
    said: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: said.append(context))
    await write(operator, drawn(1, 50, 5))
    await run(operator)
    await write(operator, drawn(2, 50, 5))
    other = await asyncpg.connect(shared_url, server_settings={"timezone": "UTC"})
    async with operator.transaction():
        await operator.execute("lock table readings_hourly in access exclusive mode")
        work = asyncio.create_task(run(other))
        waits = "select exists (select from pg_locks where not granted)"
        while not await operator.fetchval(waits):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(work), 5)
    assert other.is_closed()
    gc.collect()
    await asyncio.sleep(0)
    assert said == []


@pytest.mark.parametrize("by_0_1_0", [False, True])
async def test_rollups_outlive_their_readings(
    operator: asyncpg.Connection, *, by_0_1_0: bool
) -> None:
    """Retention waits for them. Late readings of a removed time leave them as they are.

    Also if 0.1.0 has removed them: it noted one number, up to when.
    """
    readings = drawn(1, 400, 50)
    await write(operator, readings)
    day_us = START_US + DAY_US
    view = await look_at(operator, "readings", "none")
    await leave(operator, view, day_us)
    await run(operator)
    with pytest.raises(StartError, match="not computed yet"):
        await leave(operator, view, 40_000 * DAY_US)
    await write(operator, [Reading(START_US, "d0", "t", 9.0)])
    with pytest.raises(StartError, match="late readings"):
        await leave(operator, view, day_us)
    await run(operator)
    hours = await stored(operator, "readings_hourly", "hour")
    days = await stored(operator, "readings_daily", "day")
    await leave(operator, view, day_us)
    await operator.execute("delete from readings where ts < '2024-10-05+00'")
    if by_0_1_0:
        key = await registry.entries(operator, view.table, "rollups")
        entry = {each: key[""][each] for each in ("until_us", "days_until_us")}
        name, _ = await registry.name_beside(operator, view.table)
        await registry.put(operator, name, {"rollups": entry | {"raw_from_us": day_us}})
    else:
        await left(operator, view, TimeSpan(BEGINNING_US, day_us))
    late = [Reading(START_US + n, "d0", "t", 9.0) for n in range(100)]
    await write(operator, late)
    await leave(operator, view, day_us)
    await run(operator)
    assert await stored(operator, "readings_hourly", "hour") == hours
    assert await stored(operator, "readings_daily", "day") == days
    await operator.execute("delete from readings")  # by somebody else
    await write(operator, [Reading(START_US + 30 * HOUR_US, "d0", "t", 9.0)])
    await run(operator)
    assert await stored(operator, "readings_hourly", "hour") == hours
    await run(operator, keep_us=DAY_US)
    assert await stored(operator, "readings_hourly", "hour") == {}
    assert await stored(operator, "readings_daily", "day") == {}


async def test_curve_of_rollups_equals_that_of_readings(
    operator: asyncpg.Connection, shared_url: str
) -> None:
    """Whatever the time asked for, whole hours or not; the open hours come from the readings."""
    steps_us = (HOUR_US, 6 * HOUR_US, DAY_US, 2 * DAY_US, HOUR_US // 2)
    times_us = (
        (START_US - DAY_US, START_US + 10 * DAY_US),
        (START_US + 1_234_567, START_US + 99 * HOUR_US + 987_654),
        (START_US + 101 * HOUR_US, START_US + 102 * HOUR_US),
        (START_US + HOUR_US + 1, START_US + HOUR_US + 2),
        (-60_000 * DAY_US, START_US + 30 * HOUR_US),
    )
    await write(operator, drawn(1, 1_500, 120))
    await run(operator)
    name = await registry.make(operator, "readings")
    at = Progress(START_US + 100 * HOUR_US, START_US + 4 * DAY_US)
    await registry.put(operator, name, {"rollups": at._asdict()})
    lookup = Lookup(lambda: shared_url, tables=NO_TABLES, rolled_curve=rolled_curve)
    try:
        for step_us, (from_us, to_us) in itertools.product(steps_us, times_us):
            asked = ("d1", "t", Between(from_us, to_us), step_us)
            rolled = await lookup.curve(*asked)
            await registry.remove(operator, name, "rollups")
            plain = await lookup.curve(*asked)
            await registry.put(operator, name, {"rollups": at._asdict()})
            assert plain["rollups"] is False
            assert rolled["rollups"] is (step_us % HOUR_US == 0 and to_us - from_us > 10**10)
            for a, b in zip(rolled["buckets"], plain["buckets"], strict=True):
                assert [*a[:2], *a[3:]] == [*b[:2], *b[3:]]
                assert a[2] == pytest.approx(b[2], rel=1e-9, abs=1e-9)
    finally:
        await lookup.close()


async def test_role_that_only_writes_leaves_records_and_reads_rollups(
    operator: asyncpg.Connection, role: str
) -> None:
    """It has no right on the tables of records; what may read the readings reads the rollups."""
    await operator.execute(f"grant usage on schema public to {role}")
    await operator.execute(f"grant insert, select on readings to {role}")
    await write(operator, drawn(1, 50, 5))
    await run(operator)
    await operator.execute(f"set role {role}")
    await write(operator, drawn(2, 50, 5))
    for table in ("readings_hourly", "readings_daily", "ingest_housekeeping"):
        await operator.fetch(f"select from {table}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await operator.execute("delete from readings_rollup_late")
    await operator.execute("reset role")
    await run_right(operator)
    await operator.execute("drop schema public cascade; create schema public")
