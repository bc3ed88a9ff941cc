"""The service on a database whose commits are not durable: it says so, and never `committed`.

The database is real and has such settings; the service is the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.system.database import Database
from tests.system.fleet import FIRST_US, reading
from tests.system.service import Service, run_command

QUICK: dict[str, Any] = {"wait_s_max": 0.3, "schema_check_s": 0.2}


@pytest.mark.parametrize(
    "name",
    [
        "fsync",
        pytest.param("full_page_writes", marks=pytest.mark.slow),
        pytest.param("synchronous_commit", marks=pytest.mark.slow),
    ],
)
async def test_service_does_not_start_on_a_database_that_forgets(
    open_tmp_path: Path, free_port: int, name: str
) -> None:
    """The start ends with exit 2, the fault, the setting and the flag; with the flag it starts."""
    state = open_tmp_path / "state"
    async with Database(open_tmp_path / "db", free_port, **{name: "off"}) as database:
        ports = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
        at = ("--state-dir", state, "--database-url", database.url)
        done = await run_command("ingest", "serve", *ports, *at)
        assert done.code == 2, done.stderr
        assert f"{name} is off" in done.stderr
        assert f"set {name} = on" in done.stderr
        assert "--database-unsafe true" in done.stderr
        assert "Traceback" not in done.stderr
        done = await run_command("ingest", "doctor", *ports, *at)
        assert done.code == 1
        assert f"FAIL  {name} " in done.stdout
        async with Service(state, database_url=database.url, database_unsafe=True) as service:
            await service.wait_state("accepting")
            assert (await service.post(reading(FIRST_US), ack="committed")).status == 200


@pytest.mark.slow
async def test_database_that_comes_later_and_forgets_is_put_on_hold(
    open_tmp_path: Path, free_port: int
) -> None:
    """Once posts are taken no check ends the process; they are written after the fix."""
    async with Database(open_tmp_path / "db", free_port) as database:
        await database.kill()
        async with Service(open_tmp_path / "state", database_url=database.url, **QUICK) as service:
            await service.wait_state("accepting")
            database.settings["fsync"] = "off"
            await database.start()
            document = await service.wait_state("on_hold")
            assert document["cause"] == "not_durable"
            assert "fsync is off" in await service.wait_line("on_hold")
            metrics = await service.metrics()
            assert metrics['ingest_hold{reason="not_durable"}'] == 1
            assert metrics['ingest_state{state="on_hold"}'] == 1
            assert (await service.post(reading(FIRST_US))).status == 202
            refused = await service.post(reading(FIRST_US + 1), ack="committed")
            assert (refused.status, refused.document["code"]) == (503, "database_on_hold")
            there = await database.run("select to_regclass('readings') as name")
            assert there[0]["name"] is None or await database.run("table readings") == []
            await database.kill()
            del database.settings["fsync"]
            await database.start()
            await service.wait_state("accepting")
            await service.wait_sample("ingest_readings_committed_total", 1)
        assert len(await database.run("table readings")) == 1


@pytest.mark.slow
async def test_running_service_notices_when_its_role_stops_waiting_for_the_disk(
    open_tmp_path: Path, free_port: int
) -> None:
    """The next connection notices ALTER ROLE; the one after it notices that it was undone."""
    async with (
        Database(open_tmp_path / "db", free_port) as database,
        Service(open_tmp_path / "state", database_url=database.url, **QUICK) as service,
    ):
        await service.wait_state("accepting")
        cut = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet'"
        await database.run("alter role fleet set synchronous_commit = off")
        await database.run(cut)
        assert (await service.post(reading(FIRST_US))).status == 202
        await service.wait_state("on_hold")
        await database.run("alter role fleet reset synchronous_commit")
        await service.wait_state("accepting")
        await service.wait_sample("ingest_readings_committed_total", 1)
        assert await service.imbalance() == 0
