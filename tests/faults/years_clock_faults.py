"""Clocks that jump: that of the database, as the housekeeping sees it, and that of the service."""

from __future__ import annotations

import asyncio
import contextlib

from tests.faults.matrix import fault
from tests.faults.years_world import YearsWorld
from tests.system.database import PASSWORD

DAY_S, HOUR_S = 86_400, 3_600
JUMPS = (60 * DAY_S, -60 * DAY_S)  # of the database's clock
SERVICE_JUMPS = (60 * DAY_S, -20 * HOUR_S)  # further back, today's readings are of the future
TOLD_S_MAX = 20.0
MANY = "so many at once"
# The role of the housekeeping finds these functions before those of PostgreSQL.
_CLOCK = f"""
create role keeper login password '{PASSWORD}' in role fleet;
create schema jumped;
create table jumped.jump (by_s float8 not null);
insert into jumped.jump values (0);
create function jumped.clock_timestamp() returns timestamptz language sql volatile as
    'select pg_catalog.clock_timestamp() + make_interval(secs => by_s) from jumped.jump';
create function jumped.now() returns timestamptz language sql volatile as
    'select pg_catalog.now() + make_interval(secs => by_s) from jumped.jump';
grant usage on schema jumped to keeper;
grant select on jumped.jump to keeper;
alter role keeper set search_path = jumped, pg_catalog, public"""


async def _two_clocks(world: YearsWorld) -> None:
    await world.server.run(_CLOCK)
    world.settings["housekeeping_url"] = world.server.url.replace("//fleet:", "//keeper:")


@fault(
    "Y10",
    "clocks jump",
    "{n} jumps of 20 hours or 60 days: nothing leaves without a person's word",
    years=True,
    mutant="clock",
    before=_two_clocks,
    times=8,
    limit_s=300,
)
async def clocks_jump(world: YearsWorld) -> None:
    """Move both clocks, and back."""
    for number in range(world.times):
        await world.answered(20)
        of_database, which = number % 2 == 0, number // 2 % 2
        if of_database:
            await _database_jumps(world, JUMPS[which])
        else:
            world.clock(SERVICE_JUMPS[which])
            await world.sleep(4)
            world.clock(0)
        world.count()
        world.fixed()
    await world.service.wait_state("accepting", "slowed", within_s=30)


async def _database_jumps(world: YearsWorld, by_s: float) -> None:
    today = "select max(tableoid::regclass::text) from readings"
    (before,) = (await world.server.run(today))[0]
    await world.server.run(f"update jumped.jump set by_s = {by_s}")
    try:
        world.said.clear()
        await world.sleep(3)
        await world.housekeep_alone()
        if by_s > 0:
            world.expect_said(MANY)
            await _told(world)
        (after,) = (await world.server.run(today))[0]
        world.expect(before == after, f"Y10: {before} has left the table by a jump of the clock")
    finally:
        await world.server.run("update jumped.jump set by_s = 0")


async def _told(world: YearsWorld) -> None:
    """Wait until the service says that steps wait for a person."""
    document: dict[str, object] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TOLD_S_MAX):
            while document.get("cause") != "retention_waits":
                document = (await world.service.readyz()).document
                await asyncio.sleep(0.1)
    told = document.get("cause") == "retention_waits"
    world.expect(told, f"Y10: readyz says nothing of the waiting steps: {document}")
