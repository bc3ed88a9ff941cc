"""What is done to containers, pods and units, and what must hold after it.

Each is killed with SIGKILL and started again, and the service is stopped, while a fleet
posts. Then each reading that was acknowledged is in the table, once and unaltered.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.containers.engine import IMAGE, Failed, command
from tests.containers.pods import Pods, objects_of
from tests.containers.units import Machine
from tests.system.fleet import FIRST_US, TABLE_SQL, Fleet, check_table, reading

LOAD_S = 2.0  # between two kills
ARRIVED_S_MAX = 60.0
MESSAGES = 500
_PARTS = itertools.count(0, 10**10)  # of the time, in us: each fleet has one of its own
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


class Place(NamedTuple):
    """A folder for a trial, with a copy of `deploy` that has passwords; services to leave out."""

    folder: Path
    left_out: Sequence[str]


async def build(folder: Path) -> None:
    """Build the image of the repository as the head of the Dockerfile says."""
    await command("docker", "build", "-f", "deploy/Dockerfile", "-t", IMAGE, ".", folder=folder)


@asynccontextmanager
async def fleets(
    project: Project | Pods | Machine, service: str, count: int = 1
) -> AsyncIterator[list[Fleet]]:
    """Post to `count` containers of a service, and compare the table with it at the end."""
    urls = [await project.url(service, 8080, index + 1) for index in range(count)]
    fleet = [Fleet(url, ack="durable", first_us=FIRST_US + next(_PARTS)) for url in urls]
    async with AsyncExitStack() as stack:
        for each in fleet:
            await stack.enter_async_context(each)
        for each in fleet:
            await acknowledged([each])
        await asyncio.sleep(LOAD_S)
        yield fleet
    await arrived(project, service, fleet)


async def acknowledged(fleet: Sequence[Fleet]) -> None:
    """Wait until one of the fleet has an acknowledgement that it has not now. Raises Failed."""
    before = [len(each.acknowledged) for each in fleet]
    end_s = time.monotonic() + ARRIVED_S_MAX
    while [len(each.acknowledged) for each in fleet] == before:
        if time.monotonic() > end_s:
            raise Failed(f"no post was acknowledged: {[dict(each.answers) for each in fleet]}")
        await asyncio.sleep(0.1)


async def arrived(project: Project | Pods | Machine, service: str, fleet: list[Fleet]) -> None:
    """Wait until the acknowledged readings are in the table; compare. Raises Failed."""
    ours = Fleet("")
    for each in fleet:
        ours.acknowledged |= each.acknowledged
        ours.refused |= each.refused
    end_s = time.monotonic() + ARRIVED_S_MAX
    while True:
        rows = await project.table()
        try:
            check_table(ours, rows)
        except AssertionError as error:
            if time.monotonic() > end_s:
                raise Failed(str(error)) from None
            await asyncio.sleep(1)
            continue
        taken = len(ours.acknowledged)
        print(
            f"     {service}: acknowledged {taken:,}, all stored; table {len(rows):,}", flush=True
        )
        return


async def kill_each(project: Project | Pods, fleet: Sequence[Fleet]) -> None:
    """Kill each container, or one pod of each set, with SIGKILL under load; start it again.

    Gateways last: after its start a container of Compose has another port, and its fleet no load.
    """
    parts = sorted(await project.to_kill(), key=lambda each: each[0].endswith("gateway"))
    for service, container in parts:
        if service not in ("prometheus", "grafana", "broker"):
            await project.kill(container)
            await asyncio.sleep(LOAD_S)
            await project.start(container)
            await asyncio.sleep(LOAD_S)
            if not service.endswith("gateway"):
                await acknowledged(fleet)


async def composed(
    trial: Callable[[Project], Awaitable[None]], files: tuple[str, ...], place: Place
) -> None:
    """Run the services of a Compose file, and do with them what its trial says."""
    project = Project(place.folder / "deploy", files, place.left_out)
    async with project.up():
        await trial(project)


async def one_process(project: Project) -> None:
    """compose.yaml: a closed image, kills under load, and a stop that loses nothing."""
    looked = ("exec", "-T", "ingest", "find", "/opt", "-user", "10001", "-o", "-path", "*/bin/pip*")
    if odd := await project.run(*looked):  # what it can write was written by its user
        raise Failed(f"in the image, but of the service's user, or pip:\n{odd}")
    async with fleets(project, "ingest") as fleet:
        await kill_each(project, fleet)
        began_s = time.monotonic()
        await project.run("stop", "ingest")
        print(f"     stopped under load in {time.monotonic() - began_s:.1f} s")
        await project.run("start", "ingest")
        await asyncio.sleep(LOAD_S)
    log = await project.run("logs", "--no-log-prefix", "ingest")
    if "lost=0" not in log:
        raise Failed(f"the stop did not say lost=0:\n{log[-2000:]}")


async def roles(project: Project) -> None:
    """compose.roles.yaml: each gateway has its own load. A killed one gets another port."""
    async with fleets(project, "gateway", 2) as fleet:
        await kill_each(project, fleet)
    async with fleets(project, "gateway", 2):  # at the ports of now
        await project.run("stop", "gateway", "writer")
        await project.run("start", "gateway", "writer")
        await asyncio.sleep(LOAD_S)


async def mqtt(project: Project) -> None:
    """compose.mqtt.yaml: what the broker has taken is in the table, whatever is killed."""
    fleet = Fleet("")
    words = ("exec", "-T", "broker", "mosquitto_pub", "-q", "1", "-t", "sensors/a", "-m")
    firsts = itertools.count(FIRST_US + next(_PARTS), MESSAGES)
    ended = asyncio.Event()

    async def publish() -> None:
        while not ended.is_set():
            batch = range(first := next(firsts), first + MESSAGES)
            await project.run(*words, json.dumps([*map(reading, batch)]))
            fleet.acknowledged.update(batch)

    publishing = asyncio.create_task(publish())
    try:
        for container in ("mqtt", "ingest"):
            await asyncio.sleep(LOAD_S)
            await project.run("kill", "--signal", "KILL", container)
            await asyncio.sleep(LOAD_S)
            await project.run("start", container)
            await asyncio.sleep(LOAD_S)
    finally:
        ended.set()
        await publishing
    await arrived(project, "mqtt", [fleet])


async def pods_of(folder: str, place: Place) -> None:
    """kubernetes/FOLDER: posts before the table is there, kills, a stop that loses nothing."""
    document, service = {
        "base": ("docs/run/deploy.md", "iot-ingest"),
        "roles": ("docs/grow/scaling.md", "iot-ingest-gateway"),
    }[folder]
    here = place.folder / folder
    here.mkdir()
    pods = Pods(await objects_of(document, folder, here), here)
    async with pods.up():
        if folder == "roles":
            await pods.job("iot-ingest-stream")
        async with fleets(pods, service, 2) as fleet:
            await pods.job("iot-ingest-schema")
            await kill_each(pods, fleet)
        async with fleets(pods, service, 2):
            await pods.stop(service)


async def kubernetes(place: Place) -> None:
    """Both folders of deploy/kubernetes, one after the other."""
    await command("sh", "-c", f"docker save {IMAGE} | podman load --quiet")
    for folder in ("base", "roles"):
        await pods_of(folder, place)


async def units(place: Place) -> None:
    """systemd: iot-ingest.service, its socket and iot-ingest-up.service, as their heads say."""
    machine = Machine(place.folder / "machine")
    async with machine.booted():
        await machine.install("iot-ingest.service")
        async with fleets(machine, "iot-ingest"):
            for unit in ("iot-ingest", "postgresql@17-main"):
                await machine.kill(unit)
                await asyncio.sleep(LOAD_S)
            await machine.stop("iot-ingest")
            await machine.run("systemctl start iot-ingest")
            await asyncio.sleep(LOAD_S)
        await machine.ingest("hold show")
        await machine.install("iot-ingest.socket")
        async with fleets(machine, "iot-ingest"):
            await machine.kill("iot-ingest")
            await asyncio.sleep(2 * LOAD_S)
        await machine.run("systemctl disable --now iot-ingest.socket iot-ingest")
        await machine.install("systemd/iot-ingest-up.service")
        async with fleets(machine, "iot-ingest-up"):
            await machine.run("systemctl reload iot-ingest-up")
            await machine.kill("iot-ingest-up")
            await asyncio.sleep(2 * LOAD_S)
            await machine.stop("iot-ingest-up")
            await machine.run("systemctl start iot-ingest-up")
            await asyncio.sleep(LOAD_S)


class Trial(NamedTuple):
    """What is done, and the programs that it needs beside Docker."""

    at: Callable[[Place], Awaitable[None]]
    programs: tuple[str, ...] = ()


TRIALS = {
    "compose.yaml": Trial(partial(composed, one_process, ("compose.yaml",))),
    "compose.roles.yaml": Trial(partial(composed, roles, ("compose.roles.yaml",))),
    "compose.mqtt.yaml": Trial(partial(composed, mqtt, ("compose.mqtt.yaml", "broker.yaml"))),
    "kubernetes": Trial(kubernetes, ("podman", "kubectl")),
    "systemd": Trial(units, ("systemd-nspawn",)),
}
