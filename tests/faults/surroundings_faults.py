"""Faults around the database: pooler, standby, password file, folder of sockets, no database."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from tests.faults.matrix import fault
from tests.faults.pooler import Pooler
from tests.faults.world import PLAIN, World
from tests.system.service import Service

OURS = (
    "select from pg_stat_activity where usename = 'fleet' and application_name like 'iot-ingest%'"
)
END = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet'"
WRITERS = 2


async def _rounds(world: World) -> AsyncIterator[int]:
    """Number the harms: each comes while posts are answered, and the service recovers after it."""
    for number in range(world.times):
        await world.answered(20)
        yield number
        world.fixed()
        world.count()
        await world.service.wait_state("accepting", "slowed", within_s=40)


@fault(
    "F51",
    "synchronous standby missing",
    "for 15 s, {n} times: named as the reason; at most two more connections",
    times=2,
    settings={"writers": WRITERS},
    database={"max_connections": "30"},
    limit_s=240,
)
async def standby_missing(world: World) -> None:
    """Let every commit wait for a standby that does not exist."""
    async for _ in _rounds(world):
        await world.server.run("alter system set synchronous_standby_names = 'nobody'")
        await world.server.run("select pg_reload_conf()")
        most, reason = 0, ""
        end_s = world.now_s() + 15
        while world.now_s() < end_s:
            most = max(most, len(await world.server.run(OURS)))
            document = (await world.service.readyz()).document
            reason = document["reason"] if "standby" in str(document["reason"]) else reason
            await asyncio.sleep(0.2)
        world.expect(most <= WRITERS + 2, f"F51: {most} connections of the service")
        world.expect(reason, "F51: no reason names the standby")
        await world.server.run("alter system reset synchronous_standby_names")
        await world.server.run("select pg_reload_conf()")
    await world.expect_none_set_aside()


async def _password_file(world: World) -> None:
    path = world.folder / "database-url"
    path.write_text(world.server.url_over(world.proxy.port))
    world.settings["database_url_file"] = path


@fault(
    "F52",
    "password and its file changed",
    "the file 3 s after the password, {n} times: no restart",
    times=4,
    before=_password_file,
)
async def password_file(world: World) -> None:
    """Change the password in the database first, in the file later."""
    path = Path(str(world.settings["database_url_file"]))
    async for number in _rounds(world):
        old, new = ("first", "second") if number % 2 == 0 else ("second", "first")
        await world.server.run(f"alter role fleet password '{new}'")
        await world.server.run(END)
        document = await world.service.wait_state("on_hold", within_s=20)
        world.expect("authentication" in str(document), f"F52: {document['reason']}")
        await world.sleep(3)
        path.write_text(path.read_text().replace(f":{old}@", f":{new}@"))
    await world.expect_none_set_aside()


@fault(
    "F53",
    "start without the database",
    "posts, a kill, a start; then the database comes, {n} times",
    times=3,
)
async def start_without_database(world: World) -> None:
    """Start the service while its database is away."""
    async for number in _rounds(world):
        await world.server.stop()
        for _ in range(2):
            await world.service.kill()
            await world.restart()
            kept = world.run.kept
            await world.sleep(1.5)
            world.expect(world.run.kept > kept, f"F53: start {number}: no post is taken")
        await world.server.come_back()
    await world.expect_none_set_aside()


@fault(
    "F54",
    "socket folder of the embedded database gone",
    "and its connections end, {n} times: no restart",
    times=2,
)
async def sockets_removed(world: World) -> None:
    """Remove the folder through which the embedded server is reached."""
    first_us = world.run.job.plan.first_us
    item = {"device_id": "sockets", "metric": "m", "value": 1}
    posted = 0
    folder = world.folder / "second"
    async with Service(folder, env={}, program=PLAIN, **world.settings) as second:
        await second.wait_state("accepting", within_s=40)
        for _ in range(world.times):
            url = second.info.database_url
            sockets = Path(url.partition("host=")[2].partition("&")[0].replace("%2F", "/"))
            world.expect(sockets.is_dir(), f"F54: no folder in {url}")
            await second.query(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name like 'iot-ingest%'"
            )
            shutil.rmtree(sockets)
            taken = await second.post([{**item, "ts": first_us + posted}])
            world.expect(taken.status == 202, f"F54: {taken.status} without sockets")
            posted += taken.status == 202
            stored = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(40):
                    while stored is None or stored.status != 200:
                        stored = await second.post(
                            [{**item, "ts": first_us + posted}], ack="committed"
                        )
                        await asyncio.sleep(0.2)
            world.expect(stored and stored.status == 200, "F54: nothing is stored again")
            posted += 1
            world.count()
        await second.wait_quiet()
        (found,) = await second.query("select count(*) from readings")
        world.expect(found["count"] == posted, f"F54: {found['count']} of {posted} are stored")
    world.fixed()


async def _pooled(world: World) -> None:
    pooler = Pooler(world.folder / "pooler", world.server, world.proxy.port)
    await world.undo.enter_async_context(pooler)
    world.settings["database_url"] = pooler.url
    world.pooler = pooler


@fault(
    "F55",
    "PgBouncer in between",
    "killed {n} times; then transaction mode: on hold, the pooler is named",
    times=4,
    before=_pooled,
)
async def pooled(world: World) -> None:
    """Kill the pooler; start it in a mode that cannot work."""
    pooler = world.pooler
    assert pooler is not None, "made before the service"
    async for _ in _rounds(world):
        await pooler.kill()
        await world.sleep(0, 0.5)
        await pooler.start("session")
    await pooler.kill()
    await pooler.start("transaction")
    try:
        document = await world.service.wait_state("on_hold", within_s=20)
        world.expect("pool" in str(document["reason"]), f"F55: {document['reason']}")
        await world.sleep(3)
        still = (await world.service.readyz()).document["state"]
        world.expect(still == "on_hold", f"F55: {still} in transaction mode")
    finally:
        await pooler.kill()
        await pooler.start("session")
        world.fixed()
    await world.service.wait_state("accepting", "slowed", within_s=30)
    await world.expect_none_set_aside()
