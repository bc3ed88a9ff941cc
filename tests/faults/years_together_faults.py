"""Several at once: two instances and a run, late readings for a day that is just being archived."""

from __future__ import annotations

import asyncio

from tests.faults.matrix import fault
from tests.faults.world import PLAIN
from tests.faults.years_world import YearsWorld
from tests.support.tcp_ports import free_port
from tests.system.service import Service

ANSWER_S_MAX = 6.0


@fault(
    "Y5",
    "two instances and a run",
    "two services and {n} runs: each partition leaves once",
    years=True,
    times=8,
    limit_s=300,
)
async def two_instances(world: YearsWorld) -> None:
    """Let four processes do the housekeeping."""
    second = Service(
        world.folder / "second",
        env=world.env,
        program=PLAIN,
        listen=f"127.0.0.1:{free_port()}",
        admin_listen=f"127.0.0.1:{free_port()}",
        database_url=world.server.url_over(world.proxy.port),
        **world.settings,
    )
    await second.start()
    world.others.append(second)
    await second.wait_state("accepting", within_s=40)
    other_runs = 0
    for _ in range(world.times):
        answers = await asyncio.gather(world.housekeep("--yes"), world.housekeep("--yes"))
        other_runs += sum(each["other_run"] for each in answers)
        await world.answered(20)
        world.count()
    world.fixed()
    world.found.figures.append(
        f"{other_runs} of {2 * world.times} runs found another one under way"
    )
    world.expect(other_runs, "Y5: no run ever met another one")


@fault(
    "Y6",
    "late readings into a day that leaves",
    "SIGSTOP to a run for 1 to 2 s, {n} times: no post waits, the next run merges",
    years=True,
    settings={"housekeeping": False, "rollups": False},
    times=12,
    limit_s=300,
)
async def late_readings(world: YearsWorld) -> None:
    """Post to all days while a run stands still."""
    for _ in range(2 * world.times):  # a run may end before its moment comes
        if world.found.count == world.times:
            break
        await world.answered(15)
        process = await world.start_command("housekeeping", "run", "--yes", "--json")
        try:
            await world.under_way()
            await world.sleep(0, 0.8)
            world.old.longest_s = 0.0
            posting = asyncio.create_task(world.old.post_to_all())
            if await world.freeze(process, 1.0, 2.0):
                world.count()
                await world.note_moment()
            await posting
        finally:
            async with asyncio.timeout(40):
                await process.communicate()
        longest_s = world.old.longest_s
        world.expect(longest_s < ANSWER_S_MAX, f"Y6: an answer took {longest_s:.1f} s")
    frozen = world.found.count
    world.expect(frozen == world.times, f"Y6: only {frozen} runs stood still")
    world.fixed()
