"""Power loss of the whole machine: PostgreSQL and the service on one disk that loses bytes."""

from __future__ import annotations

import os
import signal

from tests.faults.controls import LOST
from tests.faults.matrix import fault
from tests.faults.world import World


async def machine_off(world: World) -> None:
    """Kill all processes at one moment, take what was not fsynced, start all again."""
    assert world.disk is not None, "mounted before"
    for _ in range(world.times):
        await world.answered(world.random.randrange(5, 60), within_s=60)
        if world.random.random() < 0.5:
            world.proxy.stall()
            await world.sleep(0.05, 0.6)
        for pid in (world.service.pid, *world.server.pids()):
            os.kill(pid, signal.SIGSTOP)  # one moment for all
        os.kill(world.service.pid, signal.SIGKILL)
        await world.server.kill_all()
        await world.service.ended()
        torn = world.random.random() < 0.6
        await world.disk.power_off(world.random.getrandbits(32) if torn else None)
        world.count()
        await world.proxy.cut()
        world.proxy.resume()
        await world.server.come_back()
        await world.restart()


@fault(
    "P1",
    "power lost, whole machine",
    "service and PostgreSQL killed {n} times; a FUSE disk loses what was not fsynced",
    times=10,
    lazy_disk=True,
    invalid=0.05,
    rate=40.0,
    limit_s=300,
)
async def power(world: World) -> None:
    """The disk of the machine loses what was not fsynced."""
    await machine_off(world)


@fault(
    "C4",
    "journal without fdatasync, whole machine",
    "as P1, {n} times",
    kind="control",
    mutant="no_journal_sync",
    times=4,
    lazy_disk=True,
    rate=40.0,
    breaks=LOST,
)
async def journal_unsynced(world: World) -> None:
    """The file system loses the journal."""
    await machine_off(world)
