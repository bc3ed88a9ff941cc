"""Faults of a service that lacks what it needs: descriptors, memory, the processor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
from pathlib import Path

import aiohttp

from tests.faults.machine import Cgroup
from tests.faults.matrix import fault
from tests.faults.world import World

EMFILE = os.strerror(errno.EMFILE)
EMFILE_S = 1.5
CPU_SHARE_MAX = 0.3  # of one core, usually 0.05: an accept that spins takes all that it can get


def _cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@fault(
    "F29",
    "no file descriptors left",
    "for 1.5 s, {n} times: less than 30 % of a core",
    times=3,
    settings={"journal_segment_bytes": 8192},
)
async def without_descriptors(world: World) -> None:
    """Take the descriptors away, give them back."""
    pid, lines = world.service.pid, world.service.lines
    for _ in range(world.times):
        await world.answered(20)
        lines_before = len(lines)
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used - 1, before[1]))
        host, _, port = world.url.removeprefix("http://").partition(":")
        idle = []
        try:
            for _ in range(60):
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(1):
                        idle.append((await asyncio.open_connection(host, int(port)))[1])
            cpu_s, began_s = _cpu_s(pid), world.now_s()
            await world.sleep(EMFILE_S)
            share = (_cpu_s(pid) - cpu_s) / (world.now_s() - began_s)
            world.expect(share < CPU_SHARE_MAX, f"F29: {share:.0%} of a core without descriptors")
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            for each in idle:
                each.close()
        world.fixed()
        world.count()
        await world.service.wait_state("accepting", "slowed")
        is_logged = any(EMFILE in line for line in lines[lines_before:])
        world.expect(is_logged, "F29: nothing said that there are no descriptors left")
    for what in ("accept_failed", "journal_write_failed"):
        is_logged = any(what in line and EMFILE in line for line in lines)
        world.expect(is_logged, f"F29: no {what} for want of descriptors")
    world.expect(world.service.pid == pid and world.service.running, "F29: the service ended")


@fault(
    "F30",
    "out of memory",
    "a cgroup's limit, posts of 5,000 readings in an outage, {n} times",
    times=3,
)
async def out_of_memory(world: World) -> None:
    """Let the kernel kill the service for its use of memory."""
    with Cgroup(f"faults-{os.getpid()}-{world.random.getrandbits(24):x}") as group:
        for number in range(world.times):
            group.adopt(world.service.pid)
            await world.answered(20)
            world.proxy.stall()
            answer = await _post_large(world, number)
            world.expect(answer == 202, f"F30: {answer} before there was a limit")
            group.limit(256 << 10)
            growing = asyncio.create_task(_grow(world, number))
            try:
                async with asyncio.timeout(20):
                    code, _ = await world.service.ended()
            finally:
                growing.cancel()
                await asyncio.wait([growing])
            world.expect(code == -signal.SIGKILL, f"F30: ended with {code}, not killed")
            world.count()
            await world.proxy.cut()
            world.proxy.resume()
            await world.restart()


async def _post_large(world: World, number: int) -> int:
    first, ts = world.random.getrandbits(40), int(world.wall_s() * 1e6)
    items = (
        {"device_id": "large", "metric": f"m{number}", "ts": ts, "value": first + n}
        for n in range(5_000)
    )
    return (await world.post(*items)).status


async def _grow(world: World, number: int) -> None:
    """Post large bodies, several at a time, until the service has ended."""

    async def post() -> None:
        while world.service.running:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await _post_large(world, number)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(post())


@fault(
    "F31",
    "no processor",
    "stopped for 95 of each 100 ms, for {n} s",
    times=5,
)
async def starved(world: World) -> None:
    """Give the service a twentieth of a core."""
    pid = world.service.pid
    end_s = world.now_s() + world.times
    while world.now_s() < end_s:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.095)
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.005)
    world.count()
