"""Three nats-servers in network namespaces of their own, and networks that are cut. As root."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ingest.roles.nats import purge
from ingest.roles.nats.connection import BrokerConnection
from tests.support.brokers import Cluster, cluster, joined
from tests.support.stream_writers import survives

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(150)]

CUT_S = 11.0
NUMBERS = (0, 1, 2)


class Network:
    """A bridge with three namespaces. Its names have our process id."""

    def __init__(self) -> None:
        self._id = f"{os.getpid() % 100_000:x}"
        self._net = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.hosts = tuple(f"{self._net}.{number + 1}" for number in NUMBERS)

    def up(self) -> None:
        """Make it. Raises CalledProcessError without the right."""
        bridge = f"jb{self._id}"
        ip(f"link add {bridge} type bridge")
        ip(f"link set {bridge} up")
        ip(f"addr add {self._net}.254/24 dev {bridge}")
        for number in NUMBERS:
            name = self.name(number)
            ip(f"netns add {name}")
            ip(f"link add {name} type veth peer name e0 netns {name}")
            ip(f"link set {name} master {bridge} up")
            ip(f"-n {name} addr add {self.hosts[number]}/24 dev e0")
            ip(f"-n {name} link set e0 up")
            ip(f"-n {name} link set lo up")

    def down(self) -> None:
        """Remove what is there of it."""
        for number in NUMBERS:
            ip(f"netns del {self.name(number)}", must=False)
        ip(f"link del jb{self._id}", must=False)

    def name(self, number: int) -> str:
        """Return the name of a namespace, and of its end of the cable."""
        return f"jn{self._id}x{number}"

    def cut_from_all(self, number: int, cut: bool) -> None:
        """Pull the cable of a server, or put it in again."""
        ip(f"link set {self.name(number)} {'down' if cut else 'up'}")

    def cut_from_peers(self, number: int, cut: bool) -> None:
        """Cut a server from the others; clients still reach it."""
        for other in NUMBERS:
            if other != number:
                what = "add" if cut else "del"
                ip(f"-n {self.name(number)} route {what} blackhole {self.hosts[other]}/32")


def ip(words: str, *, must: bool = True) -> None:
    """Run a command of iproute2."""
    subprocess.run(["ip", *words.split()], check=must, capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    """Give a network that can be cut."""
    network = Network()
    try:
        network.up()
    except (OSError, subprocess.CalledProcessError) as error:
        network.down()
        pytest.skip(f"network namespaces cannot be made here: {error}")
    yield network
    network.down()


@pytest.fixture
async def servers(network: Network, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Give three servers with a stream."""

    def inside(number: int) -> tuple[str, ...]:
        return ("ip", "netns", "exec", network.name(number))

    async with cluster(tmp_path, network.hosts, inside) as running:
        yield running


@pytest.fixture
async def admin(servers: Cluster) -> AsyncIterator[BrokerConnection]:
    """Give a connection of the admin."""
    async with joined(lambda: servers.address("admin"), "admin") as connection:
        yield connection


@pytest.mark.parametrize(
    "what", ["leader from its peers", "leader from all", "connected follower from all"]
)
async def test_cut_network_costs_nothing(
    network: Network,
    servers: Cluster,
    admin: BrokerConnection,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever is cut off acknowledges nothing that the others do not have."""
    monkeypatch.setattr(purge, "EVERY_S", 1.0)
    leader = await servers.leader(admin)
    follower = next(each for each in servers.members if each is not leader)
    hit = leader if what.startswith("leader") else follower
    cut = network.cut_from_peers if what.endswith("peers") else network.cut_from_all
    number = servers.members.index(hit)

    async def suffer() -> None:
        cut(number, True)
        await asyncio.sleep(CUT_S)
        cut(number, False)

    await survives(servers, admin, hit, suffer)
