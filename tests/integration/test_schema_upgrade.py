"""The version of the schema: older, of today, newer, unreadable; the command; who may do what."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest

from ingest.app.database import (
    late_partitions,
    make_sink,
    make_target,
    partitions_ahead,
    timeouts,
)
from ingest.app.housekeeping import Housekeeping, housekeeping_jobs
from ingest.cli.doctor.checks import FAIL, WARN, partition_checks
from ingest.config.settings import Settings
from ingest.model.errors import StartError
from ingest.model.ports import Stored
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import registry, runs
from ingest.sinks.postgres.housekeeping.making import first_partitions
from ingest.sinks.postgres.housekeeping.partitions import DAY_US, span_bounds
from ingest.sinks.postgres.housekeeping.registry import OtherRun, alone
from ingest.sinks.postgres.housekeeping.runs import Report
from ingest.sinks.postgres.housekeeping.table_state import look_at
from ingest.sinks.postgres.schema import READINGS
from tests.support.commands import Here, with_user
from tests.support.constants import constants
from tests.support.partitions import make_partition
from tests.support.rows import encode, readings

OF_TODAY = '{"version": 1}'


def daily(**more: object) -> Settings:
    """Return settings with a partition for each day."""
    values = {"database_unsafe": True, "partition_span": "day", "command_s_max": 5.0}
    return Settings(**{**values, **more})  # type: ignore[arg-type]


@pytest.fixture
async def table(connection: asyncpg.Connection) -> asyncpg.Connection:
    """Give the owner's connection to a fresh table with a partition for each day."""
    await make(connection, daily())
    return connection


async def make(connection: asyncpg.Connection, settings: Settings) -> None:
    """Make the table as the service does."""
    target, ahead = make_target(settings), partitions_ahead(settings)
    begin = await first_partitions(connection, settings.partition_span, ahead, target)
    await schema.apply(connection, target, partitions=begin)


async def run(url: str, settings: Settings | None = None) -> Report:
    """Run the housekeeping once."""
    chosen = settings or daily()
    jobs, target = housekeeping_jobs(chosen), make_target(chosen)
    return await runs.run(url, timeouts(chosen), chosen.partition_span, jobs, target=target)


async def put(connection: asyncpg.Connection, value: str) -> None:
    """Let the schema have this version; with nothing it has no number."""
    await connection.execute("delete from ingest_housekeeping where key = 'schema'")
    if value:
        await connection.execute(
            "insert into ingest_housekeeping (key, value) values ('schema', $1::text::jsonb)", value
        )


async def got(connection: asyncpg.Connection) -> str | None:
    """Return the stored version as text."""
    found: str | None = await connection.fetchval(
        "select value::text from ingest_housekeeping where key = 'schema'"
    )
    return found


async def test_older_schema_works_and_is_upgraded_on_request(
    table: asyncpg.Connection, shared_url: str, here: Here
) -> None:
    """Without a number: as the code before it has left it. Upgraded once, by a yes."""
    assert await got(table) == OF_TODAY, "a new registry has the number"
    assert (await run(shared_url)).schema == registry.SchemaState(1, "public.ingest_housekeeping")
    await put(table, "")
    with constants(partitions_ahead=12):
        report = await run(shared_url)
    assert (report.schema.version, report.schema.refuses) == (0, False)
    assert report.did, "it works with both"
    assert not any(each.error for each in report.did)
    assert await got(table) is None, "nobody has asked"
    (_, found) = await partition_checks(daily(), shared_url)
    assert (found.name, found.state) == ("schema", WARN)
    assert "run `ingest schema upgrade`" in found.detail

    words = ("schema", "upgrade", "--database-url", shared_url)
    done = await here(*words)
    assert (done.code, "due: version 1: write down the version" in done.stdout) == (1, True)
    assert await got(table) is None
    done = await here(*words, "--yes", "--json")
    assert done.code == 0, done
    assert json.loads(done.stdout) == {
        "table": "public.readings",
        "version": 0,
        "version_of_program": 1,
        "due": [],
        "done": ["version 1: write down the version"],
    }
    assert await got(table) == OF_TODAY
    for more in ((), ("--yes",)):
        done = await here(*words, *more)
        assert (done.code, "nothing to upgrade: the schema has version 1" in done.stdout) == (
            0,
            True,
        )


@pytest.mark.parametrize("value", ['{"version": 2}', '{"version": "x"}', '{"version": -1}', "7"])
async def test_newer_schema_is_left_alone_and_readings_are_written(
    table: asyncpg.Connection,
    shared_url: str,
    here: Here,
    capsys: pytest.CaptureFixture[str],
    value: str,
) -> None:
    """No partition is made or dropped; commands say why; nothing pauses the writes."""
    before = await table.fetch("select * from ingest_housekeeping where key <> 'schema'")
    await put(table, value)
    settings = daily()
    with constants(partitions_ahead=12):
        report = await run(shared_url, settings)
    assert (report.schema.refuses, report.did) == (True, [])
    assert report.due, "there was something to do"
    view = await look_at(table, "readings", "day")
    with pytest.raises(StartError, match=r"the schema has .*, and this program knows 1"):
        await make_partition(table, view, span_bounds("day", 0))
    assert len((await look_at(table, "readings", "day")).partitions) == len(view.partitions)
    sink = make_sink(shared_url, settings)
    try:
        now = [each._replace(ts_us=view.now_us) for each in readings(3)]
        assert await sink.write(encode(now), 3, idempotent=False) == Stored(3, 0)
    finally:
        await sink.close()
    late = late_partitions(settings, lambda: shared_url, READINGS)
    days_ago_us = view.now_us - 3 * DAY_US
    assert not await late.make_for([days_ago_us])
    why = late.why_not(days_ago_us)
    assert why is not None
    assert ("and this program knows 1" in why.message, why.final) == (True, False)

    (_, found) = await partition_checks(settings, shared_url)
    assert (found.name, found.state) == ("schema", FAIL)
    for words, code in (
        (("housekeeping", "run"), 1),
        (("housekeeping", "run", "--yes", "--json"), 1),
        (("housekeeping", "plan"), 0),
        (("housekeeping", "status"), 0),
        (("schema", "upgrade", "--yes"), 2),
    ):
        done = await here(*words, "--database-url", shared_url, "--partition-span", "day")
        assert done.code == code, done
        assert "run the newer program again" in done.stdout + done.stderr
    stopping = asyncio.Event()
    background = asyncio.create_task(Housekeeping(settings, lambda: shared_url).run(stopping))
    told = ""
    async with asyncio.timeout(10):
        while "schema_version_differs" not in told:
            await asyncio.sleep(0.02)
            told += "".join(capsys.readouterr())
    stopping.set()
    await background
    assert await table.fetch("select * from ingest_housekeeping where key <> 'schema'") == before


async def test_upgrade_and_housekeeping_are_never_at_work_together(
    table: asyncpg.Connection, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that fails leaves the version; a run under way lets none begin."""
    await put(table, "")
    oid = (await look_at(table, "readings", "day")).oid
    other = await asyncpg.connect(shared_url)
    try:
        async with alone(table, oid):
            with pytest.raises(OtherRun):
                await registry.upgrade(other, "readings", oid)

        async def fails(connection: asyncpg.Connection, name: str) -> None:
            await connection.execute(f"alter table {name} add column more int")
            raise StartError("stopped half-way")

        steps = (*registry.STEPS, registry.Upgrade(2, "more", fails))
        monkeypatch.setattr(registry, "STEPS", steps)
        with pytest.raises(StartError, match="stopped half-way"):
            await registry.upgrade(other, "readings", oid)
    finally:
        await other.close()
    assert await got(table) == OF_TODAY, "the step before it is done, once"
    assert [each.to for each in registry.steps_from(1)] == [2]
    columns = "select count(*) from pg_attribute where attrelid = $1::regclass and attnum > 0"
    assert await table.fetchval(columns, registry.NAME) == 3, "and this one not in part"


async def test_role_that_only_writes_sees_no_version_and_needs_none(
    table: asyncpg.Connection, shared_url: str, here: Here, role: str
) -> None:
    """The command says whose role can see it: that of housekeeping_url."""
    await put(table, '{"version": 2}')
    await table.execute(f"grant usage on schema public to {role}")
    await table.execute(f"grant select, insert on readings to {role}")
    try:
        words = ("schema", "upgrade", "--database-url", with_user(shared_url, role))
        done = await here(*words)
        assert (done.code, "this role sees no table" in done.stdout) == (0, True), done
        done = await here(*words, "--housekeeping-url", shared_url)
        assert (done.code, "the schema has version 2" in done.stderr) == (2, True), done
        await put(table, "")
        await table.execute(f"grant select on ingest_housekeeping to {role}")
        done = await here(*words, "--yes")
        assert (done.code, "permission denied" in done.stderr) == (2, True), done
        assert await got(table) is None
    finally:
        await table.execute(f"drop owned by {role}")
