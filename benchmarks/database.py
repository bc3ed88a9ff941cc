"""PostgreSQL for the benchmarks: single statements, and a throw-away server for the parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeVar

import asyncpg
import uvloop

from benchmarks.processes import scratch
from ingest.embedded.postgres import EmbeddedPostgres
from ingest.sinks.postgres.schema import TABLE, apply

COUNT = f"select count(*) from {TABLE}"
_T = TypeVar("_T")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Give a connection."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def number(url: str, sql: str, *values: object) -> int:
    """Return the one number that a query gives."""

    async def ask() -> int:
        async with connected(url) as connection:
            return int(await connection.fetchval(sql, *values))

    return uvloop.run(ask())


def execute(url: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""

    async def run() -> None:
        async with connected(url) as connection:
            for statement in statements:
                await connection.execute(statement)

    uvloop.run(run())


def count_rows(url: str) -> int:
    """Return how many rows the table has."""
    return number(url, COUNT)


def fresh_table(url: str) -> None:
    """Make the table anew, and wait for a checkpoint."""

    async def run() -> None:
        async with connected(url) as connection:
            await connection.execute(f"drop table if exists {TABLE}")
            await apply(connection)
            await connection.execute("checkpoint")

    uvloop.run(run())


class Database(NamedTuple):
    """A running server, the event loop that watches it, and a connection to it."""

    runner: asyncio.Runner
    url: str
    connection: asyncpg.Connection

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop, to its end."""
        return self.runner.run(work)


@contextmanager
def running_database() -> Iterator[Database]:
    """Give a server with its durable defaults, but no table; remove all of it afterwards."""
    loop = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with scratch() as folder, loop as runner, ExitStack() as ending:
        server = EmbeddedPostgres(folder / "postgres")
        runner.run(server.start())
        url = server.url
        ending.callback(lambda: runner.run(server.stop()))
        connection = runner.run(asyncpg.connect(url))
        ending.callback(lambda: runner.run(connection.close()))
        yield Database(runner, url, connection)
