"""Partitions of several tables in one database: each has its own, and loses none to others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from pyarrow import parquet

from ingest.app.database import late_of_tables, make_replay_sink, partitions_ahead
from ingest.app.housekeeping import METRICS, PARTITIONS_END, RETENTION_WAITS, Housekeeping
from ingest.cli.doctor.checks import partition_checks
from ingest.config.declared_tables import make_tables
from ingest.config.settings import Settings
from ingest.model.placed_rows import place_readings
from ingest.model.ports import Stored
from ingest.model.reading import Reading
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.making import first_partitions, partitions_like
from ingest.sinks.postgres.housekeeping.partitions import (
    DAY,
    DAY_US,
    TimeSpan,
    partitions,
    span_bounds,
)
from ingest.sinks.postgres.housekeeping.table_state import look_at
from ingest.sinks.postgres.schema import READINGS, TargetTable, quoted
from ingest.system.clock import unix_us
from tests.support.commands import Here
from tests.support.partitions import make_partition

CLIMATE = TargetTable("public", "climate")
DECLARED = """
[[table]]
name = "climate"
metrics = ["temperature"]
since = 2026-01-01T00:00:00Z
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Give settings that declare a table."""
    path = tmp_path / "tables.toml"
    path.write_text(DECLARED)
    return Settings(tables_file=str(path), keep_hot="2d", database_unsafe=True, command_s_max=5.0)


@pytest.fixture
async def both(connection: asyncpg.Connection, settings: Settings) -> asyncpg.Connection:
    """Give the owner's connection to `readings` and `climate`, each with a partition for a day."""
    ahead = partitions_ahead(settings)
    await schema.apply(connection, partitions=await first_partitions(connection, DAY, ahead))
    await connection.execute(
        "create table climate (ts timestamptz, device_id text, temperature float8, "
        "primary key (ts, device_id)) partition by range (ts); comment on column "
        "climate.temperature is 'iot-ingest: since 2026-01-01T00:00:00Z'"
    )
    begin = await partitions_like(connection, READINGS, DAY, ahead, CLIMATE)
    assert begin is not None
    await begin(connection)
    assert len(await partitions(connection, "climate")) in (9, 10)  # at the end of a day one more
    return connection


@asynccontextmanager
async def running(housekeeping: Housekeeping) -> AsyncIterator[None]:
    """Run the housekeeping."""
    stopping = asyncio.Event()
    task = asyncio.create_task(housekeeping.run(stopping))
    try:
        async with asyncio.timeout(20):
            yield
    finally:
        stopping.set()
        await task


def flags(url: str, settings: Settings) -> list[str]:
    """Return the same settings for a command."""
    words = ["--database-url", url, "--tables-file", settings.tables_file]
    return [*words, "--keep-hot", settings.keep_hot]


def figures(housekeeping: Housekeeping) -> dict[str, float | None]:
    """Return all figures of the housekeeping."""
    return {each.name: each.read(housekeeping) for each in METRICS}


async def test_each_table_has_partitions_ahead_and_its_own_old_ones_leave(
    both: asyncpg.Connection, shared_url: str, settings: Settings, here: Here
) -> None:
    """What waits or is lacking is told with the name of its table; figures are over all."""
    now_us = unix_us()
    for name in ("readings", "climate"):
        view = await look_at(both, name, DAY)
        for days in (4, 3, 1):
            assert await make_partition(both, view, span_bounds(DAY, now_us - days * DAY_US))
    old, last = (await partitions(both, "climate"))[0], (await partitions(both, "climate"))[-1]
    await both.execute(
        f"drop table {last.name}; insert into climate values (now() - interval '4 days', 'd', 1)"
    )
    housekeeping = Housekeeping(settings, lambda: shared_url)
    async with running(housekeeping):
        while housekeeping.waiting != 8:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert housekeeping.trouble().cause == RETENTION_WAITS
        seen = figures(housekeeping)
        counts = [len(await partitions(both, name)) for name in ("readings", "climate")]
        assert (seen["partitions"], counts[0]) == (sum(counts), counts[1])
        assert seen["partition_spans_ahead"] == counts[0] - 4
        assert (await partitions(both, "climate"))[-1].name == last.name, "it was made again"
        assert (seen["housekeeping_steps_failed"], seen["housekeeping_steps_waiting"]) == (0, 8)
        assert 3.9 * 86_400 < (seen["table_oldest_age_seconds"] or 0) < 5 * 86_400
    words = flags(shared_url, settings)
    plan = (await here("housekeeping", "plan", *words)).stdout
    assert f"detach, drop {old.name} (waits)" in plan
    assert (await here("schema", "apply", *words)).code == 0  # it makes the view
    for command, code in (("plan", 0), ("run", 1)):
        without = await here("housekeeping", command, "--database-url", shared_url)
        assert (without.code, '"climate" is not declared any more' in without.stdout) == (
            code,
            True,
        )
    (done, again) = [await here("housekeeping", "run", "--yes", *words) for _ in range(2)]
    assert (done.code, f"drop {old.name}: done" in done.stdout) == (0, True)
    assert again.stdout.count("nothing was due") == 2
    assert await both.fetchval("select count(*) from climate") == 0
    status = json.loads((await here("housekeeping", "status", "--json", *words)).stdout)
    (declared,) = status["declared"]
    assert (declared["table"], declared["partitions"]) == ("public.climate", counts[1] - 2)
    details = [each.detail for each in await partition_checks(settings, shared_url)]
    assert [each.startswith("climate: ") for each in details] == [False, True]


async def test_trouble_of_one_table_names_it_and_delays_nothing_of_the_others(
    both: asyncpg.Connection, shared_url: str, settings: Settings, here: Here
) -> None:
    """Few partitions that a job should make; then the records of a table are lost."""
    words = flags(shared_url, settings)
    made = await partitions(both, "climate")
    for each in made[2:]:
        await both.execute(f"drop table {each.name}")
    housekeeping = Housekeeping(replace(settings, housekeeping=False), lambda: shared_url)
    async with running(housekeeping):
        while housekeeping.trouble().cause != PARTITIONS_END:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert housekeeping.trouble().details == "few are left of public.climate"
    assert (await here("housekeeping", "run", *words)).code == 0
    await both.execute(f"drop table readings_{made[-1].name.split('_')[1]}")
    await both.execute("drop table ingest_housekeeping_climate")
    housekeeping = Housekeeping(settings, lambda: shared_url)
    async with running(housekeeping):
        while not housekeeping.failed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert "ingest_housekeeping_climate has no entry" in housekeeping.trouble().details
        assert "`ingest schema adopt --table-name climate --yes`" in housekeeping.trouble().details
        assert len(await partitions(both, "readings")) == len(made)
        assert (await here("schema", "adopt", "--table-name", "climate", "--yes", *words)).code == 0
    assert "nothing was due" in (await here("housekeeping", "run", *words)).stdout
    status = json.loads((await here("housekeeping", "status", "--json", *words)).stdout)
    assert status["declared"][0]["partitions_ours"] == len(made)


async def test_late_rows_of_a_declared_table_get_its_partitions(
    both: asyncpg.Connection, shared_url: str, settings: Settings
) -> None:
    """Those of the others stay as they are. A plain table, or a hypertable, takes all times."""
    late, now_us = late_of_tables(settings, lambda: shared_url), unix_us()
    readings = TargetTable("public")
    before = len(await partitions(both, "readings"))
    assert await late.make_for({readings: [now_us], CLIMATE: [now_us, now_us - 30 * DAY_US]})
    assert len(await partitions(both, "readings")) == before
    assert late.of(CLIMATE).is_covered(now_us - 30 * DAY_US)
    assert not late.of(readings).is_covered(now_us - 30 * DAY_US)
    assert late.lacking == ""
    await both.execute("delete from ingest_housekeeping_climate where key = 'table/climate'")
    late = late_of_tables(settings, lambda: shared_url)
    assert not await late.make_for({readings: [now_us], CLIMATE: [now_us - 40 * DAY_US]})
    assert late.lacking.startswith("climate: no partition for readings from ")
    why = late.of(CLIMATE).why_not(now_us - 40 * DAY_US)
    assert why is not None
    assert "no partition of climate for this time" in why.message
    await both.execute("drop table climate; create table climate (ts timestamptz)")
    late = late_of_tables(settings, lambda: shared_url)
    assert await late.make_for({readings: [now_us - 50 * DAY_US], CLIMATE: [0]})
    assert not await late.make_for({CLIMATE: [0]})
    # Without partitions of `readings` by us there are none of declared tables, either
    await both.execute("delete from ingest_housekeeping where key = 'table/readings'")
    ahead = partitions_ahead(settings)
    assert await partitions_like(both, READINGS, DAY, ahead, CLIMATE) is None


async def test_late_write_makes_partitions_of_both_tables(
    both: asyncpg.Connection, shared_url: str, settings: Settings
) -> None:
    """The table of the moments lacks one, and then `readings` for a value that differs."""
    sink = make_replay_sink(lambda: shared_url, settings, name="late")
    late_us = unix_us() - 30 * DAY_US
    tuples, _ = place_readings(
        [Reading(late_us, "d", "temperature", value) for value in (1.0, 2.0)], make_tables(settings)
    )
    assert await sink.write([tuples], 2, idempotent=False) == Stored(2, 0)
    await sink.close()
    assert await both.fetchval("select temperature from climate") == 1.0
    assert await both.fetchval("select value from readings") == 2.0


OLD = "2026-05-28"
OLD_US = 1_779_926_400_000_000  # the same
COLUMNS = {"ts": "time", "device_id": "Gerät ID", "metric": "it's", "value": "va\\lue.%s"}


async def test_two_tables_of_one_schema_have_archive_and_rollups_of_their_own(
    connection: asyncpg.Connection, shared_url: str, here: Here, tmp_path: Path
) -> None:
    """Each has partitions ahead, the old day in its own files, and all its hours in its rollups."""
    at = ["--database-url", shared_url, "--partition-span", "day", "--keep-hot", "30d"]
    at += ["--rollups", "true"]
    for name, column in COLUMNS.items():
        at += [f"--column-{name.replace('_', '-')}", column]
    tables = ("order", 'Ord\'er "2"')
    for number, table in enumerate(tables):
        sql = quoted(table)
        words = [*at, "--table-name", table, "--archive-dir", str(tmp_path / str(number))]
        assert (await here("schema", "apply", *words)).code == 0
        part = quoted(f"{table}_p20260528")
        await connection.execute(
            f"create table {part} partition of {sql} "
            f"for values from ('{OLD} 00:00:00+00') to ('2026-05-29 00:00:00+00'); "
            f"insert into {sql} values ('{OLD} 10:00:00+00', 'd{number}', 'm', {number}), "
            "('2026-05-28 11:00:00+00', 'both', 'm', 1)"
        )
        adopted = await here("schema", "adopt", "--yes", *words)
        assert adopted.code == 0, adopted
    for number, table in enumerate(tables):
        words = [*at, "--table-name", table, "--archive-dir", str(tmp_path / str(number))]
        # The first run waits with the old day until it is in the rollups.
        await here("housekeeping", "run", "--yes", *words)
        done = await here("housekeeping", "run", "--yes", "--json", *words)
        did = json.loads(done.stdout)["did"]
        assert [each["error"] for each in did] == [""] * len(did), done
        found = parquet.read_table(tmp_path / str(number)).to_pylist()
        assert [each["device_id"] for each in found] == ["both", f"d{number}"]
        sql = quoted(f"{table}_hourly")
        counted = await connection.fetch(f"select device_id from {sql} order by 1")
        assert [each["device_id"] for each in counted] == ["both", f"d{number}"]
        assert (await here("archive", "verify", *words)).code == 0


def test_name_of_a_registry_fits_and_differs() -> None:
    """A name that is too long is cut, and gets a hash of the whole."""
    assert registry.name_for("readings") == "ingest_housekeeping"
    assert registry.name_for("order") == "ingest_housekeeping_order"
    names = {registry.name_for("é" * 30 + each) for each in ("", "a", "b")}
    assert len(names) == 3
    assert all(len(each.encode()) <= 63 for each in names)


async def test_new_partition_is_not_kept_by_the_pin_of_one_dropped_by_hand(
    operator: asyncpg.Connection,
) -> None:
    """A restored partition was dropped by hand: late readings of its day may leave again."""
    await operator.execute(
        "drop table readings; create table readings (ts timestamptz, device_id text, metric text, "
        "value float8, primary key (ts, device_id, metric, value)) partition by range (ts)"
    )
    kept = await registry.make(operator, "readings")
    await registry.put(operator, kept, {"pinned/readings_p20260528": {"why": "restored"}})
    other = {"from_us": OLD_US - DAY_US, "to_us": OLD_US}
    await registry.put(operator, kept, {"files/readings_p20260529": other})
    view = await look_at(operator, "readings", DAY)
    day = TimeSpan(OLD_US, OLD_US + DAY_US)
    assert await make_partition(operator, view, day) == "readings_p20260528"
    assert await registry.entries(operator, "readings", registry.PINNED) == {}
    after = TimeSpan(day.to_us, day.to_us + DAY_US)
    assert await make_partition(operator, view, after) == "readings_p20260529_2"  # not of its files
