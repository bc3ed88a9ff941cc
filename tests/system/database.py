"""A PostgreSQL that a test kills, freezes and changes while the service writes to it.

It listens on a TCP port of the loopback and is durable, like the server of an operator. The role
`fleet` owns the database `fleet` and needs a password.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import asyncpg

from ingest.embedded import data as postgres_data
from ingest.embedded.data import remove_socket_folder
from ingest.embedded.programs import clean_environment, command
from tests.support.asking import first_answer

PASSWORD = "first"
START_S_MAX = 30.0


class Database:
    """One server. `async with Database(folder, port) as database:`.

    `settings` are those of postgresql.conf, from the first start on. If `template` is set, the
    first server leaves a copy of its fresh data there, for the others.
    """

    template: ClassVar[Path | None] = None
    binaries: Path | None = None  # other programs than those that came with the package

    def __init__(self, folder: Path, port: int, **settings: str) -> None:
        self.settings = settings
        self._folder = folder
        self._port = port
        self._home: postgres_data.Home | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The URL for the service: role `fleet`, with its first password."""
        return f"postgresql://fleet:{PASSWORD}@127.0.0.1:{self._port}/fleet"

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._home = self._prepared()
        await _make_data(self._folder, self._home)
        rules = "host all fleet 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
        (self._home.data / "pg_hba.conf").write_text(rules)
        await self.start()
        await self.run(f"create role fleet login password '{PASSWORD}'", database="postgres")
        await self.run("create database fleet owner fleet", database="postgres")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.thaw()
        await self.kill()
        if self._home is not None:
            remove_socket_folder(self._home.sockets)

    def _prepared(self) -> postgres_data.Home:
        data = self._folder / "data"
        if self.binaries is None:
            return postgres_data.prepare(self._folder)
        # `prepare` would refuse data that another version of PostgreSQL has made.
        hidden = data.rename(self._folder / "hidden") if data.exists() else None
        home = postgres_data.prepare(self._folder)._replace(binaries=self.binaries)
        if hidden is not None:
            hidden.rename(data)
        return home

    async def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._home is not None, "enter it first"
        arguments = ["-D", str(self._home.data), "-h", "127.0.0.1", "-p", str(self._port)]
        arguments += ["-k", str(self._home.sockets), "-c", "shared_buffers=64MB"]
        arguments += ["-c", "max_connections=30", "-c", "max_wal_size=1GB"]
        for name, value in self.settings.items():
            arguments += ["-c", f"{name}={value}"]
        with self._home.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command(self._home.user, self._home.binaries / "postgres", *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
            )
        await first_answer(
            lambda: self.run("select 1", database="postgres"),
            *(OSError, asyncpg.CannotConnectNowError),
            within_s=START_S_MAX,
        )

    async def kill(self) -> None:
        """Stop it at once, as by `pg_ctl stop -m immediate`: the next start is a recovery."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGQUIT)
            await self._process.wait()

    async def stop(self) -> None:
        """Stop it in order, as by `pg_ctl stop -m fast`: connections are told, then closed."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
            await self._process.wait()

    async def freeze(self) -> None:
        """Stop every process of the server (SIGSTOP)."""
        await self._signal_all(signal.SIGSTOP)

    async def thaw(self) -> None:
        """Let every process of the server go on (SIGCONT)."""
        await self._signal_all(signal.SIGCONT)

    async def _signal_all(self, number: int) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for pid in (*map(int, children), parent):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def run(self, sql: str, *, database: str = "fleet") -> list[asyncpg.Record]:
        """Run SQL as the superuser; several statements are one transaction and return nothing."""
        line = await asyncpg.connect(
            f"postgresql://postgres@127.0.0.1:{self._port}/{database}", timeout=5
        )
        try:
            if ";" in sql:
                await line.execute(sql)
                return []
            rows: list[Any] = await line.fetch(sql)
            return rows
        finally:
            await line.close()


async def give_data(state_dir: Path) -> None:
    """Give a new state folder data for its embedded database. To make it takes a service seconds.

    Does nothing without a template, or if the folder has a database.
    """
    template, folder = Database.template, state_dir / "postgres"
    if template is None or folder.exists():
        return
    folder.mkdir(parents=True)
    for each in (state_dir, folder):
        each.chmod(0o755)
    if template.exists():
        await copy_data(template, folder)
        return
    home = postgres_data.prepare(folder)
    try:
        await _make_data(folder, home)
    finally:
        remove_socket_folder(home.sockets)


async def copy_data(source: Path, folder: Path) -> None:
    """Copy the data of a stopped server into the folder of another one, with its owner."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["cp", "-a", "--sparse=always", str(source), str(folder / "data")]
    await asyncio.to_thread(subprocess.run, words, check=True)


async def _make_data(folder: Path, home: postgres_data.Home) -> None:
    template = Database.template
    if template is not None and template.exists():
        await copy_data(template, folder)
        return
    await postgres_data.make_data(home)
    if template is not None:
        await copy_data(home.data, template.parent)
