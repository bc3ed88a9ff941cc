"""Partitions are made and dropped beside posts, by commands that are killed again and again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
from pathlib import Path

import asyncpg
import pytest

from tests.system.database import Database
from tests.system.fleet import TABLE_SQL, Fleet, check_table
from tests.system.service import REPOSITORY, Service, environment, run_command

OLD_ROWS = 300_000
OLD = f"""insert into readings select timestamptz '2024-01-01' + n * interval '1 min', 'old', 'm', n
from generate_series(1, {OLD_ROWS}) n"""
COMMAND = ("schema", "partition", "--partition-span", "day", "--yes", "--database-url")
RETAIN = ("housekeeping", "run", "--yes", "--keep-hot", "2y", "--database-url")
SEED = 18


async def killed(url: str, after_s: float, command: tuple[str, ...] = COMMAND) -> bool:
    """Start the command, and kill -9 it after so long; return whether it had ended before."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ingest", *command, url),
        cwd=REPOSITORY,
        env=environment(),
        stdout=asyncio.subprocess.DEVNULL,
    )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(after_s):
            await process.wait()
            return True
    process.send_signal(signal.SIGKILL)
    await process.wait()
    return False


async def watch(service: Service, states: set[str], stop: asyncio.Event) -> None:
    """Note the states that /readyz shows."""
    while not stop.is_set():
        states.add((await service.readyz()).document["state"])
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_table_is_partitioned_under_load_although_the_command_is_killed(
    open_tmp_path: Path, free_port: int
) -> None:
    """No post is refused, writes are never paused, and each reading is there once.

    Two moments are certain: a lock of another session holds the command at the comparison, and then
    at the last step. The others are drawn.
    """
    drawn = random.Random(SEED)
    states, stop = set[str](), asyncio.Event()
    async with Database(open_tmp_path / "db", free_port) as database:
        service = Service(
            open_tmp_path / "state",
            database_url=database.url,
            housekeeping_pause_s=1,
            partition_span="none",
        )
        async with service, asyncio.TaskGroup() as tasks:
            await service.wait_state("accepting")
            await database.run(OLD)
            tasks.create_task(watch(service, states, stop))
            async with Fleet(service.url, connections=4, rows=20, ack="durable") as fleet:
                for mode in ("share update exclusive", "access share"):
                    other = await asyncpg.connect(database.url)
                    async with other.transaction():
                        await other.execute(f"lock table readings in {mode} mode")
                        assert not await killed(database.url, 3)
                    await other.close()
                while not await killed(database.url, drawn.uniform(0.3, 1.5)):
                    pass
                done = await run_command("ingest", *COMMAND, database.url)
                assert "is partitioned already" in done.stdout
                # A run that was killed after the last step leaves the rest to the service.
                while not await made_ahead(database):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                before = len(fleet.acknowledged)
                while len(fleet.acknowledged) < before + 500:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            stop.set()
            await service.wait_quiet()
            assert fleet.statuses() == {"202"}
            assert states <= {"accepting", "slowed"}
            assert (await service.metrics())["ingest_dlq_readings"] == 0
            check_table(fleet, await database.run(f"{TABLE_SQL} where device_id <> 'old'"))
            (old,) = await database.run("select count(*) from readings where device_id = 'old'")
            assert old["count"] == OLD_ROWS


async def made_ahead(database: Database) -> bool:
    """Whether there are partitions after the first one."""
    (found,) = await database.run(
        "select count(*) from pg_inherits where inhparent = 'readings'::regclass"
    )
    return bool(found["count"] >= 3)


@pytest.mark.slow
async def test_retention_ends_although_it_is_killed_and_takes_only_what_is_old(
    open_tmp_path: Path, free_port: int
) -> None:
    """Thirty old days leave beside posts to other days; nothing is left of the runs cut off."""
    drawn = random.Random(SEED)
    days = [{"ts": f"2020-06-{day:02}T00:00:00Z", "value": day} for day in range(1, 31)]
    body = [{"device_id": "old", "metric": "m", **each} for each in days]
    left = "select from pg_class where relname like 'readings_p2020%' and relkind = 'r'"
    async with Database(open_tmp_path / "db", free_port) as database:
        service = Service(
            open_tmp_path / "state",
            database_url=database.url,
            partition_span="day",
            housekeeping="false",
        )
        async with service:
            await service.wait_state("accepting")
            assert (await service.post(json.dumps(body).encode(), ack="committed")).status == 200
            async with Fleet(service.url, connections=4, rows=20, ack="durable") as fleet:
                for _ in range(6):
                    await killed(database.url, drawn.uniform(0.5, 1.2), RETAIN)
                while await database.run(left):  # the server may not have noticed the last kill yet
                    await run_command("ingest", *RETAIN, database.url)
            await service.wait_quiet()
            assert fleet.statuses() == {"202"}
            check_table(fleet, await database.run(TABLE_SQL))
            keys = "select key from ingest_housekeeping where key like 'archive/%' or key like"
            assert await database.run(f"{keys} 'partition/readings_p2020%'") == []
