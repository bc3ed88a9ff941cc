"""Years of old readings that somebody brings in: partitions are made in groups, and bounded."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import date, timedelta
from pathlib import Path

import asyncpg
import pytest

from ingest.app.database import partitions_ahead
from ingest.app.housekeeping import PARTITION_MISSING, Housekeeping
from ingest.cli.doctor.checks import partition_checks
from ingest.sinks.postgres.housekeeping import runs
from ingest.sinks.postgres.housekeeping.making import (
    GROUP_MAX,
    make_partitions,
)
from ingest.sinks.postgres.housekeeping.partitions import (
    DAY,
    DAY_US,
    partition_name,
    partitions,
    span_bounds,
)
from ingest.sinks.postgres.housekeeping.table_state import look_at
from ingest.sinks.postgres.schema import READINGS
from ingest.system.clock import monotonic_s, unix_us
from ingest.years import late_partitions as late_module
from ingest.years.annex import late_partitions
from tests.integration.test_partitions import Path2, daily, make, quick
from tests.support.commands import Here, with_user
from tests.support.documents import DOCUMENTS
from tests.support.letters import read
from tests.support.partitions import make_partition
from tests.support.replay_rig import rows, running, until_live

DAYS = 5 * GROUP_MAX


@pytest.fixture
async def table(connection: asyncpg.Connection) -> asyncpg.Connection:
    """Give the owner's connection to a fresh table with a partition for each day."""
    await make(connection, daily())
    return connection


async def test_one_write_of_many_old_days_is_stored_at_once(
    table: asyncpg.Connection, shared_url: str, tmp_path: Path
) -> None:
    """No row of it becomes a dead letter; a second time nothing is made or stored."""
    now_us = unix_us()
    times_us = [now_us - days * DAY_US for days in range(DAYS)]
    path = Path2(shared_url, shared_url, tmp_path, quick())
    async with running(path):
        for _ in range(2):
            await path.send(*times_us)
    assert await rows(table) == DAYS
    assert len(path.late.made_s) == DAYS - 1
    assert read(tmp_path) == []
    assert (path.ledger.committed, path.ledger.duplicate) == (DAYS, DAYS)
    found = await partitions(table, "readings")
    assert all(each.ours and each.to_us - each.from_us == DAY_US for each in found)


async def test_write_that_may_take_no_longer_sets_the_rest_aside(
    table: asyncpg.Connection, shared_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one group: others of the batch must not wait. The rest comes back by itself."""
    monkeypatch.setattr(late_module, "AT_ONCE_S", 0.0)
    now_us = unix_us()
    path = Path2(shared_url, shared_url, tmp_path, quick())
    late = late_partitions(quick(), lambda: shared_url, READINGS)
    assert not await late.make_for([now_us - (DAYS + days) * DAY_US for days in range(DAYS)])
    assert len(late.made_s) == GROUP_MAX
    async with running(path):
        await path.send(*(now_us - days * DAY_US for days in range(DAYS)))
        await until_live(path.place, 0)
    assert await rows(table) == DAYS
    assert path.ledger.imbalance == 0


async def test_group_leaves_out_what_somebody_else_has_made(table: asyncpg.Connection) -> None:
    """Two who bring in the same days at the same time: each day is made once."""
    view = await look_at(table, "readings", DAY)
    spans = [span_bounds(DAY, day * DAY_US) for day in range(4)]
    assert await make_partition(table, view, spans[2]) == "readings_p19700103"
    made, failed = await make_partitions(table, view, spans)
    names = ["readings_p19700101", "readings_p19700102", "", "readings_p19700104"]
    assert (list(made.values()), failed) == (names, None)
    assert await make_partitions(table, view, spans) == (dict.fromkeys(spans, ""), None)
    found = [each for each in await partitions(table, "readings") if each.to_us <= 4 * DAY_US]
    assert [each[1:3] for each in found] == spans
    assert all(each.ours for each in found)


async def test_two_processes_bring_in_the_same_days(
    table: asyncpg.Connection, shared_url: str
) -> None:
    """Each finds in the end that all days have a partition."""
    times_us = [unix_us() - days * DAY_US for days in range(DAYS)]
    patient = daily(command_s_max=15.0)
    both = [late_partitions(patient, lambda: shared_url, READINGS) for _ in range(2)]
    done = await asyncio.gather(*(each.make_for(times_us) for each in both))
    for each, covers in zip(both, done, strict=True):
        assert covers or await each.make_for(times_us)
    assert sum(len(each.made_s) for each in both) == DAYS - 1


async def test_day_that_cannot_be_made_hides_no_day_of_another_process(
    table: asyncpg.Connection, shared_url: str
) -> None:
    """Of one group, one day is made by somebody else meanwhile, and one cannot be made."""
    late = late_partitions(daily(), lambda: shared_url, READINGS)
    await late.make_for([unix_us()])
    view = await look_at(table, "readings", DAY)
    taken, free = (span_bounds(DAY, unix_us() - days * DAY_US) for days in (300, 301))
    await make_partition(table, view, free)
    name = partition_name("readings", DAY, taken.from_us)
    await table.execute(f"create type {name} as enum ()")
    try:
        assert not await late.make_for([taken.from_us, free.from_us])
    finally:
        await table.execute(f"drop type {name}")
    assert late.is_covered(free.from_us)
    assert not late.is_covered(taken.from_us)


async def test_day_that_cannot_be_made_holds_up_no_other(
    table: asyncpg.Connection, shared_url: str
) -> None:
    """A type has the name of its partition. The step of this day says so, and no other one."""
    now_us = unix_us()
    late = late_partitions(daily(), lambda: shared_url, READINGS)
    times_us = [now_us - days * DAY_US for days in range(300, 305)]
    job = partitions_ahead(daily(), from_us=now_us - 20 * DAY_US)
    view = await look_at(table, "readings", DAY)
    taken = [
        (await job.plan(table, view))[2].partition,
        partition_name("readings", DAY, span_bounds(DAY, times_us[2]).from_us),
    ]
    for each in taken:
        await table.execute(f"create type {each} as enum ()")
    try:
        assert not await late.make_for(times_us)
        assert list(map(late.is_covered, times_us)) == [True, True, False, True, True]
        why = late.why_not(times_us[2])
        assert why is not None
        assert f'type "{taken[1]}" already exists' in why.message
        did = await runs.do_due(table, view, [job])
        assert [each.step.partition for each in did if each.error] == taken[:1]
        assert len(did) == 20
    finally:
        for each in taken:
            await table.execute(f"drop type {each}")
    view = await look_at(table, "readings", DAY)
    assert [each.partition for each in await job.plan(table, view)] == taken[:1]


async def test_database_that_cannot_be_looked_at_is_left_alone_for_a_while(
    table: asyncpg.Connection, shared_url: str
) -> None:
    """Else each write of an old reading would wait for it."""
    late = late_partitions(daily(), lambda: shared_url, READINGS)
    async with table.transaction():
        await table.execute("lock table ingest_housekeeping")
        assert not await late.make_for([0])
        began_s = monotonic_s()
        assert not await late.make_for([0])
        assert monotonic_s() - began_s < 0.1


async def test_step_of_the_housekeeping_makes_the_next_ones_too(table: asyncpg.Connection) -> None:
    """In one transaction, so that `--from` takes seconds for years."""
    job = partitions_ahead(daily(), from_us=unix_us() - DAYS * DAY_US)
    before = len(await partitions(table, "readings"))
    view = await look_at(table, "readings", DAY)
    steps = await job.plan(table, view)
    assert len(steps) == DAYS
    await job.do(table, view, steps[0])
    assert len(await partitions(table, "readings")) == before + GROUP_MAX
    for step in steps[1:]:
        await job.do(table, view, step)
    assert len(await partitions(table, "readings")) == before + DAYS


async def test_command_for_years_says_what_it_did_in_a_few_lines(
    here: Here, table: asyncpg.Connection, shared_url: str
) -> None:
    """The first fifty partitions, and how many more; a second run makes nothing."""
    before = len(await partitions(table, "readings"))
    first = date.today() - timedelta(DAYS)
    await table.execute("insert into readings values (now(), 'd', 'm', 1)")
    words = ("--from", first.isoformat(), "--database-url", shared_url)
    done = await here("housekeeping", "run", *words)
    lines = done.stdout.splitlines()
    assert lines[0] == f"make readings_p{first:%Y%m%d}: done"
    assert (len(lines), lines[50].endswith("more done; --json has all")) == (51, True)
    assert len(await partitions(table, "readings")) >= before + DAYS - 1
    assert (await here("housekeeping", "run", *words)).stdout.startswith("nothing was due")
    status = await here("housekeeping", "status", "--json", "--database-url", shared_url)
    assert json.loads(status.stdout)["oldest"] is not None, "many empty partitions come first"


async def test_role_without_the_right_says_what_to_do_until_it_is_done(
    here: Here, table: asyncpg.Connection, shared_url: str, tmp_path: Path, role: str
) -> None:
    """On /readyz, by `doctor` and by `run`; then the rows come back by themselves."""
    page = DOCUMENTS["docs/run/database.md"]
    apply, run = (each.split() for each in re.findall(r"`\./run ([^`]*OWNER_URL[^`]*)`", page))
    words = {"OWNER_URL": shared_url, "ingest": role, "2025-01-01": "2026-01-01"}
    assert (await here(*(words.get(each, each) for each in apply))).code == 0
    today_us = unix_us() // DAY_US * DAY_US
    words["OWNER_URL"] = url = with_user(shared_url, role)
    command = [words.get(each, each) for each in run]
    done = await here(*command)
    assert (done.code, "the URL of the table's owner" in done.stdout) == (1, True), done
    await table.execute(f"grant select on ingest_housekeeping to {role}")
    done = await here(*command)
    assert (done.code, done.stdout.count("does not own")) == (1, 4), "once for all, with examples"
    settings = quick(housekeeping=False)
    path = Path2(url, url, tmp_path, settings)
    housekeeping = Housekeeping(settings, lambda: url)
    assert path.sink.late is not None
    housekeeping.late = path.sink.late
    (check,) = await partition_checks(settings, url)
    assert "`ingest housekeeping run --from DAY`" in check.detail
    stopping = asyncio.Event()
    looking = asyncio.create_task(housekeeping.run(stopping))
    try:
        async with running(path):
            await path.send(today_us, today_us - 400 * DAY_US, today_us - 399 * DAY_US)
            assert housekeeping.trouble().cause == PARTITION_MISSING
            assert "does not own" in housekeeping.trouble().details
            assert len(read(tmp_path)) == 2
            view = await look_at(table, "readings", DAY)
            spans = [span_bounds(DAY, today_us - days * DAY_US) for days in (400, 399)]
            await make_partitions(table, view, spans)
            await until_live(path.place, 0)
            async with asyncio.timeout(5):
                while housekeeping.trouble().cause:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert await rows(table) == 3
    finally:
        stopping.set()
        await looking
        await table.execute(f"drop owned by {role}")
