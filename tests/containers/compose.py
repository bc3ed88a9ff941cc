"""One project of `docker compose` in `deploy/`, under a name of its own."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.containers.engine import Failed, command
from tests.system.fleet import TABLE_SQL

UP_S_MAX = 180
NOFILE = 65_536  # of the Compose files


class Project:
    """The services of `files` in `folder`, a copy of `deploy`. `left_out` are not started."""

    def __init__(self, folder: Path, files: Sequence[str], left_out: Sequence[str]) -> None:
        self._folder = folder
        self._left_out = left_out
        name = Path(files[0]).name.replace(".", "-")
        self._words = ["docker", "compose", "--project-name", f"ingest-try-{name}"]
        self._words += [word for each in files for word in ("--file", each)]

    async def run(self, *words: str) -> str:
        """Run `docker compose` with these words; return its stdout. Raises Failed."""
        return await command(*self._words, *words, folder=self._folder)

    async def services(self) -> list[str]:
        """Return the names of the services that are started."""
        return sorted(set((await self.run("config", "--services")).split()) - {*self._left_out})

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        """Start the services and wait until they are healthy; at the end remove all of them."""
        await self._lower_limits()
        bad = list[str]()
        try:
            words = ("up", "--detach", "--no-build", "--pull=missing")
            await self.run(*words, *await self.services())
            async with asyncio.timeout(UP_S_MAX):
                while bad := await self._not_well():  # noqa: ASYNC110  the engine tells nobody
                    await asyncio.sleep(0.5)
            yield
        except TimeoutError:
            raise Failed(f"not well after {UP_S_MAX} s: {bad}\n{await self.run('logs')}") from None
        finally:
            await self.run("down", "--volumes", "--timeout", "5", "--remove-orphans")

    async def _lower_limits(self) -> None:
        """Take the machine's limit of open files where it is lower than the one of the files."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard >= NOFILE:
            return
        path = self._folder / "limits.json"
        limits = {
            name: {"ulimits": {"nofile": hard}}
            for name, service in json.loads(await self.run("config", "--format", "json"))[
                "services"
            ].items()
            if "ulimits" in service
        }
        path.write_text(json.dumps({"services": limits}))
        self._words += ["--file", path.name]

    async def _containers(self) -> list[dict[str, Any]]:
        said = await self.run("ps", "--all", "--format", "json")
        return [json.loads(line) for line in said.splitlines()]

    async def _not_well(self) -> list[str]:
        """Return the containers that neither run as they must nor have done their work."""
        return [
            f"{each['Name']}: {each['Status']}"
            for each in await self._containers()
            if not (
                (each["State"] == "running" and each["Health"] in ("", "healthy"))
                or (each["State"] == "exited" and each["ExitCode"] == 0)
            )
        ]

    async def to_kill(self) -> list[tuple[str, str]]:
        """Return service and container of all that run."""
        return sorted(
            (each["Service"], each["Name"])
            for each in await self._containers()
            if each["State"] == "running"
        )

    async def kill(self, container: str) -> None:
        """Kill a container with SIGKILL."""
        await command("docker", "kill", "--signal", "KILL", container)

    async def start(self, container: str) -> None:
        """Start a container that was killed."""
        await command("docker", "start", container)

    async def url(self, service: str, port: int, index: int = 1) -> str:
        """Return where a port of a container is published now."""
        address = await self.run("port", "--index", str(index), service, str(port))
        return f"http://{address.strip()}"

    async def table(self) -> list[dict[str, Any]]:
        """Return the rows of the table, as fleet.check_table wants them."""
        sql = f"select coalesce(json_agg(t), '[]') from ({TABLE_SQL}) t"
        words = ("exec", "-T", "timescaledb", "psql", "-U", "postgres", "-d", "telemetry", "-qAtc")
        rows: list[dict[str, Any]] = json.loads(await self.run(*words, sql))
        return rows
