"""`ingest.Pipeline` with a real PostgreSQL: its table, its absence, refused rows, forks, kills."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import ingest
from ingest import Drained, Pipeline
from tests.faults import library_kills
from tests.support.documents import REPOSITORY

UNSAFE: dict[str, Any] = {"journal_unsafe": True, "database_unsafe": True}
AWAY = "postgresql://nobody@127.0.0.1:1/none"
NOW = 1_764_000_000


def readings(count: int, device: str = "d") -> list[dict[str, Any]]:
    """Return readings of one device."""
    return [
        {"device_id": device, "metric": "m", "ts": NOW + at, "value": float(at)}
        for at in range(count)
    ]


async def test_missing_table_is_made_and_refused_rows_are_named(
    database_url: str, tmp_path: Path
) -> None:
    """Two pipelines write to one table, each with a folder of its own."""
    async with (
        Pipeline(database_url, state_dir=tmp_path / "a", **UNSAFE) as first,
        Pipeline(database_url, state_dir=tmp_path / "b", **UNSAFE) as second,
    ):
        assert (await first.put(readings(40, "a"), ack="committed")).accepted == 40
        connection = await asyncpg.connect(database_url)
        await connection.execute("alter table readings add constraint small check (value < 50)")
        kept = await second.put(readings(60, "b"), ack="committed")
        assert (kept.accepted, kept.dead_lettered) == (50, 10)
        assert kept.errors[0]["index"] == 50
        assert "small" in kept.errors[0]["message"]
        await connection.execute("alter table readings drop constraint small")
        replayed = await second.dead_letters.replay()
        assert (replayed["asked"], replayed["new"]) == (10, 10)
        assert await connection.fetchval("select count(*) from readings") == 100
        await connection.close()


async def test_readings_wait_in_the_journal_until_the_database_is_there(
    database_url: str, tmp_path: Path
) -> None:
    """The end does not wait for it; the next start writes them."""
    async with Pipeline(AWAY, state_dir=tmp_path, ack_wait_s_max=0.1, **UNSAFE) as pipeline:
        assert (await pipeline.put(readings(3))).ack == "durable"
        assert pipeline.state()["cause"] == "unreachable"
        with pytest.raises(ingest.Refused) as unknown:
            await pipeline.put(readings(1, "c"), ack="committed")
        assert unknown.value.code == "outcome_unknown"
        assert await pipeline.close() == Drained(committed=0, dead_lettered=0, held=4, lost=0)
    async with Pipeline(database_url, state_dir=tmp_path, **UNSAFE) as pipeline:
        while pipeline.core.ledger.committed < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await pipeline.close()).held == 0


@pytest.mark.parametrize("settings", [{}, {"buffer": "memory"}])
async def test_database_that_refuses_is_an_error_of_the_start(
    database_url: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """So is one that is away if there is no journal. The folder is free again."""
    wrong = AWAY if settings else database_url.replace("/test_", "/nothing_")
    for _ in range(2):
        with pytest.raises(ingest.StartError, match="the database cannot be used: "):
            await Pipeline(wrong, state_dir=tmp_path, **UNSAFE, **settings).__aenter__()


FORKED = """
import asyncio, os, sys
import ingest

async def main():
    where = dict(state_dir=sys.argv[1], journal_unsafe=True)
    async with ingest.Pipeline(sys.argv[2], **where) as pipeline:
        read, write = os.pipe()
        if not (child := os.fork()):
            os.close(write)
            try:
                asyncio.run(pipeline.put([]))
            except RuntimeError:
                os.read(read, 1)
                os._exit(0)
    try:
        async with ingest.Pipeline(sys.argv[2], **where):
            pass
    except ingest.StartError as error:
        print(error)
    os.close(write)
    print(os.waitpid(child, 0)[1])
    async with ingest.Pipeline(sys.argv[2], **where):
        print("free")

asyncio.run(main())
"""


def test_child_of_a_fork_keeps_the_folder_and_cannot_put(tmp_path: Path) -> None:
    """Until it ends; so a program forks first, and enters its pipeline then."""
    words = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path), AWAY]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    held, code, free = done.stdout.splitlines() or [done.stderr] * 3
    assert "already uses the state folder" in held, done.stderr
    assert (code, free) == ("0", "free")


@pytest.mark.slow
async def test_killed_program_has_lost_nothing_that_was_kept(open_tmp_path: Path) -> None:
    """With the database too; `python -m tests.faults.library_kills` kills more often."""
    counted = await library_kills.run(open_tmp_path, 4)
    assert counted.kept > 1_000
    assert (counted.lost, counted.twice) == (0, 0), counted
