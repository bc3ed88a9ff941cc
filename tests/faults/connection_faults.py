"""Faults of the connections: service to database, and clients to service at the same time."""

from __future__ import annotations

import asyncio

from tests.faults.database_faults import QUICK_INSERTS, slow_inserts
from tests.faults.matrix import fault
from tests.faults.world import World
from tests.support.faulty_proxy import DIRECTIONS, Direction

STALLS: tuple[tuple[Direction, ...], ...] = ((), ("to_server",), ("to_client",))
COPY_DONE, COMMIT = b"c\x00\x00\x00\x04", b"commit\x00"
RANGES = ((1, 8), (8, 64), (64, 512), (512, 4096), (4096, 16384))  # bytes after which it is cut


@fault(
    "F11",
    "reply of the COMMIT lost",
    "{n} times: written twice, stored once",
    times=30,
    quick_times=5,
)
async def reply_lost(world: World) -> None:
    """Lose the reply to the commit."""
    for _ in range(world.times):
        over = world.proxy.lose_replies(1, after=(COPY_DONE, COMMIT))
        async with asyncio.timeout(30):
            await over.wait()
        world.count()
        await world.sleep(0.02, 0.3)
    lost = world.proxy.bytes_lost  # that writes are then repeated is what mutant M4 shows
    world.expect(lost >= world.times, f"F11: {lost} bytes of replies lost")
    world.fixed()
    await world.expect_none_set_aside()


@fault(
    "F12",
    "connection cut after n bytes",
    "after 1 to 16,384 bytes in either direction, {n} times",
    times=50,
)
async def line_cut(world: World) -> None:
    """Cut the connection in every range of bytes."""
    for number in range(world.times):
        direction = DIRECTIONS[number % 2]
        least, most = RANGES[number // 2 % len(RANGES)]
        before = world.proxy.connections_total
        world.proxy.cut_after(direction, world.random.randrange(least, most))
        async with asyncio.timeout(40):
            while world.proxy.connections_total == before:  # noqa: ASYNC110  of the proxy
                await asyncio.sleep(0.01)
        world.count()
        await world.sleep(0.02, 0.15)
    world.proxy.keep_whole()
    await world.expect_none_set_aside()


@fault(
    "F13",
    "connection dead without an error",
    "no byte passes for 4 to 7 s, {n} times",
    times=3,
)
async def black_hole(world: World) -> None:
    """Stop all bytes, and keep the connection open."""
    for _ in range(world.times):
        await world.answered(20)
        world.proxy.stall()
        await world.sleep(4, 7)
        world.proxy.resume()
        world.fixed()
        world.count()
        await world.service.wait_state("accepting", "slowed", within_s=45)
    await world.expect_none_set_aside()


@fault(
    "F14",
    "slow database",
    "20 kB/s for 6 s; then each insert takes 0.3 s for 4 s",
    settings={"command_s_max": 10, "drain_s_max": 20},
    rate=100.0,
)
async def slow(world: World) -> None:
    """Make the database slower than the load."""
    world.run.p99_ms()
    await world.answered(200)
    normal_ms = world.run.p99_ms()
    world.proxy.slow(20_000)
    await world.sleep(6)
    world.proxy.slow(None)
    world.count()
    slow_ms = world.run.p99_ms()
    await slow_inserts(world.server)
    await world.sleep(4)
    await world.server.run(QUICK_INSERTS)
    world.count()
    world.found.figures.append(
        f"answers' p99 {normal_ms:.0f} ms before, {slow_ms:.0f} ms on the slow connection, "
        f"{world.run.p99_ms():.0f} ms with slow inserts"
    )
    await world.expect_none_set_aside()


@fault(
    "F15",
    "latency and jitter",
    "50 to 400 ms for each chunk, for {n} s",
    times=6,
    settings={"command_s_max": 10, "drain_s_max": 20, "connect_s_max": 8},
)
async def jitter(world: World) -> None:
    """Delay every chunk, as over a long distance."""
    world.proxy.delay(lambda: world.random.uniform(0.05, 0.4))
    await world.sleep(world.times)
    world.proxy.delay(None)
    world.count()
    await world.expect_none_set_aside()


@fault(
    "F50",
    "connections fail in random orders",
    "stalled, slowed, refused or cut, {n} rounds",
    times=8,
    front=True,
)
async def random_orders(world: World) -> None:
    """Disturb connections one by one, repair them in another order."""
    proxies = [world.proxy, world.front]
    for _ in range(world.times):
        await world.answered(10, within_s=60)
        chosen = world.random.sample(proxies, world.random.randint(1, 2))
        for proxy in chosen:
            match world.random.randrange(4):
                case 0:
                    proxy.stall(*world.random.choice(STALLS))
                case 1:
                    proxy.slow(2_000)
                case 2:
                    proxy.refuse()
                    await proxy.cut()
                case _:
                    await proxy.cut()
            await world.sleep(0.2, 1.5)
        for proxy in world.random.sample(chosen, len(chosen)):
            proxy.resume()
            proxy.slow(None)
            await proxy.accept()
            await world.sleep(0.1, 0.5)
        world.count()
