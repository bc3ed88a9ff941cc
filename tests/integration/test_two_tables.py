"""Two tables with other names in one schema: neither takes what belongs to the other."""

from __future__ import annotations

import json
from pathlib import Path

import asyncpg
from pyarrow import parquet

from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.partitions import DAY, DAY_US, TimeSpan
from ingest.sinks.postgres.housekeeping.table_state import look_at
from ingest.sinks.postgres.schema import quoted
from tests.support.commands import Here
from tests.support.partitions import make_partition

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
