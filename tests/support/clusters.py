"""nats-servers on the loopback, one or a cluster of three, with the roles and their passwords."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from http.client import HTTPException
from pathlib import Path

from ingest.embedded.programs import DatabaseUser, command
from ingest.model.errors import BrokerAway, BrokerRefused
from ingest.roles.embedded_broker import Endpoints, config_text, find_program, new_passwords
from ingest.roles.nats import streams as manage
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, Address
from ingest.roles.nats.streams import WantedStream, wanted_readings
from ingest.roles.nats.watch import ask
from tests.support.brokers import MIB, api, joined
from tests.support.tcp_ports import free_port

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
