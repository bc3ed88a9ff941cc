"""The database ends, freezes, or is changed under load: no reading is lost or doubled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
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


async def _kill_often(
    folder: Path, port: int, *, times: int, down_s: float, buffer_rows_max: int
) -> None:
    async with (
        Database(folder / "db", port) as database,
        Service(
            folder / "state",
            database_url=database.url,
            buffer_rows_max=buffer_rows_max,
            **QUICK,
        ) as service,
    ):
        await service.wait_state("accepting")
        async with Fleet(service.url, connections=4, rows=20) as fleet:
            for each in range(times):
                await asyncio.sleep(1)
                await (database.kill() if each else database.stop())
                await asyncio.sleep(down_s)
                await database.start()
                await service.wait_state("accepting", "slowed", within_s=30)
            await asyncio.sleep(1)
        assert fleet.statuses() <= {"202", "503"}, fleet.answers
        assert fleet.acknowledged
        await _check_end(service, database, fleet)
        logged = [json.loads(line) for line in service.lines if line.startswith("{")]
        serious = [each["event"] for each in logged if each["level"] in {"warning", "error"}]
        # Beside it, that readings wait: when the database is back, until they are written.
        told = [event for event in serious if event not in {"started_as_root", "trouble"}]
        causes = {each["cause"] for each in logged if each["event"] == "trouble"}
        assert causes <= {"", "behind", "writes_fail"}, logged
        assert told == ["database_away"] * times, logged
        assert "cannot switch to state" not in service.output


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


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_database_killed_five_times_for_twenty_seconds_loses_nothing(
    open_tmp_path: Path, free_port: int
) -> None:
    """Five outages of 20 s, in each the buffer becomes full; the first is an orderly stop.

    No reading is lost or dead-lettered, and each outage makes one warning and no error line.
    """
    await _kill_often(open_tmp_path, free_port, times=5, down_s=20, buffer_rows_max=10_000)


async def _freeze(folder: Path, port: int, *, frozen_s: float, **settings: float) -> None:
    async with (
        Database(folder / "db", port) as database,
        Service(folder / "state", database_url=database.url, **{**QUICK, **settings}) as service,
    ):
        await service.wait_state("accepting")
        async with Fleet(service.url, connections=4, rows=20) as fleet:
            await asyncio.sleep(1)
            await database.freeze()
            await asyncio.sleep(frozen_s)
            await database.thaw()
            await asyncio.sleep(2)
        assert fleet.statuses() <= {"202", "503"}, fleet.answers
        await _check_end(service, database, fleet)


@pytest.mark.slow
async def test_frozen_database_commits_late_and_doubles_nothing(
    open_tmp_path: Path, free_port: int
) -> None:
    """A write that was given up and committed later makes duplicates, not second rows."""
    await _freeze(
        open_tmp_path,
        free_port,
        frozen_s=4,
        command_s_max=1,
        connect_s_max=1,
    )


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_database_frozen_for_thirty_seconds_doubles_nothing(
    open_tmp_path: Path, free_port: int
) -> None:
    """The same with the deadlines of production."""
    await _freeze(open_tmp_path, free_port, frozen_s=30)


HOLDS = {
    "column renamed": (
        "alter table readings rename column value to reading",
        "alter table readings rename column reading to value",
        "schema",
    ),
    "column not null": (
        "alter table readings add column site text not null default 'x';"
        "alter table readings alter column site drop default",
        "alter table readings drop column site",
        "schema",
    ),
    "value to bigint": (
        "alter table readings rename to readings_was;"
        "create table readings (like readings_was including all);"
        "alter table readings alter column value type bigint;"
        "alter table readings owner to fleet",
        "drop table readings; alter table readings_was rename to readings",
        "schema",
    ),
    "password changed": (
        "alter role fleet password 'second'; "
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet'",
        "alter role fleet password 'first'",
        "authentication",
    ),
}


async def _hold(folder: Path, port: int, faults: Sequence[str], held_s: float) -> None:
    async with (
        Database(folder / "db", port) as database,
        Service(folder / "state", database_url=database.url, **QUICK) as service,
    ):
        await service.wait_state("accepting")
        async with Fleet(service.url, connections=2, rows=10) as fleet:
            for fault in faults:
                await _hold_once(service, database, fault, held_s)
        assert fleet.statuses() <= {"202", "503"}, fleet.answers
        held_lines = [line for line in service.lines if '"on_hold"' in line]
        assert len(held_lines) == len(faults), held_lines
        await _check_end(service, database, fleet)


async def _hold_once(service: Service, database: Database, fault: str, held_s: float) -> None:
    breaks, fixes, reason = HOLDS[fault]
    await asyncio.sleep(0.3)  # some readings are stored
    await database.run(breaks)
    document = await service.wait_state("on_hold", within_s=10)
    assert document["cause"] == reason, document
    await asyncio.sleep(held_s)
    assert (await service.metrics())[f'ingest_hold{{reason="{reason}"}}'] == 1
    await database.run(fixes)
    await service.wait_state("accepting", within_s=20)


async def test_operators_fault_holds_and_goes_on_by_itself(
    open_tmp_path: Path, free_port: int
) -> None:
    """Writes are paused (on hold): logged once, with the reason, nothing dead-lettered.

    One fault after the other, on one service. The long test has the other ones.
    """
    faults = ("column renamed", "password changed")
    await _hold(open_tmp_path, free_port, faults, held_s=0.3)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", HOLDS)
async def test_operators_fault_of_twenty_seconds_holds_and_goes_on_by_itself(
    open_tmp_path: Path, free_port: int, fault: str
) -> None:
    """For 20 s: posts are accepted, then refused since the buffer is full; none is lost."""
    await _hold(open_tmp_path, free_port, [fault], held_s=20)


async def _alter_value_and_back(folder: Path, port: int, altered_s: float) -> None:
    async with (
        Database(folder / "db", port) as database,
        Service(folder / "state", database_url=database.url, **QUICK) as service,
    ):
        await service.wait_state("accepting")
        async with Fleet(service.url, connections=4, rows=10) as fleet:
            await asyncio.sleep(0.5)
            await database.run(
                "lock table readings; create table kept as select * from readings;"
                "delete from readings;"
                "alter table readings alter column value type bigint"
            )
            await service.wait_state("on_hold", within_s=10)
            await asyncio.sleep(altered_s)
            assert await database.run("select 1 from readings") == []
            await database.run(
                "alter table readings alter column value type double precision;"
                "insert into readings select * from kept"
            )
            await service.wait_state("accepting", within_s=20)
            await asyncio.sleep(0.5)
        assert fleet.statuses() <= {"202", "503"}, fleet.answers
        await _check_end(service, database, fleet)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_value_altered_to_bigint_for_twenty_seconds_stores_no_wrong_value(
    open_tmp_path: Path, free_port: int
) -> None:
    """Binary COPY would store float bits as a whole number: never, also at the change's moment."""
    await _alter_value_and_back(open_tmp_path, free_port, altered_s=20)
