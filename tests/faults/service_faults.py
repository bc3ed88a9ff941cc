"""Faults of the service's own process: killed, frozen, stopped, with wrong settings."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

from ingest.system.files import filesystem_of, is_volatile
from loadgen.words import counted
from tests.faults.machine import SmallDisk
from tests.faults.matrix import fault
from tests.faults.world import World
from tests.system.service import run_command


async def kill_and_start(world: World) -> None:
    """SIGKILL the service at a random moment, in 40 % of cases with the database out of reach."""
    stalled = world.random.random() < 0.4
    if stalled:
        world.proxy.stall()
    await world.sleep(0.03, 0.5)
    os.kill(world.service.pid, signal.SIGKILL)
    world.count()
    await world.service.ended()
    if stalled:
        await world.proxy.cut()
        world.proxy.resume()
    await world.restart()


@fault(
    "F2",
    "service killed",
    "SIGKILL {n} times, also during recovery; 40 % in an outage of the database",
    times=100,
    quick_times=2,
    limit_s=500,
)
async def killed(world: World) -> None:
    """Kill the service again and again."""
    for _ in range(world.times):
        await kill_and_start(world)
        if world.random.random() < 0.5:
            await asyncio.sleep(0)  # at once: in the middle of its recovery
        else:
            await world.answered(world.random.randrange(1, 30))


@fault(
    "F3",
    "service frozen",
    "SIGSTOP for 1 to 5 s, then SIGCONT, {n} times",
    times=4,
)
async def frozen(world: World) -> None:
    """Freeze the service and let it go on."""
    for _ in range(world.times):
        await world.answered(20)
        os.kill(world.service.pid, signal.SIGSTOP)
        try:
            await world.sleep(1, 5)
        finally:
            os.kill(world.service.pid, signal.SIGCONT)
        world.fixed()
        world.count()


@fault(
    "F4",
    "service stopped under load",
    "SIGTERM {n} times: all is written, nothing was kept without a 2xx",
    times=6,
    quick_times=1,
)
async def stopped(world: World) -> None:
    """Stop the service in order, start it again."""
    traffic, before = world.run, 0
    for _ in range(world.times):
        await world.answered(30)
        code, output = await world.service.stop()
        world.count()
        last = output.splitlines()[-1]
        world.expect(code == 0 and "lost=0" in last, f"F4: exit {code}: {last}")
        world.expect(
            "held=0 " in last, f"F4: the database is there, and not all is written: {last}"
        )
        await asyncio.sleep(0.1)  # the answers are here
        took = sum(int(found) for found in re.findall(r"(?:committed|dead_lettered)=(\d+)", last))
        kept, before = traffic.kept - before, traffic.kept
        world.expect(took == kept, f"F4: took in {took} readings, answered {kept} with a 2xx")
        await world.restart()
    world.found.figures.append(
        f"{counted(traffic.cut_off, 'post')} met a closing connection: not taken in, sent again"
    )


@fault(
    "F5",
    "second signal while it stops",
    "SIGTERM in an outage, then SIGTERM or SIGINT, {n} times: a soon end",
    times=5,
    settings={"drain_s_max": 60},
)
async def hastened(world: World) -> None:
    """Shorten a drain that would take a minute."""
    for _ in range(world.times):
        await world.answered(30)
        world.proxy.stall()
        await world.sleep(0.1, 0.4)
        first = asyncio.create_task(world.service.stop())
        await world.sleep(0.2, 0.8)
        if world.service.running:
            number = world.random.choice((signal.SIGTERM, signal.SIGINT))
            os.kill(world.service.pid, number)
        code, output = await first
        world.count()
        last = output.splitlines()[-2:]  # its log is another stream than what it prints at the end
        world.expect(code == 0 and "lost=0" in "".join(last), f"F5: exit {code}: {last}")
        await world.proxy.cut()
        world.proxy.resume()
        await world.restart()


@fault(
    "F32",
    "clock jumps",
    "1 h back, 1 h ahead, 3 h back, {n} times",
    times=2,
    mutant="clock",
)
async def clock_jumps(world: World) -> None:
    """Move the wall clock that the service sees, not the monotonic one."""
    ahead_us = int((world.wall_s() + 22 * 3600) * 1e6)
    for _ in range(world.times):
        for offset_s in (-3600, 3600, -3 * 3600, 0):
            world.clock(offset_s)
            world.count()
            await world.answered(15)
            reading = {"device_id": "clock", "metric": "m", "ts": ahead_us, "value": 1 + offset_s}
            answer = await world.post(reading)
            wanted = 422 if offset_s == -3 * 3600 else 202
            world.expect(answer.status == wanted, f"F32: {answer.status} at {offset_s} s")
            if wanted == 422:
                world.expect("ts_in_future" in answer.text, f"F32: {answer.text[:100]}")


@fault(
    "F48",
    "wrong configuration at the start",
    "journal on tmpfs: no start; PostgreSQL without fsync ..: `doctor` exits 1",
    times=1,
)
async def wrong_configuration(world: World) -> None:
    """Ask for a promise that the machine cannot keep."""
    volatile = next((each for each in ("/dev/shm", "/run") if _is_tmpfs(each)), None)  # noqa: S108
    if volatile is None:
        world.expect(False, "F48: this machine has no tmpfs to try")
        return
    folder = Path(tempfile.mkdtemp(prefix="ingest-faults-", dir=volatile))
    try:
        url = world.server.url
        words = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
        own = world.folder / "own"
        world.undo.enter_context(SmallDisk(own / "journal", 1024))
        for state in (folder, own):
            done = await run_command(
                "ingest", "serve", *words, "--state-dir", state, "--database-url", url
            )
            said = "would not be durable" in done.stderr
            world.expect(done.code != 0 and said, f"F48: exit {done.code}: {done.stderr[-200:]}")
            world.count()
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            await world.server.run(f"alter system set {name} = off")
            await world.server.run("select pg_reload_conf()")
            try:
                done = await run_command(
                    *("ingest", "doctor", *words, "--database-url", url),
                    *("--state-dir", world.folder / "doctor"),
                )
            finally:
                await world.server.run(f"alter system reset {name}")
                await world.server.run("select pg_reload_conf()")
            told = done.code == 1 and name in done.stdout
            world.expect(told, f"F48: {name}=off: exit {done.code}: {done.stdout[-300:]}")
            world.count()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_tmpfs(folder: str) -> bool:
    return is_volatile(filesystem_of(Path(folder))) and os.access(folder, os.W_OK)
