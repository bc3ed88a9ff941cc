"""Partitions on a real server: made at the creation, ahead of time, and for late readings."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from datetime import date
from itertools import pairwise
from pathlib import Path

import asyncpg
import pytest

from ingest.app import annexes, database
from ingest.app.database import partitions_ahead, timeouts
from ingest.app.housekeeping import housekeeping_jobs
from ingest.cli.doctor.checks import partition_checks
from ingest.cli.doctor.command import machine_checks
from ingest.config.settings import Settings
from ingest.model.errors import StartError
from ingest.model.reading import EXHAUSTED, REFUSED, Reading
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import known_partitions, registry, runs
from ingest.sinks.postgres.housekeeping.known_partitions import PartitionsOfTables
from ingest.sinks.postgres.housekeeping.making import first_partitions
from ingest.sinks.postgres.housekeeping.partitions import (
    BEGINNING_US,
    DAY,
    DAY_US,
    END_US,
    MONTH,
    TimeSpan,
    partitions,
    span_bounds,
)
from ingest.sinks.postgres.housekeeping.runs import Report
from ingest.sinks.postgres.housekeeping.table_state import look_at
from ingest.sinks.postgres.schema import READINGS
from ingest.system.clock import unix_us
from ingest.years.annex import late_partitions, retention_policy
from tests.support.commands import Here, with_user
from tests.support.constants import constants
from tests.support.journals import block_of
from tests.support.letters import read
from tests.support.partitions import make_partition
from tests.support.receiver import until
from tests.support.replay_rig import Half, InFolder, rows, running, until_live


def daily(**more: object) -> Settings:
    """Return the settings of the tests, with a partition for each day."""
    values = {"database_unsafe": True, "partition_span": DAY, "command_s_max": 5.0}
    return Settings(**{**values, **more})  # type: ignore[arg-type]


async def make(connection: asyncpg.Connection, settings: Settings) -> list[str]:
    """Make the table as the service does."""
    ahead = partitions_ahead(settings)
    begin = await first_partitions(connection, settings.partition_span, ahead)
    return await schema.apply(connection, partitions=begin)


async def run(url: str, settings: Settings) -> Report:
    """Run the housekeeping once."""
    jobs = housekeeping_jobs(settings)
    return await runs.run(url, timeouts(settings), settings.partition_span, jobs)


async def look(url: str, settings: Settings) -> Report:
    """Look at the table, and change nothing."""
    jobs = housekeeping_jobs(settings)
    return await runs.look(url, timeouts(settings), settings.partition_span, jobs)


@pytest.fixture
async def table(connection: asyncpg.Connection) -> asyncpg.Connection:
    """Give the owner's connection to a fresh table with a partition for each day."""
    await make(connection, daily())
    return connection


@pytest.mark.parametrize(("span", "count"), [(DAY, 9), (MONTH, 8)])
async def test_new_table_has_the_partitions_that_it_will_need(
    connection: asyncpg.Connection, span: str, count: int
) -> None:
    """Same columns and key; from now to `ts_ahead_s_max` and seven spans more; no default."""
    settings = daily(partition_span=span, ts_ahead_s_max=86_400.0 if span == DAY else 60.0)
    done = await make(connection, settings)
    assert (await schema.look(connection)).difference is None
    assert await make(connection, settings) == ["the table readings was there, and fits"]
    await connection.execute("set timezone = 'Pacific/Apia'; set datestyle = 'German'")
    found = await partitions(connection, "readings")
    assert len(found) in (count, count + 1)  # one more if a span ends in this moment
    assert done[1].startswith(f"made {len(found)} partitions")
    assert found[0][1:3] == span_bounds(span, unix_us())
    for before, after in pairwise(found):
        assert before.to_us == after.from_us
        assert span_bounds(span, before.from_us) == (before.from_us, before.to_us)
    assert all(each.ours and each.bytes > 0 for each in found)
    view = await look_at(connection, "readings", span)
    assert (view.spans_ahead, view.has_default) == (len(found) - 1, False)
    for setting in ("none", DAY):  # `day` is the default: it changes no table of months
        assert (await look_at(connection, "readings", setting)).span == span
    keys = await connection.fetch(
        "select pg_get_indexdef(indexrelid) as made from pg_index where indisprimary"
        " and indrelid = any (select inhrelid from pg_inherits union select 'readings'::regclass)"
    )
    assert len(keys) == len(found) + 1
    assert {each["made"].partition("btree")[2] for each in keys} == {
        " (ts, device_id, metric, value)"
    }


@pytest.mark.parametrize(
    "moment",
    ["2024-02-29", "1969-12-31", "0001-01-01", "0044-03-15 BC", "9999-12-31", "12026-01-31"],
)
async def test_bounds_in_the_catalog_are_those_that_were_asked_for(
    table: asyncpg.Connection, moment: str
) -> None:
    """Leap days, before 1970, years that datetime does not know."""
    ts_us = await table.fetchval(
        "select (extract(epoch from $1::text::timestamptz) * 1000000)::int8", f"{moment} 12:00 UTC"
    )
    for span in (DAY, MONTH):
        view = await look_at(table, "readings", span, sizes=False)
        bounds = span_bounds(span, ts_us)
        if span == MONTH:
            bounds = TimeSpan(bounds.to_us, span_bounds(span, bounds.to_us).to_us)  # the next one
        name = await make_partition(table, view, bounds)
        (found,) = [each for each in await partitions(table, "readings") if each.name == name]
        assert found[1:3] == bounds
        assert await make_partition(table, view, bounds) is None  # there is one


async def test_housekeeping_makes_what_is_missing_and_then_nothing(
    table: asyncpg.Connection, shared_url: str
) -> None:
    """Of two runs at the same time one does it. A lock of somebody else delays no write."""
    found = await partitions(table, "readings")
    for each in found[2:]:
        await table.execute(f"drop table {each.name}")
    settings = daily()
    reports = await asyncio.gather(*(run(shared_url, settings) for _ in range(3)))
    assert sum(len(each.did) for each in reports) >= len(found) - 2
    assert not any(each.error for report in reports for each in report.did)
    assert [each[:3] for each in await partitions(table, "readings")] == [e[:3] for e in found]
    assert (await run(shared_url, settings)).did == []


async def test_run_that_finds_a_lock_leaves_the_step_and_holds_up_no_write(
    table: asyncpg.Connection, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody analyzes or alters the table: the step fails in bounded time, writes go on."""
    monkeypatch.setattr("ingest.sinks.postgres.housekeeping.making.LOCK_MS", 50)
    monkeypatch.setattr("ingest.sinks.postgres.housekeeping.runs.TRY_AGAIN_S", 0.2)
    last = (await partitions(table, "readings"))[-1]
    await table.execute(f"drop table {last.name}")
    other = await asyncpg.connect(shared_url)
    try:
        async with other.transaction():
            await other.execute("lock table readings in share update exclusive mode")
            running_now = asyncio.create_task(run(shared_url, daily()))
            while not running_now.done():
                async with asyncio.timeout(1):
                    await table.execute(
                        "insert into readings values (clock_timestamp(), 'd', 'm', 1)"
                    )
                await asyncio.sleep(0.01)
            (did,) = running_now.result().did
            assert "lock timeout" in did.error
    finally:
        await other.close()
    (did,) = (await run(shared_url, daily())).did
    assert (did.step.partition, did.error) == (last.name, "")


async def test_partition_that_is_cut_off_half_made_leaves_nothing(
    table: asyncpg.Connection, shared_url: str
) -> None:
    """The server process ends between the new table and its attachment, as by kill -9."""
    view = await look_at(table, "readings", DAY)
    bounds = span_bounds(DAY, 0)
    other, maker = await asyncpg.connect(shared_url), await asyncpg.connect(shared_url)
    pid = await maker.fetchval("select pg_backend_pid()")
    try:
        async with other.transaction():
            await other.execute("lock table readings in share update exclusive mode")
            making = asyncio.create_task(make_partition(maker, view, bounds))
            waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = $1"
            while not await table.fetchval(waits, pid):  # noqa: ASYNC110  of the server
                await asyncio.sleep(0.01)
            await table.execute("select pg_terminate_backend($1)", pid)
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                await making
    finally:
        await other.close()
        maker.terminate()
    assert await table.fetchval("select to_regclass('readings_p19700101')") is None
    assert await make_partition(table, view, bounds) == "readings_p19700101"


async def test_detached_partition_keeps_its_name_and_its_readings(
    table: asyncpg.Connection,
) -> None:
    """Somebody detached it by hand: a late reading of that day gets another one."""
    bounds = span_bounds(DAY, 0)
    view = await look_at(table, "readings", DAY)
    assert await make_partition(table, view, bounds) == "readings_p19700101"
    await table.execute("alter table readings detach partition readings_p19700101")
    assert await make_partition(table, view, bounds) == "readings_p19700101_2"
    known = await partitions(table, "readings")
    assert known[0][:3] == ("readings_p19700101_2", *bounds)


async def test_tables_of_others_are_left_alone(
    connection: asyncpg.Connection, shared_url: str
) -> None:
    """A plain table of an earlier version, and one that somebody else has partitioned."""
    assert (await run(shared_url, daily())).view.kind == "missing"
    await schema.apply(connection)
    report = await run(shared_url, daily())
    assert (report.view.kind, report.due, report.did) == ("plain", [], [])
    await connection.execute(
        """drop table readings; create table readings (ts timestamptz, device_id text,
        metric text, value float8) partition by range (ts);
        create table week partition of readings for values from ('-infinity') to ('2026-11-30');
        create table rest partition of readings for values from ('2026-11-30') to ('infinity')"""
    )
    report = await run(shared_url, daily())
    assert (report.view.kind, report.view.ours, report.due) == ("partitioned", False, [])
    assert report.view.partitions[0].name == "week"
    assert not report.view.partitions[0].ours
    found = report.view.partitions
    assert (found[0].from_us, found[1].to_us) == (BEGINNING_US, END_US)
    await connection.execute("drop table rest; create table rest partition of readings default")
    view = (await run(shared_url, daily())).view
    assert (view.has_default, len(view.partitions)) == (True, 1)
    assert "default partition" in view.cannot_make
    assert view.spans_ahead > 500
    late = late_partitions(daily(), lambda: shared_url, READINGS)
    assert not await late.make_for([0])
    assert (late.knows, late.why_not(0)) == (False, None), "the default partition takes it"


# Readings that find no partition


class Path2(Half):
    """The second half of the service, with partitions for late readings."""

    def __init__(self, url: str, owner_url: str, folder: Path, settings: Settings) -> None:
        self.place = InFolder(folder, url)
        letters = self.place.queue()
        super().__init__(url, letters, letters.backend.replay_source(0.01), settings)
        self.late = late_partitions(settings, lambda: owner_url, READINGS)
        self.sink.late = PartitionsOfTables(lambda _: self.late)

    async def send(self, *times_us: int) -> None:
        """Post readings of these times."""
        readings = [Reading(ts_us, "d", "m", float(n)) for n, ts_us in enumerate(times_us)]
        block = block_of(readings)
        reservation = await self.buffer.reserve(len(readings), len(block.tuples))
        self.ledger.received += len(readings)
        self.ledger.accepted += len(readings)
        reservation.put(block)
        async with asyncio.timeout(10):
            while self.ledger.held:  # noqa: ASYNC110  it is a number
                await asyncio.sleep(0.005)
        assert self.ledger.imbalance == 0


def quick(**more: object) -> Settings:
    """Return settings with which the replay looks often."""
    return daily(batch_linger_s=0.001, wait_s_max=0.1, **more)


async def test_late_reading_makes_its_partition_and_is_stored_once(
    table: asyncpg.Connection, shared_url: str, tmp_path: Path
) -> None:
    """Among readings of now; a second time nothing is stored. One too old is a dead letter."""
    now_us = unix_us()
    with constants(late_days_max=100):
        path = Path2(shared_url, shared_url, tmp_path, quick())
    times_us = [now_us, now_us - 50 * DAY_US, now_us - 99 * DAY_US, now_us - 102 * DAY_US]
    async with running(path):
        for _ in range(2):
            await path.send(*times_us)
        assert await rows(table) == 3
        (letter,) = read(tmp_path)
        assert (letter.reason, letter.code) == (REFUSED, "ts_too_old")
        assert "older than 100 days" in letter.message
        assert len(path.late.made_s) == 2
    settings = daily(keep_hot="12h")
    late = late_partitions(settings, lambda: shared_url, READINGS)
    await late.make_for([now_us])
    why = late.why_not(now_us - 20 * DAY_US)
    assert why is not None
    assert not why.final, "nobody has confirmed keep_hot yet"
    kept, policy = await registry.make(table, "readings"), retention_policy(settings)
    assert policy is not None
    await registry.put(table, kept, {registry.KEEP_HOT: policy.entry(now_us)})
    late = late_partitions(settings, lambda: shared_url, READINGS)
    await late.make_for([now_us])
    assert late.why_not(now_us - 20 * DAY_US) == ("older than 12h (keep_hot)", True, False)
    ledger = path.ledger
    assert (ledger.committed, ledger.duplicate, ledger.dead_lettered[REFUSED]) == (3, 3, 2)
    assert ledger.retries["hold"] == ledger.retries["retry"] == 0
    names = {each.name for each in await partitions(table, "readings") if each.to_us < now_us}
    assert len(names) == 2


async def test_without_rights_only_these_rows_are_set_aside_and_come_back(
    table: asyncpg.Connection, shared_url: str, tmp_path: Path, role: str
) -> None:
    """Many of them from all senders never pause writes. They return once the owner has acted."""
    await schema.apply(table, role=role)
    now_us = unix_us()
    url = with_user(shared_url, role)
    with constants(breaker_window_rows=50, breaker_rows_max=5):
        path = Path2(url, url, tmp_path, quick())
    try:
        async with running(path):
            await path.send(now_us - 30 * DAY_US)
            for number in range(1, 60):
                await path.send(now_us + number, now_us - 30 * DAY_US + number)
            await path.send(now_us)
            assert await rows(table) == 60
            assert {(each.reason, each.code) for each in read(tmp_path)} == {
                (EXHAUSTED, "no_partition")
            }
            assert path.database_state.is_open
            assert path.ledger.retries["hold"] == path.ledger.dead_lettered[REFUSED] == 0
            view = await look_at(table, "readings", DAY)
            assert view.ours
            await make_partition(table, view, span_bounds(DAY, now_us - 30 * DAY_US))
            await until_live(path.place, 0)
        assert await rows(table) == 120
        assert path.ledger.imbalance == 0
    finally:
        await table.execute(f"drop owned by {role}")


async def test_partitions_that_have_ended_pause_writes(
    table: asyncpg.Connection,
    shared_url: str,
    tmp_path: Path,
    role: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dead letter for each reading of a fleet, until somebody sees them, helps nobody."""
    monkeypatch.setattr(known_partitions, "FRESH_S", 0.1)
    monkeypatch.setattr(known_partitions, "LOOK_S_MIN", 0.05)
    await schema.apply(table, role=role)
    ahead_us = unix_us() + 900 * DAY_US
    url = with_user(shared_url, role)
    with constants(breaker_window_rows=50, breaker_rows_max=5):
        path = Path2(url, url, tmp_path, quick())
    try:
        async with running(path):
            sent = [asyncio.create_task(path.send(ahead_us + number)) for number in range(60)]
            await until(lambda: path.database_state.hold_reason == "breaker")
            held = path.ledger.held
            assert held > 40
            await make_partition(
                table, await look_at(table, "readings", DAY), span_bounds(DAY, ahead_us)
            )
            await asyncio.gather(*sent)
            await until_live(path.place, 0)
        assert await rows(table) == 60
    finally:
        await table.execute(f"drop owned by {role}")


async def test_without_the_annex_late_readings_wait_until_a_person_makes_their_partitions(
    table: asyncpg.Connection, shared_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, and the reason is told. A setting that needs the annex is refused."""
    now_us, late_us = unix_us(), unix_us() - 30 * DAY_US
    path = Path2(shared_url, shared_url, tmp_path, quick())
    with monkeypatch.context() as patched:
        patched.setattr(annexes, "FOLDERS", ())
        annexes.annexes.cache_clear()
        late = database.late_partitions(quick(), lambda: shared_url, READINGS)
        path.sink.late = PartitionsOfTables(lambda _: late)
        (ahead,) = housekeeping_jobs(daily(), from_us=late_us)
        for name, value in {"keep_hot": "30d", "archive_dir": "/x", "rollups": True}.items():
            with pytest.raises(StartError) as failed:
                housekeeping_jobs(daily(**{name: value}))
            assert str(failed.value) == (
                f"the setting {name} needs the extra `archive`: install iot-ingest[archive]"
            )
            assert [each.detail for each in machine_checks(daily(**{name: value}))][1] == str(
                failed.value
            )
    annexes.annexes.cache_clear()
    async with running(path):
        await path.send(now_us, late_us)
        assert await rows(table) == 1
        (letter,) = read(tmp_path)
        assert (letter.reason, letter.code) == (EXHAUSTED, "no_partition")
        assert "not installed (iot-ingest[archive])" in letter.message
        assert "not installed (iot-ingest[archive])" in late.lacking
        report = await runs.run(shared_url, timeouts(daily()), DAY, [ahead])
        assert len(report.did) == 30
        late.seen(report.view)
        assert late.lacking == ""
        await until_live(path.place, 0)
    assert await rows(table) == 2
    assert path.ledger.retries["hold"] == path.ledger.imbalance == 0


async def test_number_of_partitions_is_bounded(
    table: asyncpg.Connection, shared_url: str, tmp_path: Path
) -> None:
    """A device with a wild clock: the newest days first, within a day half of those that are left.

    The rest waits, is told, and comes back by itself.
    """
    count = len(await partitions(table, "readings"))
    path = Path2(shared_url, shared_url, tmp_path, quick(partitions_max=count + 13))
    now_us = unix_us()
    async with running(path):
        await path.send(now_us, *(now_us - days * DAY_US for days in range(1, 11)))
        assert len(await partitions(table, "readings")) == count + 7
        letters = read(tmp_path)
        assert {each.code for each in letters} == {"no_partition"}
        assert len(letters) == 3
        assert "7 were made within a day" in letters[0].message
        assert f"partitions_max ({count + 13}) leaves" in path.late.lacking
        path.late.made_s = deque(each - 86_400 for each in path.late.made_s)  # a day later
        await until_live(path.place, 0)
    assert await rows(table) == 11


async def test_schema_apply_says_who_has_to_make_further_partitions(
    here: Here, connection: asyncpg.Connection, shared_url: str, role: str
) -> None:
    """A role that does not own the table, and then what `doctor` says with its URL."""
    words = ("--partition-span", "month")
    done = await here("schema", "apply", "--role", role, "--database-url", shared_url, *words)
    assert f"the role {role} cannot make further partitions" in done.stdout
    later = (await partitions(connection, "readings"))[1]
    url = with_user(shared_url, role)
    (check,) = await partition_checks(daily(housekeeping=False), url)
    assert (check.state, "a job with the owner's role" in check.detail) == ("ok", True)
    await connection.execute(f"drop table {later.name}")
    try:
        report = await look(url, daily(partition_span=MONTH))
        assert report.view.cannot_make.startswith(f"the role {role} does not own")
        checks = await partition_checks(daily(), url)
        assert "does not own" in checks[0].detail
        assert checks[0].state != "ok"
        own = daily(housekeeping_url=shared_url, partition_span=MONTH)
        checks = await partition_checks(own, url)
        assert "only 0" in checks[0].detail
    finally:
        await connection.execute(f"drop owned by {role}")


async def test_command_plans_runs_and_shows(
    here: Here, table: asyncpg.Connection, shared_url: str
) -> None:
    """As text and as JSON; after a run nothing is due."""
    last = (await partitions(table, "readings"))[-1]
    await table.execute(f"drop table {last.name}")
    words = ("--database-url", shared_url, "--partition-span", "day")
    done = await here("housekeeping", "plan", *words)
    assert done.stdout == f"make {last.name}: readings of this time may come soon\n"
    done = await here("housekeeping", "run", "--json", *words)
    assert json.loads(done.stdout)["did"][0]["error"] == ""
    done = await here("housekeeping", "run", *words)
    assert done.stdout.startswith("nothing was due")
    done = await here("housekeeping", "status", *words)
    assert "ahead:" in done.stdout
    found = json.loads((await here("housekeeping", "status", "--json", *words)).stdout)
    assert (found["ours"], found["due"], found["span"]) == (True, 0, "day")
    assert found["partitions"] == found["partitions_ours"] == found["spans_ahead"] + 1


async def test_partitions_are_made_from_a_day_on(
    here: Here, table: asyncpg.Connection, shared_url: str
) -> None:
    """For older readings that somebody brings in; not if there would be too many."""
    before = len(await partitions(table, "readings"))
    words = ("--database-url", shared_url, "--partition-span", "day")
    today = span_bounds(DAY, unix_us()).from_us // DAY_US
    first = date.fromordinal(date(1970, 1, 1).toordinal() + today - 12).isoformat()
    refused = await here("housekeeping", "run", "--from", first, "--partitions-max=20", *words)
    assert (refused.code, "more than partitions_max (20)" in refused.stderr) == (2, True)
    planned = await here("housekeeping", "plan", "--from", first, *words)
    assert planned.stdout.count("make readings_p") == 12
    assert (await here("housekeeping", "run", "--from", first, *words)).code == 0
    found = await partitions(table, "readings")
    assert (len(found), found[0].from_us) == (before + 12, (today - 12) * DAY_US)
    assert all(each.ours for each in found)
    await table.execute("insert into readings values (now() - '11 days'::interval, 'd', 'm', 1)")
    wrong = await here("housekeeping", "run", "--from", "soon", *words)
    assert (wrong.code, "no day such as" in wrong.stderr) == (2, True)


async def test_bounds_of_infinite_times_are_read(table: asyncpg.Connection) -> None:
    """An operator may write 'infinity' for MAXVALUE; one partition of it must not stop all."""
    before = await partitions(table, "readings")
    for name, bounds in (
        ("far", "('2090-01-01') to ('infinity')"),
        ("beyond", "('infinity') to (maxvalue)"),
        ("old", "('-infinity') to ('1980-01-01')"),
        ("older", "(minvalue) to ('-infinity')"),
    ):
        await table.execute(f"create table {name} partition of readings for values from {bounds}")
    old, *found, far = await partitions(table, "readings")
    assert found == before
    assert (old.name, old.from_us) == ("old", -(2**63))
    assert (far.name, far.to_us) == ("far", 2**63 - 1)
