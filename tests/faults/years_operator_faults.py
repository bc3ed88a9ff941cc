"""What an operator does: partitions detached or half detached by hand, a role without rights."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg

from tests.faults.matrix import fault
from tests.faults.years_ledger import DAYS
from tests.faults.years_world import YearsWorld

ATTACHED = (
    "select c.relname::text, pg_get_expr(c.relpartbound, c.oid) from pg_inherits i "
    "join pg_class c on c.oid = i.inhrelid where i.inhparent = 'readings'::regclass"
)
GONE_S = 4.0
LACKS = "the role keeper does not own public.readings (its owner is fleet)"
TOLD_S_MAX = 90.0  # dead letters come back after a while


async def _bounds_of(world: YearsWorld, name: str) -> str:
    return next((row[1] for row in await world.server.ask(ATTACHED) if row[0] == name), "")


async def _store_one_day(world: YearsWorld, days_back: int) -> str:
    """Post readings of a day; return the name of a partition that has some of them."""
    rows = world.old.rows(days_back, 20)
    await world.old.post(rows)
    async with asyncio.timeout(TOLD_S_MAX):
        while True:
            sql = (
                "select tableoid::regclass::text from readings where device_id = "
                f"'{rows[0][1]}' and metric = '{rows[0][2]}'"
            )
            found = await world.server.ask(sql)
            if found:
                return str(found[0][0])
            await asyncio.sleep(0.1)


@fault(
    "Y7",
    "partition detached by hand",
    "{n} times, later attached again: the next run merges",
    years=True,
    settings={"housekeeping": False},
    times=4,
    limit_s=300,
)
async def detached_by_hand(world: YearsWorld) -> None:
    """Take a partition away for a while. Nobody but the operator has it then."""
    for _ in range(world.times):
        day = world.random.choice(DAYS)
        name = await _store_one_day(world, day)
        bounds = await _bounds_of(world, name)
        await world.server.ask(f"alter table readings detach partition {name}")
        world.count()
        for _ in range(3):
            await world.old.post(world.old.rows(day, 10))
            await world.answered(5)
        await world.sleep(GONE_S / 2, GONE_S)
        await world.housekeep("--yes")
        there = await world.server.ask(f"select to_regclass('{name}') is not null")
        world.expect(there[0][0], f"Y7: {name} was dropped, which the operator had detached")
        await _attach_again(world, name, bounds)
    world.fixed()


async def _attach_again(world: YearsWorld, name: str, bounds: str) -> None:
    for _ in range(20):
        try:
            await world.server.run(f"alter table readings attach partition {name} {bounds}")
        except asyncpg.PostgresError as error:  # late readings have made one of its time
            if error.sqlstate not in ("42P17", "40P01", "55P03"):
                raise
            await world.housekeep("--yes")
        else:
            return
    world.expect(False, f"Y7: {name} could not be attached again")


@fault(
    "Y8",
    "partition half detached by hand",
    "DETACH .. CONCURRENTLY cut off, {n} times: it is ended, and told",
    years=True,
    settings={"log_level": "info"},
    times=2,
    limit_s=400,
)
async def half_detached(world: YearsWorld) -> None:
    """Leave the partition of today or of yesterday half detached; post for its time meanwhile."""
    for number in range(world.times):
        await world.answered(20)
        name = await _store_one_day(world, number % 2)
        await _half_detach(world, name)
        world.count()
        await world.old.post(world.old.rows(number % 2, 20))
        await world.wait_said(f'"step":"finish","partition":"{name}"', TOLD_S_MAX)
        await _waits_for_none(world)
        await _copy_back(world, name)
        world.fixed()


async def _copy_back(world: YearsWorld, name: str) -> None:
    """Store the readings again: there is another partition for the day, as soon as it was made."""
    sql = f"insert into readings select * from {name} on conflict do nothing; drop table {name}"
    async with asyncio.timeout(TOLD_S_MAX):
        while True:
            try:
                await world.server.run(sql)
            except asyncpg.CheckViolationError:
                await asyncio.sleep(0.2)
            else:
                return


async def _half_detach(world: YearsWorld, name: str) -> None:
    """Cut off a detach while it waits for a session that has used the table."""
    holder = await asyncpg.connect(world.server.url_of_superuser)
    by_hand = await asyncpg.connect(world.server.url_of_superuser)
    try:
        await holder.execute("begin")
        await holder.execute("lock table readings in access share mode")
        await by_hand.execute("set statement_timeout = '700ms'")
        with contextlib.suppress(asyncpg.QueryCanceledError):
            await by_hand.execute(f"alter table readings detach partition {name} concurrently")
            world.expect(False, "Y8: the detach was not cut off")
        await asyncio.sleep(GONE_S)
    finally:
        await holder.close()
        await by_hand.close()


async def _waits_for_none(world: YearsWorld) -> None:
    """Wait until no partition is half detached."""
    async with asyncio.timeout(TOLD_S_MAX):
        while await world.server.ask("select from pg_inherits where inhdetachpending"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _role_without_rights(world: YearsWorld) -> None:
    await world.server.run("create role keeper login password 'first'")
    await world.server.run("grant select, insert on readings to keeper")
    url = world.server.url.replace("//fleet:", "//keeper:")
    world.settings["housekeeping_url"] = url


@fault(
    "Y9",
    "housekeeping role without rights",
    "for 6 s, {n} times: readings wait, the log says what it lacks",
    years=True,
    before=_role_without_rights,
    times=3,
    limit_s=300,
)
async def without_rights(world: YearsWorld) -> None:
    """Take the rights of the role of the housekeeping, give them back."""
    waiting = 'ingest_readings_dead_lettered_total{reason="retries_exhausted"}'
    for _ in range(world.times):
        await world.answered(20)
        planned = await world.command("housekeeping", "plan")
        told = LACKS in planned.stdout
        world.expect(told, f"Y9: `housekeeping plan` does not say why: {planned.stdout[-300:]}")
        doctor = await world.command("doctor")
        world.expect(LACKS in doctor.stdout, f"Y9: doctor does not say why: {doctor.stdout[-500:]}")
        await world.wait_said(LACKS)
        await world.sleep(3)
        world.count()
        await world.server.run("grant fleet to keeper")
        world.fixed()
        await world.sleep(3)
        await world.kept(within_runs=2)
        await world.server.run("revoke fleet from keeper")
    world.expect((await world.service.metrics()).get(waiting), "Y9: nothing was ever set aside")
    await world.server.run("grant fleet to keeper")
    world.fixed()
