"""Faults of PostgreSQL: killed, stopped, frozen, locked, full, changed by its operator."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg

from tests.faults.matrix import fault
from tests.faults.world import World

HOLD_S = 3.0


async def _reload(world: World, *sql: str) -> None:
    for each in (*sql, "select pg_reload_conf()"):
        await world.server.run(each)


@fault(
    "F6",
    "PostgreSQL restarted",
    "stopped in the ways `fast` and `immediate` in turn and started again, {n} times; nothing is "
    "dead-lettered for it",
    times=6,
)
async def restarted(world: World) -> None:
    """Restart it."""
    for number in range(world.times):
        await world.answered(20)
        await (world.server.kill() if number % 2 else world.server.stop())
        await world.sleep(0, 1)
        await world.server.come_back()
        world.mended()
        world.count()
    await world.expect_none_set_aside()


@fault(
    "F7",
    "PostgreSQL away until all is full",
    "stopped until memory (5,000 readings) and journal (1 MiB) are full and 3 s longer: 503 with "
    "Retry-After, memory bounded, goes on by itself",
    settings={
        "buffer_rows_max": 5_000,
        "journal_bytes_max": 1 << 20,
        "inflated_bytes_max": 1 << 20,
        "full_s_min": 1,
    },
    rate=150.0,
)
async def away(world: World) -> None:
    """Take it away for long, made short by little room."""
    await world.answered(20)
    await world.server.stop()
    world.count()
    probe = {"device_id": "probe", "metric": "m", "value": 1}
    async with asyncio.timeout(60):
        while (answer := await world.service.post(probe)).status != 503:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    world.expect("Retry-After" in answer.headers, "F7: a 503 without Retry-After")
    await world.sleep(3)
    world.expect((await world.service.readyz()).status == 503, "F7: full, and ready all the same")
    await world.server.come_back()
    world.mended()
    await world.expect_none_set_aside()


@fault(
    "F8",
    "PostgreSQL frozen",
    "SIGSTOP to postmaster and backends for 4 to 7 s (the service gives up after 3), SIGCONT, {n} "
    "times; `retries_max=0`, so that what was on its way is set aside and comes back by itself: "
    "what commits late is a duplicate, not a second row",
    times=3,
    settings={"retries_max": 0},
)
async def frozen(world: World) -> None:
    """Freeze all of it."""
    for _ in range(world.times):
        await world.answered(20)
        await world.server.freeze()
        try:
            await world.sleep(4, 7)
        finally:
            await world.server.thaw()
            world.mended()
        world.count()
        await world.service.wait_state("accepting", "slowed", within_s=40)
    samples = await world.service.metrics()
    name = 'ingest_readings_dead_lettered_total{reason="retries_exhausted"}'
    world.expect(samples.get(name), "F8: nothing was ever set aside")


@fault(
    "F9",
    "backends ended in the middle of a COPY",
    "pg_terminate_backend for the service's connections, {n} times, each after 20 to 200 ms",
    times=40,
)
async def terminated(world: World) -> None:
    """End its connections again and again."""
    end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet'"
    for _ in range(world.times):
        world.found.count += len(await world.server.run(end))
        world.mended()
        await world.sleep(0.02, 0.2)
    await world.expect_none_set_aside()


@fault(
    "F10",
    "PostgreSQL killed",
    "{n} times under load, in a drawn order: SIGKILL to all of its processes at once, SIGKILL to "
    "the postmaster alone, an immediate stop, SIGKILL to one backend (which makes it crash and "
    "recover by itself), as often each; nothing is dead-lettered for it",
    times=44,
    quick_times=2,
    limit_s=400,
)
async def killed(world: World) -> None:
    """Kill it in four ways."""
    server = world.server
    ways = [server.kill_all, server.kill_postmaster, server.kill, server.kill_backend]
    drawn = [ways[number % 4] for number in range(world.times)]
    world.random.shuffle(drawn)
    for kill in drawn:
        await world.answered(world.random.randrange(3, 20), within_s=60)
        await kill()
        world.count()
        if not server.pids():
            await world.sleep(0, 0.3)
            await server.come_back()
        world.mended()
    await world.expect_none_set_aside()


@fault(
    "F16",
    "table locked",
    "ACCESS EXCLUSIVE for 3 to 5 s, {n} times: tried again, nothing dead-lettered",
    times=2,
)
async def locked(world: World) -> None:
    """Lock it against everybody."""
    for _ in range(world.times):
        await world.answered(20)
        line = await asyncpg.connect(world.server.url)
        try:
            async with line.transaction():
                await line.execute("lock table readings in access exclusive mode")
                await world.sleep(3, 5)
        finally:
            await line.close()
        world.count()
    await world.expect_none_set_aside()


@fault(
    "F17",
    "deadlock",
    "another client inserts the same two keys in the other order, {n} times: PostgreSQL ends the "
    "service's transaction with 40P01; tried again",
    times=4,
    database={"deadlock_timeout": "200ms"},
)
async def deadlocked(world: World) -> None:
    """Make the service the victim of a deadlock."""
    sql = "insert into readings values (to_timestamp($1), $2, 'm', 1.0)"
    waiting = "select 1 from pg_locks where not granted and locktype = 'transactionid'"
    line = await asyncpg.connect(world.server.url_of_superuser)
    try:
        await line.execute("set deadlock_timeout = '20s'")
        for number in range(world.times):
            await world.answered(10)
            ts = int(world.wall_s()) - 100_000 + number
            held = line.transaction()
            await held.start()
            await line.execute(sql, float(ts), "second")
            posted = [
                {"device_id": name, "metric": "m", "ts": ts, "value": 1}
                for name in ("first", "second")
            ]
            answer = await world.service.post(posted)
            world.expect(answer.status == 202, f"F17: {answer.status}")
            async with asyncio.timeout(10):
                while not await world.server.run(waiting):  # noqa: ASYNC110  in the database
                    await asyncio.sleep(0.01)
            with contextlib.suppress(asyncpg.DeadlockDetectedError):
                await line.execute(sql, float(ts), "first")
                world.count()
            await held.rollback()
    finally:
        await line.close()
    seen = sum("40P01" in each for each in world.service.lines)
    world.expect(seen, "F17: the service was never the victim of a deadlock")
    rows = "select device_id from readings where device_id in ('first', 'second')"
    async with asyncio.timeout(20):
        while len(await world.server.run(rows)) < 2 * world.times:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await world.expect_none_set_aside()


@fault(
    "F18",
    "read-only, as after a failover",
    "default_transaction_read_only=on for 3 s, {n} times: waits, nothing dead-lettered",
    times=2,
)
async def read_only(world: World) -> None:
    """Let nobody write."""
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


@fault(
    "F19",
    "too many connections",
    "the service's connections ended and all {n} free ones taken by others for 4 s: waits, and "
    "does not storm the server",
    times=12,
    database={"max_connections": "16"},
)
async def crowded(world: World) -> None:
    """Take every connection there is."""
    await world.answered(20)
    taken: list[asyncpg.Connection] = []
    end = (
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where usename = 'fleet' and application_name like 'iot-ingest%'"
    )
    try:
        there = (
            "select from pg_stat_activity "
            "where usename = 'fleet' and application_name like 'iot-ingest%'"
        )
        full = False
        async with asyncio.timeout(20):
            while not full or await world.server.run(there):
                await world.server.run(end)
                try:
                    taken.append(await asyncpg.connect(world.server.url))
                    full = False
                except asyncpg.TooManyConnectionsError:
                    full = True
        world.found.count = len(taken)
        before = world.line.connections_total
        await world.sleep(4)
        tries = world.line.connections_total - before
        world.expect(0 < tries < 60, f"F19: {tries} connections tried in 4 s")
    finally:
        for each in taken:
            each.terminate()
        world.mended()
    await world.service.wait_state("accepting", "slowed", within_s=30)
    await world.expect_none_set_aside()


async def _on_hold(world: World, reason: str, breaks: list[str], mends: list[str]) -> None:
    for sql in breaks:
        await world.server.run(sql)
    try:
        document = await world.service.wait_state("on_hold", within_s=20)
        world.expect(reason in document["reason"], f"{world.fault.name}: {document['reason']}")
        await world.sleep(HOLD_S)
    finally:
        for sql in mends:
            await world.server.run(sql)
        world.mended()
    world.count()
    await world.service.wait_state("accepting", "slowed", within_s=30)


@fault(
    "F21",
    "schema changed under it",
    "column renamed for 3 s; value altered to numeric type for 3 s; {n} rounds: on hold with the "
    "reason, nothing dead-lettered, no wrong value",
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
        await _on_hold(
            world, "schema", [rename.format("value", "v2")], [rename.format("v2", "value")]
        )
        await world.answered(20)
        await _on_hold(world, "schema", swap, back)
    await world.expect_none_set_aside()


@fault(
    "F22",
    "privilege and password changed",
    "INSERT revoked for 3 s; password changed and connections ended for 3 s; {n} rounds: on hold, "
    "goes on by itself, nothing dead-lettered",
    times=2,
)
async def locked_out(world: World) -> None:
    """Lock the service out, let it in again."""
    end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet'"
    for _ in range(world.times):
        await world.answered(20)
        await _on_hold(
            world,
            "",
            ["revoke insert on readings from fleet"],
            ["grant insert on readings to fleet"],
        )
        await world.answered(20)
        await _on_hold(
            world,
            "authentication",
            ["alter role fleet password 'second'", end],
            ["alter role fleet password 'first'"],
        )
    await world.expect_none_set_aside()
