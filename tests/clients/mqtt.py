"""MQTT: paho-mqtt publishes to Mosquitto, and `ingest mqtt` posts the messages to the service.

The client is told by the MQTT broker, so a wrong token is seen by `ingest mqtt`: its log says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.clients.libraries import Client, Libraries
from tests.clients.running import Faults, World, of, run_client
from tests.clients.senders.common import WRONG
from tests.support.mosquitto import PERSISTENT, Mosquitto, MqttProcess

SAID_S_MAX = 20.0
DELIVERED_S_MAX = 60.0  # until all that the broker has is in the table


@asynccontextmanager
async def bridged(world: World, folder: Path, token: str) -> AsyncIterator[tuple[str, MqttProcess]]:
    """Run a broker and `ingest mqtt` with this token; yield the broker's URL, and the process."""
    folder.mkdir()
    async with (
        Mosquitto(folder / "mosquitto", PERSISTENT) as broker,
        MqttProcess(
            folder / "state",
            env={"INGEST_MQTT_TOKEN": token},
            mqtt_url=broker.url,
            topic="sensors/#",
            url=world.service.url,
        ) as process,
    ):
        await process.wait_receiving()
        yield broker.url.replace("mqtt://", "http://"), process


async def refused(
    world: World, libraries: Libraries, client: Client, order: dict[str, object]
) -> list[str]:
    """Publish with a wrong token of `ingest mqtt`; return what its log says of it."""
    folder = world.service.state_dir.parent / "mqtt-wrong"
    async with bridged(world, folder, WRONG) as (url, process):
        told, _ = await run_client(libraries, client, {**order, "url": url}, [])
        assert told == {0}, "the broker has it"
        line = await process.wait_line("mqtt_post_failed", SAID_S_MAX)
        return [f"ingest mqtt: {line}"]


async def written(
    world: World, libraries: Libraries, client: Client, order: dict[str, object], faults: Faults
) -> tuple[set[int], list[str]]:
    """Publish through the faults; return what was told, when `ingest mqtt` has posted all of it."""
    folder = world.service.state_dir.parent / "mqtt"
    async with bridged(world, folder, str(order["token"])) as (url, _process):
        told, said = await run_client(libraries, client, {**order, "url": url}, faults)
        measurement = str(order["measurement"])
        async with asyncio.timeout(DELIVERED_S_MAX):
            while len(of(measurement, await world.rows())) < len(told):  # noqa: ASYNC110
                await asyncio.sleep(0.3)
    return told, said
