"""The session with a broker that ends it in an unusual moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ingest.http_client.client import target_of
from ingest.mqtt.options import MqttWanted, mqtt_address
from ingest.mqtt.session import MqttSession
from ingest.mqtt.tally import MqttTally

CONNACK = bytes.fromhex("2003000000")
TAKEN_OVER = bytes.fromhex("e0028e00")


async def greet_and_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a client; end it for another one when it subscribes."""
    for answer in (CONNACK, TAKEN_OVER):
        await reader.read(1024)
        writer.write(answer)
    writer.close()


async def test_take_over_before_the_subscription_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And with its reason: the failed start of the same connection is no news."""
    told = list[str]()
    monkeypatch.setattr(MqttSession, "_failed", lambda _session, why: told.append(why))
    server = await asyncio.start_server(greet_and_end, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    address, target = mqtt_address(f"mqtt://127.0.0.1:{port}"), target_of("http://127.0.0.1:9/")
    session = MqttSession(
        MqttWanted("x", address, "mine", ("a/#",), target),
        MqttTally(),
        tls=None,
        take=lambda _: None,
        topics_file=tmp_path / "topics",
    )
    stopping = asyncio.Event()
    async with server, asyncio.timeout(20):
        running = asyncio.create_task(session.run(stopping))
        while not told:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        stopping.set()
        await running
    assert told == ["another client has connected with our client id mine (--client-id)"]
