"""Embedded PostgreSQL servers for tests, run in this process or in another one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from ingest.embedded.postgres import EmbeddedPostgres
from tests.support.asking import first_answer
from tests.system.service import is_alive

REPOSITORY = Path(__file__).parents[2]
SMALL = {"shared_buffers": "8MB", "fsync": "off"}

PARENT = """
import asyncio, sys
from pathlib import Path
from ingest.embedded.postgres import EmbeddedPostgres
async def main():
    server = EmbeddedPostgres(Path(sys.argv[1]), settings={"shared_buffers": "8MB", "fsync": "off"})
    await server.start()
    print(server.url, server.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[EmbeddedPostgres, str]]:
    """Run a small server on the folder."""
    server = EmbeddedPostgres(folder, settings=SMALL)
    await server.start()
    url = server.url
    try:
        yield server, url
    finally:
        await server.stop()


async def ask(url: str, sql: str) -> object:
    """Run one statement with a connection of its own; return its first value."""
    connection = await asyncpg.connect(url, timeout=5)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def answers_again(url: str, sql: str) -> object:
    """Ask until the server answers."""
    return await first_answer(
        lambda: ask(url, sql),
        *(OSError, asyncpg.PostgresError, asyncpg.InterfaceError),
        within_s=20,
    )


async def gone(pid: int) -> None:
    """Wait until a process runs no more. If nobody asks for its exit code, its number stays."""
    async with asyncio.timeout(20):
        while is_alive(pid):  # noqa: ASYNC110  another process
            await asyncio.sleep(0.02)


def start_parent(folder: Path) -> tuple[subprocess.Popen[str], str, int]:
    """Start another process that runs a server on the folder; return its URL and pid."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert parent.stdout is not None
    url, pid = parent.stdout.readline().split()
    return parent, url, int(pid)
