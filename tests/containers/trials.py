"""What is done to containers, pods and units, and what must hold after it.

Each is killed with SIGKILL and started again, and the service is stopped, while a fleet
posts. Then each reading that was acknowledged is in the table, once and unaltered.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.containers.compose import Project
from tests.containers.engine import IMAGE, Failed, command
from tests.containers.pods import Pods, objects_of
from tests.containers.units import Machine
from tests.system.fleet import FIRST_US, Fleet, check_table, reading

LOAD_S = 2.0  # between two kills
ARRIVED_S_MAX = 60.0
MESSAGES = 500
_PARTS = itertools.count(0, 10**10)  # of the time, in us: each fleet has one of its own


Runs = Project | Pods | Machine


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


async def arrived(project: Runs, service: str, fleet: list[Fleet]) -> None:
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
