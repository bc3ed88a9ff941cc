"""Faults of PostgreSQL: killed, stopped, frozen, locked, out of room for clients."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg

from tests.faults.matrix import fault
from tests.faults.server import Server
from tests.faults.world import World

QUICK_INSERTS = "drop trigger slow on readings"


async def slow_inserts(server: Server) -> None:
    """Let every insert take 0.3 s once it has its rows, until QUICK_INSERTS."""
    await server.run(
        "create or replace function slow() returns trigger language plpgsql as "
        "'begin perform pg_sleep(0.3); return null; end'"
    )
    await server.run(
        "create trigger slow after insert on readings for each statement execute function slow()"
    )


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
    ts, answer = int(world.wall_s() * 1e6), None
    async with asyncio.timeout(60):
        while answer is None or answer.status != 503:
            ts += 1
            answer = await world.post({"device_id": "probe", "metric": "m", "ts": ts, "value": 1})
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
    "SIGSTOP to postmaster and backends for 4 to 7 s (the service gives up after 3) in the middle "
    "of an insert, SIGCONT, {n} times; `retries_max=0`, so that what was on its way is set aside "
    "and comes back by itself: what commits late is a duplicate, not a second row; nothing comes "
    "twice from the clients, so that each duplicate is one of these",
    times=3,
    settings={"retries_max": 0},
    duplicates=0.0,
)
async def frozen(world: World) -> None:
    """Freeze all of it while an insert has its rows and has not committed."""
    sleeping = "select from pg_stat_activity where usename = 'fleet' and wait_event = 'PgSleep'"
    for _ in range(world.times):
        await world.answered(20)
        await slow_inserts(world.server)
        async with asyncio.timeout(10):
            while not await world.server.run(sleeping):  # noqa: ASYNC110  in the database
                await asyncio.sleep(0.01)
        await world.server.freeze()
        try:
            await world.sleep(4, 7)
        finally:
            await world.server.thaw()
            world.mended()
        world.count()
        await world.server.run(QUICK_INSERTS)
        await world.service.wait_state("accepting", "slowed", within_s=40)
    samples = await world.service.metrics()
    name = 'ingest_readings_dead_lettered_total{reason="retries_exhausted"}'
    world.expect(samples.get(name), "F8: nothing was ever set aside")
    late = "ingest_readings_duplicate_total"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while not (await world.service.metrics())[late]:  # noqa: ASYNC110  of the service
                await asyncio.sleep(0.1)
    count = (await world.service.metrics())[late]
    world.expect(count, "F8: nothing was committed late and then written again")


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
            ts = (int(world.wall_s()) - 100_000 + number) * 1_000_000
            held = line.transaction()
            await held.start()
            await line.execute(sql, ts / 1e6, "second")
            posted = [
                {"device_id": name, "metric": "m", "ts": ts, "value": 1}
                for name in ("first", "second")
            ]
            answer = await world.post(*posted)
            world.expect(answer.status == 202, f"F17: {answer.status}")
            async with asyncio.timeout(10):
                while not await world.server.run(waiting):  # noqa: ASYNC110  in the database
                    await asyncio.sleep(0.01)
            with contextlib.suppress(asyncpg.DeadlockDetectedError):
                await line.execute(sql, ts / 1e6, "first")
                world.count()
            await held.rollback()
    finally:
        await line.close()
    seen = sum("40P01" in each for each in world.service.lines)
    world.expect(seen, "F17: the service was never the victim of a deadlock")
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
