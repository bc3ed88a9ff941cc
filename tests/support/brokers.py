"""nats-servers for tests: embedded, alone, or a cluster of three; connections of each role."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import msgspec

from ingest.embedded.programs import DatabaseUser, command
from ingest.model.errors import BrokerAway, BrokerRefused
from ingest.roles.embedded_broker import (
    EmbeddedBroker,
    Endpoints,
    config_text,
    find_program,
    new_passwords,
)
from ingest.roles.nats import streams
from ingest.roles.nats import streams as manage
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, SUBJECT, WRITER, Address, Message
from ingest.roles.nats.streams import WantedStream, wanted_letters, wanted_readings
from ingest.roles.nats.watch import ask
from tests.support.documents import REPOSITORY
from tests.support.tcp_ports import free_port

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
async def plain_server(
    config: str, folder: Path, port: int, *, program: Path | None = None
) -> AsyncIterator[Address]:
    """Run a nats-server with a configuration of the test; give its address, without a login."""
    (folder / "plain.conf").write_text(f'listen: "127.0.0.1:{port}"\n{config}')
    process = await asyncio.create_subprocess_exec(
        str(program or find_program()),
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


LOCAL = "127.0.0.1"
WANTED_3 = wanted_readings(replicas=3, bytes_max=64 * MIB)


class Member:
    """One server. `start` it again after its end, perhaps with another `program`."""

    def __init__(
        self, name: str, at: Endpoints, config: Path, store: Path, host: str = LOCAL
    ) -> None:
        self.name = name
        self.at = at
        self.config = config
        self.store = store  # where it keeps its messages
        self.program = find_program()
        self.inside: tuple[str, ...] = ()  # the words before its command line
        self._host = host
        self.process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return self.at.server.replace(LOCAL, self._host)

    @property
    def monitor_url(self) -> str:
        """Its monitor port."""
        return self.at.monitor_url.replace(LOCAL, self._host)

    async def start(self) -> None:
        """Start it; do not wait until it can be used."""
        ourselves = DatabaseUser(-1, -1, "")  # it ends with this process
        self.process = await asyncio.create_subprocess_exec(
            *self.inside,
            *command(ourselves, self.program, "-c", str(self.config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, and wait for its end."""
        assert self.process is not None
        if self.process.returncode is None:
            self.send(number)
        await self.process.wait()

    async def is_well(self, within_s: float = 20) -> None:
        """Wait until it says that it is well."""
        async with asyncio.timeout(within_s):
            while not await asyncio.to_thread(self._says_ok):  # noqa: ASYNC110  another process
                await asyncio.sleep(0.02)

    def _says_ok(self) -> bool:
        try:
            return ask(self.monitor_url, "/healthz").get("status") == "ok"
        except (OSError, HTTPException, ValueError):
            return False


class Cluster:
    """The servers n1, n2 and n3, or n1 alone."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    def __getitem__(self, name: str) -> Member:
        return next(each for each in self.members if each.name == name)

    @property
    def monitors(self) -> tuple[str, ...]:
        """The monitor ports."""
        return tuple(each.monitor_url for each in self.members)

    def address(self, role: str, *names: str) -> Address:
        """Return how a role connects: to all servers, or to those named."""
        some = [each for each in self.members if not names or each.name in names]
        password = self.members[0].at.passwords[role]
        return Address(tuple(each.url for each in some), role, password)

    async def leader(self, admin: BrokerConnection) -> Member:
        """Return the server that leads the stream, once there is one and all copies are current."""
        async with asyncio.timeout(30):
            while True:
                try:
                    found = await api(admin, f"STREAM.INFO.{STREAM}")
                except BrokerAway:
                    found = {}
                if found.get("config") and len(self.members) == 1:
                    return self.members[0]
                cluster = found.get("cluster") or {}
                copies = cluster.get("replicas") or ()
                if cluster.get("leader") and all(each.get("current") for each in copies):
                    return self[cluster["leader"]]
                await asyncio.sleep(0.05)


async def lead(admin: BrokerConnection, what: str, name: str) -> None:
    """Let a server lead a stream, or a consumer: `STREAM.CONSUMER`."""
    kind = "CONSUMER" if "." in what else "STREAM"
    wish = {"placement": {"preferred": name}}
    leader = None
    async with asyncio.timeout(60):
        while leader != name:
            with suppress(BrokerAway):  # while it has no leader, nobody answers
                leader = (await api(admin, f"{kind}.INFO.{what}"))["cluster"].get("leader")
                if leader != name:
                    await api(admin, f"{kind}.LEADER.STEPDOWN.{what}", wish)
                    await asyncio.sleep(0.3)


def members_in(
    folder: Path, hosts: Sequence[str], *, stores: Path | None = None, store_bytes_max: int = 2**30
) -> list[Member]:
    """Return servers that sync each message, not started: one, or several that are a cluster.

    `stores` is the folder of their messages, if that is another one.
    """
    passwords = new_passwords()
    ports = [(free_port(), free_port(), free_port()) for _ in hosts]
    routes = [f"nats://{host}:{port}" for host, (_, _, port) in zip(hosts, ports, strict=True)]
    members = []
    for number, (host, (port, monitor_port, route_port)) in enumerate(
        zip(hosts, ports, strict=True), 1
    ):
        name = f"n{number}"
        (folder / name).mkdir(parents=True)
        at = Endpoints(port, monitor_port, "/monitor", passwords)
        store = (stores or folder) / name / "store"
        text = config_text(
            at,
            store=store,
            log=folder / name / "log",
            store_bytes_max=store_bytes_max,
            payload_bytes_max=8 * MIB,
        ).replace("server_name: iot-ingest", f"server_name: {name}")
        text = text.replace(LOCAL, host)
        if len(hosts) > 1:
            text += f'cluster {{ name: C, listen: "{host}:{route_port}", '
            text += f"routes: {json.dumps(routes)} }}\n"
        members.append(Member(name, at, folder / name / "server.conf", store, host))
        members[-1].config.write_text(text)
    return members


@asynccontextmanager
async def running(servers: Cluster, *streams: WantedStream) -> AsyncIterator[Cluster]:
    """Run servers, with these streams."""
    try:
        await asyncio.gather(*(each.start() for each in servers.members))
        await asyncio.gather(*(each.is_well() for each in servers.members))
        await make_streams(servers, *streams)
        yield servers
    finally:
        for each in servers.members:
            if each.process is not None and each.process.returncode is None:
                each.send(signal.SIGCONT)
                await each.end()


@asynccontextmanager
async def cluster(
    folder: Path,
    hosts: tuple[str, ...] = (LOCAL, LOCAL, LOCAL),
    inside: Callable[[int], tuple[str, ...]] = lambda _: (),
) -> AsyncIterator[Cluster]:
    """Run three servers that sync each message, with a stream of three copies.

    `inside` returns the words before the command line of a server, such as for a network namespace.
    """
    members = members_in(folder, hosts)
    for number, each in enumerate(members):
        each.inside = inside(number)
    async with running(Cluster(members), WANTED_3) as servers:
        yield servers


async def make_streams(servers: Cluster, *streams: WantedStream) -> None:
    """Make the streams, as soon as the servers can."""
    async with joined(lambda: servers.address("admin"), "admin") as admin:
        async with asyncio.timeout(20):
            for each in streams:
                await _apply(admin, each)
        await servers.leader(admin)


async def _apply(admin: BrokerConnection, wanted: WantedStream) -> None:
    while True:
        try:
            await manage.apply(admin, wanted)
        except (BrokerAway, BrokerRefused):  # they have just found each other
            await asyncio.sleep(0.1)
        else:
            return
