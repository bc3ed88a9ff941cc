"""Faults of PostgreSQL: killed, stopped, frozen, locked, without free connections."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg

from tests.faults.matrix import fault
from tests.faults.server import Server
from tests.faults.world import World
from tests.support.locks import table_locked

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


MORE_FREEZES = 3  # of F8, while nothing was committed late


@fault(
    "F6",
    "PostgreSQL restarted",
    "`fast` and `immediate`, {n} times",
    times=6,
)
async def restarted(world: World) -> None:
    """Restart PostgreSQL in two ways."""
    for number in range(world.times):
        await world.answered(20)
        await (world.server.kill() if number % 2 else world.server.stop())
        await world.sleep(0, 1)
        await world.server.come_back()
        world.fixed()
        world.count()
    await world.expect_none_set_aside()


@fault(
    "F7",
    "PostgreSQL away until all is full",
    "5,000 readings in memory, 1 MiB of journal: 503 with Retry-After",
    settings={
        "buffer_rows_max": 5_000,
        "journal_bytes_max": 1 << 20,
        "post_rows_max": 400,
        "full_s_min": 1,
    },
    rate=150.0,
)
async def away(world: World) -> None:
    """Stop PostgreSQL until the buffer is full; small bounds make that short."""
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
    world.fixed()
    await world.expect_none_set_aside()


@fault(
    "F8",
    "PostgreSQL frozen",
    "SIGSTOP for 4 to 7 s around an insert, {n} times: a late commit is stored once",
    times=3,
    settings={"retries_max": 0},
    duplicates=0.0,
)
async def frozen(world: World) -> None:
    """Freeze PostgreSQL while an insert has its rows and has not committed.

    It is cancelled then, since its time is over. A batch that comes while the server is frozen is
    not: it is committed late. For that, one time no insert is slow.
    """
    sleeping = "select from pg_stat_activity where usename = 'fleet' and wait_event = 'PgSleep'"
    late = "ingest_readings_duplicate_total"
    for number in range(world.times + MORE_FREEZES):
        # On a busy machine there may have been no batch on its way at the one moment.
        if number >= world.times and (await world.service.metrics())[late]:
            break
        slow = number < world.times and number % 2 == 0
        await world.answered(20)
        if slow:
            await slow_inserts(world.server)
        async with asyncio.timeout(10):
            while slow and not await world.server.run(sleeping):  # noqa: ASYNC110  in the database
                await asyncio.sleep(0.01)
        await world.server.freeze()
        try:
            await world.sleep(4, 7)
        finally:
            await world.server.thaw()
            world.fixed()
        world.count()
        if slow:
            await world.server.run(QUICK_INSERTS)
        await world.service.wait_state("accepting", "slowed", within_s=40)
    samples = await world.service.metrics()
    name = 'ingest_readings_dead_lettered_total{reason="retries_exhausted"}'
    world.expect(samples.get(name), "F8: nothing was ever set aside")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while not (await world.service.metrics())[late]:  # noqa: ASYNC110  of the service
                await asyncio.sleep(0.1)
    count = (await world.service.metrics())[late]
    world.expect(count, "F8: nothing was committed late and then written again")


@fault(
    "F9",
    "backends ended in a COPY",
    "pg_terminate_backend, {n} times",
    times=40,
)
async def terminated(world: World) -> None:
    """End the service's connections again and again."""
    end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet'"
    for _ in range(world.times):
        world.found.count += len(await world.server.run(end))
        world.fixed()
        await world.sleep(0.02, 0.2)
    await world.expect_none_set_aside()


@fault(
    "F10",
    "PostgreSQL killed",
    "{n} times: SIGKILL to all processes, the postmaster or a backend; an immediate stop",
    times=44,
    quick_times=2,
    limit_s=400,
)
async def killed(world: World) -> None:
    """Kill PostgreSQL in four ways."""
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
        world.fixed()
    await world.expect_none_set_aside()


@fault(
    "F16",
    "table locked",
    "ACCESS EXCLUSIVE for 3 to 5 s, {n} times",
    times=2,
)
async def locked(world: World) -> None:
    """Lock the table against all other clients."""
    for _ in range(world.times):
        await world.answered(20)
        async with table_locked(world.server.url, "access exclusive"):
            await world.sleep(3, 5)
        world.count()
    await world.expect_none_set_aside()


@fault(
    "F17",
    "deadlock",
    "the same keys in another order, {n} times",
    times=4,
    database={"deadlock_timeout": "200ms"},
)
async def deadlocked(world: World) -> None:
    """Make the service the victim of a deadlock."""
    sql = "insert into readings values (to_timestamp($1), $2, 'm', 1.0)"
    waiting = "select 1 from pg_locks where not granted and locktype = 'transactionid'"
    connection = await asyncpg.connect(world.server.url_of_superuser)
    try:
        await connection.execute("set deadlock_timeout = '20s'")
        for number in range(world.times):
            await world.answered(10)
            ts = (int(world.wall_s()) - 100_000 + number) * 1_000_000
            held = connection.transaction()
            await held.start()
            await connection.execute(sql, ts / 1e6, "second")
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
                await connection.execute(sql, ts / 1e6, "first")
                world.count()
            await held.rollback()
    finally:
        await connection.close()
    seen = sum("40P01" in each for each in world.service.lines)
    world.expect(seen, "F17: the service was never the victim of a deadlock")
    await world.expect_none_set_aside()


@fault(
    "F19",
    "too many connections",
    "others take all {n} free ones for 4 s: few new tries",
    times=12,
    database={"max_connections": "16"},
)
async def crowded(world: World) -> None:
    """Take every connection that PostgreSQL allows."""
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
        before = world.proxy.connections_total
        await world.sleep(4)
        tries = world.proxy.connections_total - before
        world.expect(0 < tries < 60, f"F19: {tries} connections tried in 4 s")
    finally:
        for each in taken:
            each.terminate()
        world.fixed()
    await world.service.wait_state("accepting", "slowed", within_s=30)
    await world.expect_none_set_aside()
