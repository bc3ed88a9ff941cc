"""Partitions are dropped beside posts, by commands that are killed again and again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
from pathlib import Path

import pytest

from tests.system.database import Database
from tests.system.fleet import TABLE_SQL, Fleet, check_table
from tests.system.service import REPOSITORY, Service, environment, run_command

RETAIN = ("housekeeping", "run", "--yes", "--keep-hot", "2y", "--database-url")
SEED = 18


async def killed(url: str, after_s: float) -> bool:
    """Start the retention, and kill -9 it after so long; return whether it had ended before."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ingest", *RETAIN, url),
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
                    await killed(database.url, drawn.uniform(0.5, 1.2))
                while await database.run(left):  # the server may not have noticed the last kill yet
                    await run_command("ingest", *RETAIN, database.url)
            await service.wait_quiet()
            assert fleet.statuses() == {"202"}
            check_table(fleet, await database.run(TABLE_SQL))
            keys = "select key from ingest_housekeeping where key like 'archive/%' or key like"
            assert await database.run(f"{keys} 'partition/readings_p2020%'") == []
