"""One service with tokens and a PostgreSQL, the harm that is done to both, and a client's run.

The faults: while the client writes, the database is restarted, and the service is killed with
SIGKILL and started again at the same address, with the same state folder.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.clients.libraries import Client, Libraries
from tests.clients.points import Row
from tests.support.processes import killed_after
from tests.support.tcp_ports import free_port
from tests.system.database import Database
from tests.system.service import Service, run_command

CLIENT_S_MAX = 150.0
_SELECT = (
    "select (extract(epoch from ts) * 1000000)::bigint, device_id, metric, value from readings"
)


class World:
    """A service and its database; `async with opened(folder) as world:`."""

    def __init__(self, database: Database, service: Service) -> None:
        self.database = database
        self.service = service

    async def restart_database(self) -> None:
        """Stop the database in order, and start it after half a second."""
        await self.database.stop()
        await asyncio.sleep(0.5)
        await self.database.start()

    async def kill_service(self) -> None:
        """Kill the service in the middle of a post, and start it after half a second."""
        await asyncio.sleep(0.03)
        await self.service.kill()
        await asyncio.sleep(0.5)
        await self.service.start()

    async def rows(self) -> list[Row]:
        """Return the whole table, when nothing is held any more."""
        await self.service.wait_quiet()
        return [Row(*record) for record in await self.database.run(_SELECT)]


async def make_token(state_dir: Path, name: str) -> str:
    """Make a token, as an operator does."""
    done = await run_command("ingest", "token", "new", name, "--state-dir", state_dir)
    assert done.code == 0, done.stderr
    return done.stdout.split()[-1]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[World]:
    """Start a database and a service that needs tokens; stop both at the end."""
    state = folder / "state"
    await make_token(state, "first")  # so that the service needs tokens from its start
    async with (
        Database(folder / "database", free_port()) as database,
        Service(
            state,
            database_url=database.url,
            listen=f"127.0.0.1:{free_port()}",
            admin_listen=f"127.0.0.1:{free_port()}",
            log_level="warning",
        ) as service,
    ):
        await service.wait_state("accepting")
        yield World(database, service)


Faults = list[Callable[[], Coroutine[Any, Any, None]]]


async def run_client(
    libraries: Libraries, client: Client, order: dict[str, object], faults: Faults
) -> tuple[set[int], list[str]]:
    """Run the program of a client; return the points told as kept, and what it said.

    At each of its gates the next fault begins, beside the client. Raises AssertionError with its
    output if it fails, and TimeoutError.
    """
    process = await libraries.start(client, json.dumps(order))
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    told, said, begun = set[int](), list[str](), list[asyncio.Task[None]]()
    waiting = iter(faults)
    try:
        async with killed_after(process), asyncio.timeout(CLIENT_S_MAX):
            async for line in process.stdout:
                document = json.loads(line)
                told.update(document.get("kept", ()))
                said += [document["said"]] if "said" in document else []
                if "gate" in document:
                    begun.append(asyncio.create_task(next(waiting)()))
                    await asyncio.sleep(0)
                    process.stdin.write(b"go\n")
            code = await process.wait()
    finally:
        await asyncio.gather(*begun)
    assert code == 0, f"{client.name} ended with {code}:\n{(await errors).decode()[-4000:]}"
    assert next(waiting, None) is None, "a fault has not happened"
    return told, said


def of(measurement: str, rows: list[Row]) -> list[Row]:
    """Return the rows of a measurement."""
    return [row for row in rows if row.metric.partition(",")[0].partition(".")[0] == measurement]
