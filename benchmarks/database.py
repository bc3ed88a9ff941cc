"""A throw-away embedded PostgreSQL, with its durable defaults, for the benchmarks of the parts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import asyncpg
import uvloop

from benchmarks.processes import scratch
from ingest.embedded.server import EmbeddedPostgres
from ingest.sinks.postgres.schema import TABLE, apply

_T = TypeVar("_T")


class Database:
    """A running server, the loop that it is watched on, and a line to it."""

    def __init__(self, runner: asyncio.Runner, url: str, line: asyncpg.Connection) -> None:
        self._runner = runner
        self.url = url
        self.line = line

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run something on the loop, to its end."""
        return self._runner.run(work)

    def empty(self) -> None:
        """Make the table anew."""
        self.run(self._empty())

    async def _empty(self) -> None:
        await self.line.execute(f"drop table if exists {TABLE}")
        await apply(self.line)
        await self.line.execute("checkpoint")

    def count(self) -> int:
        """Return how many rows there are."""
        return int(self.run(self.line.fetchval(f"select count(*) from {TABLE}")))


@contextmanager
def running_database() -> Iterator[Database]:
    """Give a server with an empty table; nothing of it is left afterwards."""
    with scratch() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        server = EmbeddedPostgres(folder / "postgres")
        url = runner.run(server.start())
        try:
            line = runner.run(asyncpg.connect(url))
            try:
                database = Database(runner, url, line)
                database.empty()
                yield database
            finally:
                runner.run(line.close())
        finally:
            runner.run(server.stop())
