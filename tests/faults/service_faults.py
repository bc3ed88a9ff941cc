"""Faults of the service's own process: killed, frozen, stopped, starved."""

from __future__ import annotations

import asyncio
import os
import signal

from tests.faults.matrix import fault
from tests.faults.world import World


async def kill_and_start(world: World) -> None:
    """SIGKILL the service at a drawn moment, half of the time with the database out of reach."""
    stalled = world.random.random() < 0.4
    if stalled:
        world.line.stall()
    await world.sleep(0.03, 0.5)
    os.kill(world.service.pid, signal.SIGKILL)
    world.count()
    await world.service.ended()
    if stalled:
        await world.line.cut()
        world.line.resume()
    await world.restart()


@fault(
    "F2",
    "service killed",
    "SIGKILL {n} times under load, 40 % of them while the database does not answer (so that the "
    "journal holds what was acknowledged), also during recovery; started again each time",
    times=100,
    quick_times=2,
    limit_s=500,
)
async def killed(world: World) -> None:
    """Kill it again and again."""
    for _ in range(world.times):
        await kill_and_start(world)
        if world.random.random() < 0.5:
            await asyncio.sleep(0)  # at once: in the middle of its recovery
        else:
            await world.answered(world.random.randrange(1, 30))
