"""Embedded brokers for tests, connections of each role, and a server with settings of a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from ingest.roles.embedded_broker import EmbeddedBroker, find_program
from ingest.roles.nats import streams
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, SUBJECT, WRITER, Address, Message
from ingest.roles.nats.streams import WantedStream, wanted_letters, wanted_readings
from tests.support.documents import REPOSITORY

MIB = 1024**2
WANTED = wanted_readings(replicas=1, bytes_max=64 * MIB)
LETTERS = wanted_letters(replicas=1, bytes_max=64 * MIB)

PARENT = """
import asyncio, sys
from pathlib import Path
from ingest.roles import embedded_broker as broker
from ingest.roles.embedded_broker import find_program
if sys.argv[2:] == ["unsynced"]:
    text = broker.config_text
    broker.config_text = lambda *of, **more: text(*of, **more).replace("always", "2m")
async def main():
    server = broker.EmbeddedBroker(Path(sys.argv[1]), find_program())
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def hit(pid: int | None, number: int) -> None:
    """Send a signal to a server. One that does not run is a fault: 0 is our own process group."""
    assert pid is not None, "the server does not run"
    os.kill(pid, number)


@asynccontextmanager
async def embedded(
    folder: Path, *, wanted: WantedStream | None = WANTED
) -> AsyncIterator[EmbeddedBroker]:
    """Run an embedded broker, with the stream if one is wanted."""
    server = EmbeddedBroker(folder, find_program())
    await server.start()
    try:
        if wanted is not None:
            async with joined(server, "admin") as admin:
                await streams.apply(admin, wanted)
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def joined(
    server: EmbeddedBroker | Callable[[], Address], role: str
) -> AsyncIterator[BrokerConnection]:
    """Give a connection of a role to a server, or to an address."""
    where = server if callable(server) else lambda: server.published.address(role)
    connection = BrokerConnection(where, role)
    stopping = asyncio.Event()
    running = asyncio.create_task(connection.run(stopping))
    try:
        await is_up(connection)
        yield connection
    finally:
        stopping.set()
        await running


async def is_up(connection: BrokerConnection, up: bool = True, within_s: float = 10) -> None:
    """Wait until there is a connection, or there is none."""
    await until(lambda: connection.up is up, within_s)


async def until(holds: Callable[[], object], within_s: float = 10) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110  another process, or many things
            await asyncio.sleep(0.005)


async def api(connection: BrokerConnection, subject: str, body: object = None) -> dict[str, Any]:
    """Ask JetStream's API; return the answer, also if it is an error."""
    payload = b"" if body is None else msgspec.json.encode(body)
    reply: Message = await connection.request(f"$JS.API.{subject}", payload, 5)
    answer: dict[str, Any] = msgspec.json.decode(reply.data)
    return answer


async def messages(connection: BrokerConnection) -> int:
    """Return how many messages the stream has."""
    count: int = (await api(connection, f"STREAM.INFO.{STREAM}"))["state"]["messages"]
    return count


async def put(connection: BrokerConnection, *bodies: bytes) -> None:
    """Publish messages, one after the other."""
    for each in bodies:
        reply = await connection.request(SUBJECT, each, 5)
        assert b'"error"' not in reply.data, reply


async def fill(server: EmbeddedBroker, *bodies: bytes) -> None:
    """Put messages into the stream, as a gateway."""
    async with joined(server, "gateway") as gateway:
        await put(gateway, *bodies)


async def set_ack_wait(admin: BrokerConnection, seconds: float) -> None:
    """Let deliveries that are not done come again after some time."""
    config = (await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}"))["config"]
    config["ack_wait"] = int(seconds * 1e9)
    body = {"stream_name": STREAM, "config": config, "action": "update"}
    assert "error" not in await api(admin, f"CONSUMER.CREATE.{STREAM}.{WRITER}", body)


async def ended(pid: int) -> None:
    """Wait until a process has ended, also if nobody has asked for its exit code."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone
        await until(lambda: ") Z " in Path(f"/proc/{pid}/stat").read_text())


def start_parent(folder: Path, *words: str) -> tuple[subprocess.Popen[str], int]:
    """Start another process that runs a broker in the folder; return the server's pid too.

    With the word `unsynced` the server has nats-server's default: it syncs every two minutes.
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


@asynccontextmanager
async def plain_server(config: str, folder: Path, port: int) -> AsyncIterator[Address]:
    """Run a nats-server with a configuration of the test; give its address, without a login."""
    (folder / "plain.conf").write_text(f'listen: "127.0.0.1:{port}"\n{config}')
    process = await asyncio.create_subprocess_exec(
        str(find_program()),
        *("-c", str(folder / "plain.conf")),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    break
        yield Address((f"nats://127.0.0.1:{port}",), "", "")
    finally:
        process.kill()
        await process.wait()
