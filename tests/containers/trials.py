"""What is done to the containers of each Compose file, and what must hold after it.

Each container is killed with SIGKILL and started again, and the service is stopped, while a fleet
posts. Then each reading that was acknowledged is in the table, once and unaltered.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.containers.compose import Project
from tests.containers.engine import Failed, command
from tests.system.fleet import FIRST_US, Fleet, check_table, reading

LOAD_S = 2.0  # between two kills
ARRIVED_S_MAX = 60.0
IMAGE = "iot-ingest:1.0.0"
MESSAGES = 500
_PARTS = itertools.count(0, 10**10)  # of the time, in us: each fleet has one of its own


async def build(folder: Path) -> None:
    """Build the image of the repository as the head of the Dockerfile says."""
    await command("docker", "build", "-f", "deploy/Dockerfile", "-t", IMAGE, ".", folder=folder)


@asynccontextmanager
async def fleets(project: Project, service: str, count: int = 1) -> AsyncIterator[list[Fleet]]:
    """Post to `count` containers of a service, and compare the table with it at the end."""
    urls = [await project.url(service, 8080, index + 1) for index in range(count)]
    fleet = [Fleet(url, ack="durable", first_us=FIRST_US + next(_PARTS)) for url in urls]
    async with AsyncExitStack() as stack:
        for each in fleet:
            await stack.enter_async_context(each)
        await asyncio.sleep(LOAD_S)
        yield fleet
    await arrived(project, fleet)


async def arrived(project: Project, fleet: list[Fleet]) -> None:
    """Wait until the acknowledged readings are in the table; compare. Raises Failed."""
    ours = Fleet("")
    for each in fleet:
        if not each.acknowledged:
            raise Failed(f"no post was acknowledged: {dict(each.answers)}")
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
        print(f"     acknowledged {len(ours.acknowledged):,}, all stored; table {len(rows):,}")
        return


async def kill_each(project: Project) -> None:
    """Kill each container with SIGKILL while there is load, and start it again."""
    for service, container in await project.running():
        if service not in ("prometheus", "grafana", "broker"):
            await command("docker", "kill", "--signal", "KILL", container)
            await asyncio.sleep(LOAD_S)
            await command("docker", "start", container)
            await asyncio.sleep(LOAD_S)


async def one_process(project: Project) -> None:
    """compose.yaml: kills under load, and a stop that loses nothing."""
    async with fleets(project, "ingest"):
        await kill_each(project)
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
    async with fleets(project, "gateway", 2):
        await kill_each(project)
    async with fleets(project, "gateway", 2):  # at the ports of now
        await project.run("stop", "gateway", "writer")
        await project.run("start", "gateway", "writer")
        await asyncio.sleep(LOAD_S)


async def mqtt(project: Project) -> None:
    """compose.mqtt.yaml: what the broker has taken is in the table, whatever is killed."""
    fleet = Fleet("")
    publish = ("exec", "-T", "broker", "mosquitto_pub", "-q", "1", "-t", "sensors/a", "-m")
    for container in ("mqtt", "ingest"):
        batch = range(first := FIRST_US + next(_PARTS), first + MESSAGES)
        fleet.acknowledged.update(batch)
        await project.run("kill", "--signal", "KILL", container)
        await project.run(*publish, json.dumps([*map(reading, batch)]))
        await project.run("start", container)
    await arrived(project, [fleet])


TRIALS: dict[str, tuple[Callable[[Project], Awaitable[None]], tuple[str, ...]]] = {
    "compose.yaml": (one_process, ()),
    "compose.roles.yaml": (roles, ()),
    "compose.mqtt.yaml": (mqtt, ("broker.yaml",)),
}
