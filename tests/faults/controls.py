"""Runs that must lose readings: controls and mutants.

A check that cannot fail proves nothing. A control takes away a condition of the promise; a mutant
is the service with a mistake in it (patched.py). Both are green if the check finds the loss.
"""

from __future__ import annotations

import asyncio
import os
import signal

from tests.faults.connection_faults import reply_lost
from tests.faults.disk_faults import power_lost
from tests.faults.matrix import fault
from tests.faults.world import World

LOST = frozenset({"lost"})
MEMORY_ROWS_MAX = 200


async def _until_full(world: World) -> None:
    """Wait until memory is full, and then as long again: more comes than memory may take."""
    began_s = world.now_s()
    async with asyncio.timeout(20):
        while True:
            held = (await world.service.metrics())["ingest_readings_held"]
            if held >= MEMORY_ROWS_MAX * 0.9:
                break
            await asyncio.sleep(0.02)
    await asyncio.sleep(max(0.3, world.now_s() - began_s))


async def _kill_while_stalled(world: World, *, full: bool = False) -> None:
    for _ in range(world.times):
        await world.answered(20)
        world.proxy.stall()
        await (_until_full(world) if full else world.sleep(0.3, 0.6))
        os.kill(world.service.pid, signal.SIGKILL)
        await world.service.ended()
        world.count()
        await world.proxy.cut()
        world.proxy.resume()
        await world.restart()
        await world.service.wait_state("accepting", within_s=30)


@fault(
    "C1",
    "memory instead of the journal",
    "`ack=buffered`; SIGKILL {n} times while its 200 readings are full",
    kind="control",
    times=3,
    quick_times=1,
    settings={"buffer": "memory", "buffer_rows_max": MEMORY_ROWS_MAX, "post_rows_max": 100},
    asks="buffered",
    rate=120.0,
    breaks=LOST,
    lost_each_max=MEMORY_ROWS_MAX,
)
async def memory(world: World) -> None:
    """The readings in memory are lost; no more than memory may take (I10)."""
    await _kill_while_stalled(world, full=True)


@fault(
    "C2",
    "PostgreSQL with synchronous_commit=off",
    "SIGKILL to all of PostgreSQL, {n} times; `--database-unsafe`",
    kind="control",
    times=4,
    database={"synchronous_commit": "off", "wal_writer_delay": "10s"},
    settings={"database_unsafe": True},
    breaks=LOST,
)
async def asynchronous(world: World) -> None:
    """PostgreSQL reports commits that it has not written."""
    for _ in range(world.times):
        await world.answered(60)
        await world.server.kill_all()
        world.count()
        await world.server.come_back()


@fault(
    "C3",
    "journal without fdatasync",
    "as F27, {n} times",
    kind="control",
    mutant="no_journal_sync",
    times=4,
    breaks=LOST,
)
async def journal_unsynced(world: World) -> None:
    """The journal is in the page cache only."""
    await power_lost(world)


@fault(
    "M1",
    "acknowledges before the commit",
    "SIGKILL {n} times while the write hangs",
    kind="mutant",
    mutant="acks_early",
    asks="committed",
    times=3,
    breaks=LOST,
    follows=frozenset({"wrong_answer"}),  # what a constraint refuses was answered as committed
)
async def acks_early(world: World) -> None:
    """Kill the service between the answer and the commit."""
    await _kill_while_stalled(world)


@fault(
    "M2",
    "drops one reading in 10,000",
    "{n} s of load",
    kind="mutant",
    mutant="drops_one",
    rate=400.0,
    times=12,
    breaks=LOST,
)
async def drops_one(world: World) -> None:
    """The ledger finds one lost reading in ten thousand."""
    await asyncio.sleep(world.times)


@fault(
    "M3",
    "dead letters without fsync",
    "as F27, {n} times",
    kind="mutant",
    mutant="no_letter_sync",
    invalid=0.1,
    times=4,
    breaks=LOST,
)
async def letters_unsynced(world: World) -> None:
    """Bad items that were answered as kept are lost."""
    await power_lost(world)


async def _drop_key(world: World) -> None:
    await world.server.run("alter table readings drop constraint readings_pkey")


@fault(
    "M4",
    "tries again without the key",
    "as F11, {n} times; the table has no key",
    kind="mutant",
    mutant="no_key",
    before=_drop_key,
    times=5,
    breaks=frozenset({"twice"}),
    follows=frozenset({"in_both"}),  # a declared table has its key: such rows are refused
)
async def no_key(world: World) -> None:
    """Readings are stored twice."""
    await reply_lost(world)


@fault(
    "M5",
    "takes a failed write for a success",
    "PostgreSQL stopped and started, {n} times",
    kind="mutant",
    mutant="swallows",
    times=3,
    breaks=LOST,
)
async def swallows(world: World) -> None:
    """The readings of the failed write are lost."""
    for _ in range(world.times):
        await world.answered(20)
        await world.server.kill()
        await world.sleep(0.3)
        await world.server.come_back()
        world.count()
