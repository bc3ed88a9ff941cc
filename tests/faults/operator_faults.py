"""Faults of PostgreSQL that its operator makes: read-only, another schema, no privilege."""

from __future__ import annotations

from tests.faults.matrix import fault
from tests.faults.world import World

HOLD_S = 3.0


async def _reload(world: World, *sql: str) -> None:
    for each in (*sql, "select pg_reload_conf()"):
        await world.server.run(each)


@fault(
    "F18",
    "database read-only",
    "default_transaction_read_only=on for 3 s, {n} times",
    times=2,
)
async def read_only(world: World) -> None:
    """Make the database read-only for a time."""
    for _ in range(world.times):
        await world.answered(20)
        await _reload(world, "alter system set default_transaction_read_only = on")
        try:
            await world.sleep(HOLD_S)
        finally:
            await _reload(
                world,
                "alter system reset default_transaction_read_only",
            )
        world.count()
    await world.expect_none_set_aside()


async def paused(
    world: World, reason: str, breaks: list[str], fixes: list[str], *, none: str = ""
) -> None:
    """Break the table for HOLD_S: writes are paused for a reason, and go on once it is fixed.

    `none` is a question to the database that must find no row before the table is fixed.
    """
    for sql in breaks:
        await world.server.run(sql)
    try:
        document = await world.service.wait_state("on_hold", within_s=20)
        world.expect(document["cause"] == reason, f"{world.fault.name}: {document}")
        await world.sleep(HOLD_S)
        if none:
            found = await world.server.run(none)
            world.expect(not found, f"{world.fault.name}: {len(found)} rows for {none}")
    finally:
        for sql in fixes:
            await world.server.run(sql)
        world.fixed()
    world.count()
    await world.service.wait_state("accepting", "slowed", within_s=30)


@fault(
    "F21",
    "schema changed",
    "a column renamed, then `value` as bigint, {n} rounds: on hold",
    times=2,
)
async def schema_changed(world: World) -> None:
    """Change the table, change it back."""
    rename = "alter table readings rename column {} to {}"
    swap = [
        "alter table readings rename to readings_was; "
        "create table readings (like readings_was including all); "
        "alter table readings alter column value type bigint; "
        "alter table readings owner to fleet",
    ]
    back = ["drop table readings; alter table readings_was rename to readings"]
    for _ in range(world.times):
        await world.answered(20)
        await paused(
            world, "schema", [rename.format("value", "v2")], [rename.format("v2", "value")]
        )
        await world.answered(20)
        await paused(world, "schema", swap, back)
    await world.expect_none_set_aside()


@fault(
    "F22",
    "privilege and password changed",
    "INSERT revoked, then another password, {n} rounds: on hold",
    times=2,
)
async def locked_out(world: World) -> None:
    """Take rights from the service, give them back."""
    end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet'"
    for _ in range(world.times):
        await world.answered(20)
        await paused(
            world,
            "permission",
            ["revoke insert on readings from fleet"],
            ["grant insert on readings to fleet"],
        )
        await world.answered(20)
        await paused(
            world,
            "authentication",
            ["alter role fleet password 'second'", end],
            ["alter role fleet password 'first'"],
        )
    await world.expect_none_set_aside()
