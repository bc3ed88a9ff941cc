"""The database ends, freezes, or is changed under load: no reading is lost or doubled."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.system.database import Database
from tests.system.fleet import FIRST_US, TABLE_SQL, Fleet, check_table, reading
from tests.system.service import Service

QUICK: dict[str, Any] = {
    "wait_s_max": 0.5,
    "schema_check_s": 0.3,
    "put_wait_s_max": 0.2,
}

LINES_SQL = "select count(*) from pg_stat_activity where usename = 'fleet'"
CUT_ALL_SQL = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet'"


async def _check_end(service: Service, database: Database, fleet: Fleet) -> dict[str, float]:
    """Check the end: the balance is 0, nothing was dropped or dead-lettered, the table is right."""
    samples = await service.wait_quiet(within_s=60)
    assert samples["ingest_ledger_imbalance_rows"] == 0
    assert samples["ingest_readings_dropped_total"] == 0
    assert samples["ingest_dlq_readings"] == 0
    assert samples["process_resident_memory_bytes"] < 200e6
    check_table(fleet, await database.run(TABLE_SQL))
    return samples


@pytest.mark.slow
async def test_database_that_goes_and_comes_is_noticed_without_a_post(
    open_tmp_path: Path, free_port: int
) -> None:
    """The database state is right also when no client posts."""
    async with (
        Database(open_tmp_path / "db", free_port) as database,
        Service(open_tmp_path / "state", database_url=database.url, **QUICK) as service,
    ):
        await service.wait_sample("ingest_db_up", 1)
        await database.kill()
        await service.wait_sample("ingest_db_up", 0, within_s=10)
        await database.start()
        await service.wait_sample("ingest_db_up", 1, within_s=10)
        assert [line.count("database_away") for line in service.lines].count(1) == 1
        assert (await service.post([reading(FIRST_US)], ack="committed")).status == 200


@pytest.mark.slow
async def test_role_with_one_connection_is_written_by_one_writer(
    open_tmp_path: Path, free_port: int
) -> None:
    """The other writer ends, which is logged once: the database is open, and no post waits.

    The readings are old, and no connection is left that could make partitions for them.
    """
    settings = {**QUICK, "writers": 2, "partition_span": "none"}
    async with (
        Database(open_tmp_path / "db", free_port) as database,
        Service(open_tmp_path / "state", database_url=database.url, **settings) as service,
    ):
        await service.wait_state("accepting")
        await database.run("alter role fleet connection limit 1", database="postgres")
        await database.run(CUT_ALL_SQL, database="postgres")
        await service.wait_state("accepting")
        async with Fleet(service.url, connections=8, rows=20) as fleet:
            left_out = await service.wait_line("writer_left_out")
            assert "too many connections for role" in left_out
            away = service.output.count("database_away")
            await asyncio.sleep(3)
            assert service.output.count("database_away") == away
            assert service.output.count("writer_left_out") == 1
            await database.run("alter role fleet connection limit 2", database="postgres")
            async with asyncio.timeout(10):
                while (await database.run(LINES_SQL, database="postgres"))[0][0] < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        assert fleet.statuses() == {"202"}
        await _check_end(service, database, fleet)


OPERATORS_FAULTS = {  # how it is broken, how it is mended, the reason of the hold
    "column renamed": (
        "alter table readings rename column value to reading",
        "alter table readings rename column reading to value",
        "schema",
    ),
    "password changed": (
        "alter role fleet password 'second'; "
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet'",
        "alter role fleet password 'first'",
        "authentication",
    ),
}


async def test_operators_fault_holds_and_goes_on_by_itself(
    open_tmp_path: Path, free_port: int
) -> None:
    """Writes are paused (on hold): logged once, with the reason, nothing dead-lettered.

    One fault after the other, on one service. The fault table has more of them, and for longer.
    """
    async with (
        Database(open_tmp_path / "db", free_port) as database,
        Service(open_tmp_path / "state", database_url=database.url, **QUICK) as service,
    ):
        await service.wait_state("accepting")
        async with Fleet(service.url, connections=2, rows=10) as fleet:
            for breaks, mends, reason in OPERATORS_FAULTS.values():
                await asyncio.sleep(0.3)  # some readings are stored
                await database.run(breaks)
                document = await service.wait_state("on_hold", within_s=10)
                assert document["cause"] == reason, document
                assert (await service.metrics())[f'ingest_hold{{reason="{reason}"}}'] == 1
                await database.run(mends)
                await service.wait_state("accepting", within_s=20)
        assert fleet.statuses() <= {"202", "503"}, fleet.answers
        held_lines = [line for line in service.lines if '"on_hold"' in line]
        assert len(held_lines) == len(OPERATORS_FAULTS), held_lines
        await _check_end(service, database, fleet)
