"""Three nats-servers with three copies of the stream: what one of them suffers, nobody loses."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.roles.nats import audit, purge
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, WRITER
from ingest.roles.nats.pulling import Pull
from tests.support.brokers import Cluster, Member, cluster, joined, lead, put, until
from tests.support.stream_writers import purged, survives, writing

pytestmark = pytest.mark.slow

BODIES = [b"payload-number-%03d-" % n + b"x" * 200 for n in range(1, 11)]
FROZEN_S = 7.0


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Give three servers with a stream."""
    async with cluster(tmp_path) as running:
        yield running


@pytest.fixture
async def admin(servers: Cluster) -> AsyncIterator[BrokerConnection]:
    """Give a connection of the admin."""
    async with joined(lambda: servers.address("admin"), "admin") as connection:
        yield connection


async def damage(servers: Cluster, admin: BrokerConnection, number: int, *bad: Member) -> None:
    """Flip a bit of a message on the disks of some servers."""
    for each in bad:
        await each.end(signal.SIGTERM)
        flipped = 0
        for path in (each.store / "jetstream").rglob("*.blk"):
            data = bytearray(path.read_bytes())
            at = data.find(b"payload-number-%03d-" % number)
            if at >= 0:
                data[at + 30] ^= 1
                path.write_bytes(data)
                flipped += 1
        assert flipped
        await each.start()
        await each.is_well()
        await servers.leader(admin)


@pytest.fixture
def quick_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the check look more often."""
    monkeypatch.setattr(audit, "HEARD_S", 0.5)
    monkeypatch.setattr(audit, "EVERY_S", 0.1)


@pytest.mark.usefixtures("quick_check")
async def test_damaged_copy_is_read_from_another_server(
    servers: Cluster, admin: BrokerConnection
) -> None:
    """T1: the server with the damage leads, and skips the message. It is written all the same."""
    async with joined(lambda: servers.address("gateway"), "gateway") as gateway:
        await put(gateway, *BODIES)
    bad = await servers.leader(admin)
    await damage(servers, admin, 5, bad)
    await lead(admin, STREAM, bad.name)
    await lead(admin, f"{STREAM}.{WRITER}", bad.name)
    async with writing(lambda: servers.address("writer"), Pull()) as one:
        await until(lambda: len(one.got) == 9)
        assert BODIES[4] not in one.bodies, "the control: it was skipped"
        await until(lambda: len(one.got) == 10, 20)
        assert (one.got[9].data, one.got[9].place, one.got[9].tries) == (BODIES[4], 5, 2)
        await until(lambda: one.audit.checked_to == 10)
        assert (one.audit.skipped, one.audit.read_again) == (0, 1)


@pytest.mark.usefixtures("quick_check")
async def test_message_that_is_damaged_on_all_servers_is_counted(
    servers: Cluster, admin: BrokerConnection
) -> None:
    """It is lost, and the purge goes past it then."""
    async with joined(lambda: servers.address("gateway"), "gateway") as gateway:
        await put(gateway, *BODIES)
    await damage(servers, admin, 5, *servers.members)
    async with writing(lambda: servers.address("writer"), Pull(), purges=True) as one:
        await until(lambda: one.audit.skipped == 1, 20)
        assert len(one.got) == 9
        await purged(admin, 10, one.purge)


async def _suffer(hit: Member, number: signal.Signals) -> None:
    if number == signal.SIGSTOP:
        hit.send(signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        hit.send(signal.SIGCONT)
    else:
        await hit.end(number)
        await asyncio.sleep(1)
        await hit.start()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
@pytest.mark.parametrize("victim", ["leader", "connected", "other"])
async def test_server_that_fails_costs_nothing(
    servers: Cluster,
    admin: BrokerConnection,
    victim: str,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each acknowledged message is delivered, and none is stored twice. Nothing is alarmed."""
    monkeypatch.setattr(purge, "EVERY_S", 1.0)
    leader = await servers.leader(admin)
    followers = [each for each in servers.members if each is not leader]
    hit = {"leader": leader, "connected": followers[0], "other": followers[1]}[victim]
    first = hit if victim == "connected" else followers[0]
    await survives(servers, admin, first, lambda: _suffer(hit, number))


@pytest.mark.timeout(120)
async def test_kill_of_all_servers_costs_nothing(
    servers: Cluster, admin: BrokerConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message was on two disks at least when it was acknowledged."""
    monkeypatch.setattr(purge, "EVERY_S", 1.0)

    async def suffer() -> None:
        await asyncio.gather(*(each.end(signal.SIGKILL) for each in servers.members))
        await asyncio.sleep(1)
        await asyncio.gather(*(each.start() for each in servers.members))

    await survives(servers, admin, servers.members[0], suffer)
