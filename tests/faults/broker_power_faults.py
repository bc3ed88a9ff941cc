"""Power loss of the machines with the nats-servers: each disk loses what was not fsynced."""

from __future__ import annotations

import asyncio
import shutil

from tests.faults.broker_world import BrokerWorld
from tests.faults.controls import LOST
from tests.faults.matrix import fault

UNSYNCED = {"sync_interval: always": "sync_interval: 2m"}
UNEVEN = frozenset({"law_broken"})  # what the stream has lost is missing between the roles
USABLE_S_MAX = 8.0


async def machines_off(world: BrokerWorld) -> None:
    """Kill all at one moment, take what was not fsynced, start all again."""
    assert world.disk is not None, "mounted before"
    for _ in range(world.times):
        await world.answered(world.random.randrange(20, 120), within_s=60)
        if world.random.random() < 0.5:
            world.proxy.stall()  # readings wait in the stream then
            await world.sleep(0.2, 1.5)
        await world.kill_all()
        torn = world.random.random() < 0.6
        await world.disk.power_off(world.random.getrandbits(32) if torn else None)
        world.count()
        await world.proxy.cut()
        world.proxy.resume()
        world.fixed()
        if world.single:
            await world.server.come_back()
        await asyncio.gather(*(each.start() for each in world.servers.members))
        if world.fault.breaks:
            await _remake_lost_stream(world)
        await world.all_well()
        await world.again(*world.gateways, *world.writers)


async def _remake_lost_stream(world: BrokerWorld) -> None:
    """Make the stream again if it is gone, also if the server cannot use what is left."""
    try:
        await world.apply(USABLE_S_MAX)
    except TimeoutError:
        for each in world.servers.members:
            await each.end()
            await asyncio.to_thread(shutil.rmtree, each.store)
            await each.start()
        await world.apply()


@fault(
    "B1",
    "power lost, one machine",
    "as P1, for nats-server's store and PostgreSQL, {n} times",
    brokers=1,
    times=3,
    lazy_disk=True,
    rate=40.0,
    limit_s=300,
)
async def power_of_one(world: BrokerWorld) -> None:
    """The disk of the only nats-server loses what was not fsynced."""
    await machines_off(world)


@fault(
    "B2",
    "power lost, all three machines",
    "as B1, for all three stores, {n} times",
    brokers=3,
    times=3,
    lazy_disk=True,
    rate=40.0,
    limit_s=300,
)
async def power_of_three(world: BrokerWorld) -> None:
    """All three disks lose what was not fsynced, at the same moment."""
    await machines_off(world)


@fault(
    "C5",
    "default sync_interval, one nats-server",
    "as B1, {n} times, fsync each 2 minutes",
    kind="control",
    brokers=1,
    broker_words=UNSYNCED,
    settings={"broker_unsafe": True},
    times=2,
    lazy_disk=True,
    rate=40.0,
    breaks=LOST,
    follows=UNEVEN,
    limit_s=300,
)
async def one_unsynced(world: BrokerWorld) -> None:
    """The file system loses acknowledged messages."""
    await machines_off(world)


@fault(
    "C6",
    "default sync_interval, three",
    "as B2, {n} times, fsync each 2 minutes",
    kind="control",
    brokers=3,
    broker_words=UNSYNCED,
    settings={"broker_unsafe": True},
    times=2,
    lazy_disk=True,
    rate=40.0,
    breaks=LOST,
    follows=UNEVEN,
    limit_s=300,
)
async def three_unsynced(world: BrokerWorld) -> None:
    """Three copies are three page caches."""
    await machines_off(world)
