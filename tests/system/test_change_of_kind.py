"""`serve` and `up` on one state folder: each starts only when the other one has left nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from ingest.system.state_folder import StateFolder
from tests.system.service import Done, Service, run_command
from tests.system.test_up import Up

BEGIN_MS = 1_750_000_000_000
POSTS = 30  # each with 20 readings and an invalid item
COUNT = "select count(*), count(distinct (ts, device_id, metric)) from readings"
AWAY = "postgresql://nobody@127.0.0.1:1/none?connect_timeout=1"


def body(number: int) -> bytes:
    """Return a post: 20 readings of its own, and one invalid item."""
    ts = BEGIN_MS + 1_000 * number
    items: list[object] = [
        {"device_id": f"d{number}", "metric": "m", "ts": ts + each, "value": each}
        for each in range(20)
    ]
    return orjson.dumps([*items, {"device_id": number, "bad": f"item {number}"}])


async def fill(service: Service, begin: int) -> None:
    """Post; each post is acknowledged."""
    for number in range(begin, begin + POSTS):
        reply = await service.post(body(number))
        assert reply.status == 202, reply


async def refused(command: str, folder: Path, url: str = AWAY) -> str:
    """Start a service that must refuse to start; return what it says."""
    flags = ("--state-dir", folder, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    done = await run_command("ingest", command, *flags, "--database-url", url)
    assert done.code == 2, done
    return done.stderr


async def dlq(folder: Path, *words: object) -> Done:
    """Run a command for dead letters; it needs no service."""
    done = await run_command("ingest", "dlq", *words, "--state-dir", folder)
    assert done.code == 0, done
    return done


async def letters(folder: Path) -> int:
    """Return how many dead letters the command counts."""
    count: int = orjson.loads((await dlq(folder, "stats", "--json")).stdout)["live"]
    return count


@pytest.mark.slow
async def test_what_one_kind_has_left_the_other_one_does_not_forget(
    open_tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """It refuses to start until the first one, run once more, has written all to the table."""
    folder = open_tmp_path / "s"
    away: dict[str, Any] = {"database_url": AWAY, "drain_s_max": 20}
    there: dict[str, Any] = {"database_url": readings_url, "database_unsafe": True}
    async with Service(folder, **away) as service:
        await fill(service, 0)
    assert "readings in its journal" in await refused("up", folder)
    async with Service(folder, **there) as service:
        await service.wait_quiet()
    said = await refused("up", folder)
    assert "dead letters" in said
    assert "journal" not in said
    assert await letters(folder) == POSTS
    await dlq(folder, "discard", "--all", "--yes")
    async with Up(folder, **away) as service:
        await fill(service, POSTS)
        await service.kill()
    assert "may have left readings" in await refused("serve", folder)
    async with Up(folder, **away) as service:
        await fill(service, 2 * POSTS)
    assert f"{2 * POSTS} messages with readings" in await refused("serve", folder)
    StateFolder(folder).checked_database.unlink()
    async with Up(folder, **there) as service:
        await fill(service, 3 * POSTS)  # all of it is written before the end
    assert "are for the database" in await refused("up", folder, "")  # the URL is forgotten
    said = await refused("serve", folder)
    assert f"0 messages with readings, {3 * POSTS} dead letters" in said
    assert await letters(folder) == 3 * POSTS
    await dlq(folder, "discard", "--all", "--yes")
    async with Service(folder, **there) as service:
        await fill(service, 4 * POSTS)
        await service.wait_quiet()
    (counts,) = await readings_connection.fetch(COUNT)
    assert tuple(counts) == (100 * POSTS, 100 * POSTS)
