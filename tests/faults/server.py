"""A PostgreSQL for one fault: its data is a copy of a template; it can be killed in four ways.

Does not: decide when it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import asyncpg

from ingest.embedded import data as postgres_data
from ingest.sinks.postgres import schema
from loadgen.proof.readings import REFUSED_METRIC
from tests.support.asking import first_answer
from tests.system.database import PASSWORD, Database, copy_data

CHECK = f"alter table readings add constraint no_such check (metric <> '{REFUSED_METRIC}')"
DEBIAN = Path("/usr/lib/postgresql/17/bin")  # of its package postgresql-17
STOP_S_MAX = 30.0
BACK_S_MAX = 45.0


class Server(Database):
    """`async with Server(folder, port, template, settings) as server:`; durable by default."""

    def __init__(
        self,
        folder: Path,
        port: int,
        template: Path | None,
        settings: Mapping[str, str] | None = None,
        binaries: Path | None = None,
    ) -> None:
        super().__init__(folder, port, **{"max_wal_size": "256MB", **(settings or {})})
        self.port = port
        self.binaries = binaries
        self._template = template

    async def __aenter__(self) -> Self:
        if self._template is None:
            return await super().__aenter__()
        if not (self._folder / "data").exists():
            await copy_data(self._template, self._folder)
        self._home = self._prepared()
        await self.start()
        return self

    def url_over(self, port: int) -> str:
        """Return the URL for the service, over a proxy that listens on `port`."""
        return f"postgresql://fleet:{PASSWORD}@127.0.0.1:{port}/fleet"

    @property
    def url_of_superuser(self) -> str:
        """Return the superuser's URL of the same database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/fleet"

    @property
    def home(self) -> postgres_data.Home:
        """The place and the owner of its files."""
        assert self._home is not None, "enter it first"
        return self._home

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None, "start it first"
        return self._process.pid

    def pids(self) -> list[int]:
        """Return all processes of the server, the postmaster last."""
        if self._process is None or self._process.returncode is not None:
            return []
        parent = self.pid
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            return [*map(int, children), parent]
        return [parent]

    async def kill_all(self) -> None:
        """SIGKILL every process at one moment; all are frozen before it."""
        pids = self.pids()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        await self._gone(pids)

    async def kill_postmaster(self) -> None:
        """SIGKILL the postmaster alone; its backends end by themselves."""
        pids = self.pids()
        os.kill(self.pid, signal.SIGKILL)
        await self._gone(pids)

    async def kill_backend(self) -> None:
        """SIGKILL one backend of the service: the postmaster ends all others and recovers.

        Returns when it takes connections again; without a backend there is nothing to kill.
        """
        sql = "select pid from pg_stat_activity where usename = 'fleet'"
        rows = await self.ask(sql)
        if rows:
            pid = int(rows[0]["pid"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            while Path(f"/proc/{pid}/exe").exists():  # noqa: ASYNC110  then it has been noticed
                await asyncio.sleep(0.01)
        await self.ask("select 1")

    async def stop(self) -> None:
        """Stop in order, as `pg_ctl stop -m fast`."""
        assert self._process is not None, "start it first"
        self._process.send_signal(signal.SIGINT)
        async with asyncio.timeout(STOP_S_MAX):
            await self._process.wait()

    async def _gone(self, pids: list[int]) -> None:
        assert self._process is not None, "start it first"
        async with asyncio.timeout(STOP_S_MAX):
            await self._process.wait()
            while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def come_back(self) -> None:
        """Start it again after a kill or stop; a start that fails is tried again."""
        async with asyncio.timeout(BACK_S_MAX):
            while True:
                starting = asyncio.ensure_future(self.start())
                while not starting.done():
                    await asyncio.wait([starting], timeout=0.05)
                    if self._process is not None and self._process.returncode is not None:
                        break
                if starting.done() and starting.exception() is None:
                    return
                starting.cancel()
                await asyncio.wait([starting])
                await self.kill()
                await asyncio.sleep(0.1)

    async def ask(self, sql: str) -> list[asyncpg.Record]:
        """Run SQL as the superuser, as soon as a server that recovers by itself takes it."""
        return await first_answer(
            lambda: self.run(sql),
            *(OSError, asyncpg.PostgresError, asyncpg.InterfaceError),
            within_s=BACK_S_MAX,
        )


async def make_template(folder: Path, port: int, binaries: Path | None = None) -> Path:
    """Make data that holds the role, the database, the table and the CHECK; return its folder."""
    async with Server(folder, port, None, binaries=binaries) as server:
        connection = await asyncpg.connect(server.url)
        try:
            await schema.apply(connection)
            await connection.execute(CHECK)
        finally:
            await connection.close()
        await server.stop()
    return folder / "data"
