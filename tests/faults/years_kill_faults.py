"""Kills while partitions leave the table: of the service, of the database, of the run itself.

50 kills in all, each at a drawn moment of a run of the housekeeping. And the controls of this
table, which must lose readings, or have some twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from tests.faults.matrix import fault
from tests.faults.years_world import YearsWorld

CALLS_MAX = 150  # of a run to the database and to its files, among which one is drawn
TRIES = 4  # for each kill: a run may end before its moment comes
OF_HOUSEKEEPING = (
    "select pid from pg_stat_activity where application_name = 'iot-ingest housekeeping'"
)


@fault(
    "Y1",
    "service killed while it archives",
    "SIGKILL {n} times: at a drawn moment of a run, a step, a file",
    years=True,
    times=17,
    limit_s=420,
)
async def service_killed(world: YearsWorld) -> None:
    """Kill the service at drawn moments of its housekeeping."""
    for _ in range(world.times):
        await world.drawn_moment()
        os.kill(world.service.pid, signal.SIGKILL)
        await world.service.ended()
        world.count()
        await world.note_moment()
        await world.restart()
        await world.service.wait_state("accepting", "slowed", within_s=40)


@fault(
    "Y2",
    "PostgreSQL killed while it archives",
    "as F10, at the moments of Y1, {n} times",
    years=True,
    settings={"rollups": False},
    times=16,
    limit_s=420,
)
async def database_killed(world: YearsWorld) -> None:
    """Kill PostgreSQL in four ways."""
    server = world.server
    ways = [server.kill_all, server.kill_postmaster, server.kill, None]
    drawn = [ways[number % 4] for number in range(world.times)]
    world.random.shuffle(drawn)
    for kill in drawn:
        await world.drawn_moment()
        if kill is not None:
            await kill()
        else:
            await _kill_backend(world)
        world.count()
        if not server.pids():
            await server.come_back()
        world.fixed()
        await world.note_moment()


async def _kill_backend(world: YearsWorld) -> None:
    await world.under_way(within_s=60)
    for row in await world.server.ask(OF_HOUSEKEEPING):
        with contextlib.suppress(ProcessLookupError):
            os.kill(row[0], signal.SIGKILL)


@fault(
    "Y3",
    "run of the housekeeping killed",
    "SIGKILL {n} times: as Y1, or before one of its 150 first calls",
    years=True,
    settings={"housekeeping": False, "rollups": False},
    times=17,
    limit_s=420,
)
async def run_killed(world: YearsWorld) -> None:
    """Kill the run at drawn moments and at drawn calls."""
    for _ in range(world.times * TRIES):
        if world.found.count == world.times:
            break
        if world.found.count % 2:
            nth = world.random.randrange(1, CALLS_MAX)
            done = await world.command(
                "housekeeping", "run", "--yes", mutant="dies_in_run", FAULTS_NTH=nth
            )
            killed = done.code == -signal.SIGKILL
        else:
            killed = await _killed_from_outside(world)
        if killed:
            world.count()
            await world.note_moment()
        world.fixed()
    done_times = world.found.count
    world.expect(done_times == world.times, f"Y3: only {done_times} runs were killed")


async def _killed_from_outside(world: YearsWorld) -> bool:
    process = await world.start_command("housekeeping", "run", "--yes")
    try:
        await world.drawn_moment()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        async with asyncio.timeout(10):
            await process.communicate()
    return process.returncode == -signal.SIGKILL


async def _with_mutant(world: YearsWorld, mutant: str) -> None:
    """Let the runs of the housekeeping have a mistake; days leave, and get late readings again."""
    for _ in range(world.times):
        await world.answered(40)
        await world.housekeep("--yes", mutant=mutant)
        world.count()


@fault(
    "M7",
    "drops what is not in the archive",
    "{n} runs",
    kind="mutant",
    years=True,
    settings={"housekeeping": False},
    mutant="archives_nothing",
    times=3,
    breaks=frozenset({"lost"}),
)
async def archives_nothing(world: YearsWorld) -> None:
    """The readings of these partitions are gone."""
    await _with_mutant(world, "archives_nothing")


@fault(
    "M8",
    "forgets the old file in a merge",
    "{n} runs",
    kind="mutant",
    years=True,
    settings={"housekeeping": False},
    mutant="forgets_old_files",
    times=4,
    breaks=frozenset({"lost"}),
)
async def forgets_old_files(world: YearsWorld) -> None:
    """What was archived before the late readings is gone."""
    await _with_mutant(world, "forgets_old_files")


@fault(
    "M9",
    "leaves a partition in the table",
    "{n} runs",
    kind="mutant",
    years=True,
    settings={"housekeeping": False},
    mutant="keeps_partition",
    times=2,
    breaks=frozenset({"twice"}),
)
async def keeps_partition(world: YearsWorld) -> None:
    """Readings are in the table and in a file."""
    await _with_mutant(world, "keeps_partition")
