"""PgBouncer in front of a PostgreSQL, run as another user: it does not run as root.

`async with Pooler(folder, server, "session") as pooler:`; it can be stopped and started again in
another mode. Raises NotHere where the program is missing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from ingest.embedded.programs import clean_environment, command
from tests.faults.machine import NotHere
from tests.faults.server import Server
from tests.support.asking import first_answer
from tests.support.tcp_ports import free_port
from tests.system.database import PASSWORD

PROGRAM = "/usr/sbin/pgbouncer"
START_S_MAX = 10.0


class Pooler:
    """One PgBouncer for the role and the database `fleet`."""

    def __init__(self, folder: Path, server: Server, database_port: int) -> None:
        self._folder = folder
        self._server = server
        self._database_port = database_port
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The URL for the service."""
        return f"postgresql://fleet:{PASSWORD}@127.0.0.1:{self.port}/fleet"

    async def __aenter__(self) -> Self:
        if not Path(PROGRAM).exists():
            raise NotHere(f"{PROGRAM} is missing")
        self._folder.mkdir(parents=True)
        (self._folder / "users.txt").write_text(f'"fleet" "{PASSWORD}"\n')
        await self.start("session")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.kill()

    async def start(self, mode: str) -> None:
        """Start it in a pool mode (`session`, `transaction`), and wait until it takes clients."""
        config = self._folder / "pgbouncer.ini"
        config.write_text(
            f"""[databases]
fleet = host=127.0.0.1 port={self._database_port} dbname=fleet
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {self._folder / "users.txt"}
pool_mode = {mode}
"""
        )
        user = self._server.home.user
        if user.uid >= 0:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, user.uid, user.gid)
        with (self._folder / "pgbouncer.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command(user, PROGRAM, str(config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
            )
        await first_answer(self._connect, OSError, within_s=START_S_MAX)

    async def _connect(self) -> None:
        assert self._process is not None, "start it first"
        assert self._process.returncode is None, f"see {self._folder}/pgbouncer.log"
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.close()

    async def kill(self) -> None:
        """Kill it; all connections through it end."""
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)
            await self._process.wait()
