"""Faults of disks: PostgreSQL's disk full; the service's full, failing, damaged; power loss.

Here a power loss concerns the service's own files (forgetting.py). power_faults.py has the power
loss of the whole machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import asyncpg

from ingest.buffers.frames import FrameReader
from ingest.buffers.journal.segments import HEADER_BYTES, header_fault, segment_files, segment_name
from loadgen.proof.letter_sources import Files
from tests.faults.forgetting import forget
from tests.faults.machine import SmallDisk
from tests.faults.matrix import fault
from tests.faults.world import World

NTH_MAX = 200


async def _full_tablespace(world: World) -> None:
    """Put the table onto a file system of 4 MiB."""
    folder = world.folder / "small"
    home = world.server.home
    disk = world.undo.enter_context(SmallDisk(folder, 4096, owner=(home.user.uid, home.user.gid)))
    world.small = disk
    await world.server.run(f"create tablespace small location '{folder}'")
    await world.server.run("alter table readings set tablespace small")
    await world.server.run("alter index readings_pkey set tablespace small")


@fault(
    "F20",
    "PostgreSQL's disk full",
    "the table's for 3 s, then pg_wal's until PostgreSQL panics",
    before=_full_tablespace,
    rate=200.0,
)
async def disk_full(world: World) -> None:
    """Fill PostgreSQL's disk: first for rows, then for WAL."""
    assert world.small is not None, "mounted before"
    full = asyncio.create_task(world.service.wait_line("53100", within_s=90))
    await full
    world.count()
    await world.sleep(3)
    world.small.grow(256 << 10)
    await world.service.wait_state("accepting", "slowed", within_s=40)
    await _fill_wal(world)
    await world.expect_none_set_aside()


async def _fill_wal(world: World) -> None:
    """Move pg_wal to a small file system, fill that, and take the filler away again."""
    server, home = world.server, world.server.home
    await server.stop()
    wal, small = home.data / "pg_wal", world.folder / "wal"
    owner = (home.user.uid, home.user.gid)
    disk = world.undo.enter_context(SmallDisk(small, 80 << 10, owner=owner))
    process = await asyncio.create_subprocess_exec("cp", "-a", f"{wal}/.", str(disk.folder))
    assert await process.wait() == 0, "copied"
    wal.rename(home.data / "pg_wal.was")
    wal.symlink_to(small)
    await server.come_back()
    filler = small / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while file.write(bytes(1 << 20)):
            file.flush()
    told = home.log.stat().st_size  # before it the log tells of the other full disk
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        for _ in range(40):
            await server.run("select pg_switch_wal()", database="postgres")
            await world.answered(2)
    log = home.log.read_bytes()[told:]
    world.expect(b"PANIC:" in log, "F20: pg_wal was never full")
    world.count()
    await world.sleep(1)
    filler.unlink()
    await server.kill()
    await server.come_back()
    world.fixed()


async def _small_letters(world: World) -> None:
    world.small = world.undo.enter_context(SmallDisk(world.state / "dead-letters", 64))


@fault(
    "F25",
    "disks of dead letters and journal full",
    "tmpfs of 64 and 128 KiB: 503 `disk_low`, no half entry",
    before=_small_letters,
    settings={"journal_unsafe": True, "disk_free_bytes_min": 0},  # small disks, in memory
    invalid=0.2,
)
async def disks_full(world: World) -> None:
    """Fill the disk of the dead letters, then that of the journal."""
    assert world.small is not None, "mounted before"
    await world.service.wait_line("dead_letter_write_failed", within_s=60)
    world.count()
    await world.sleep(2)
    await _expect_disk_low(world, {"device_id": "large", "note": "x" * 8_192})  # for a new page
    with _standing_still(world):
        letters = Files(world.state / "dead-letters").read("")
    world.expect(letters.letters, "F25: no letter on the full disk")
    torn = letters.torn + letters.altered
    world.expect(not torn, f"F25: {torn} letters on the full disk are not whole")
    world.small.grow(16 << 10)
    await world.answered(20)
    # While writes are paused, a stop leaves the rest to the journal, which is covered below.
    await world.service.wait_state("accepting", "slowed", within_s=30)
    code, output = await world.service.stop()
    world.expect(code == 0 and "held=0" in output, f"F25: {output[-200:]}")
    journal = world.undo.enter_context(SmallDisk(world.state / "journal", 128))
    await world.restart()
    await world.answered(5)
    world.proxy.stall()
    await world.service.wait_state("disk_low", within_s=60)
    world.count()
    await world.sleep(1)
    await _expect_disk_low(world, {"device_id": "small", "metric": "m", "value": 1})
    with _standing_still(world):
        frames, damage = _look_at_journal(world.state / "journal")
    world.expect(frames, "F25: no frame on the full disk")
    world.expect(not damage, f"F25: the journal on the full disk is damaged: {damage}")
    journal.grow(64 << 10)
    await world.proxy.cut()
    world.proxy.resume()
    world.fixed()
    await world.service.wait_state("accepting", "slowed", within_s=30)


async def _expect_disk_low(world: World, item: dict[str, object]) -> None:
    answer = await world.service.post([item, {"device_id": "d", "metric": "m", "value": 1}])
    is_low = answer.status == 503 and answer.document["code"] == "disk_low"
    world.expect(is_low, f"F25: {answer.status} where the disk is full: {answer.text[:200]}")


@contextlib.contextmanager
def _standing_still(world: World) -> Iterator[None]:
    """Stop the service's process while its files are read."""
    os.kill(world.service.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(world.service.pid, signal.SIGCONT)


def _look_at_journal(folder: Path) -> tuple[int, list[str]]:
    """Return the number of frames, and a text for each part of the files that is no frame."""
    frames, damage = 0, []
    for file in segment_files(folder):
        with file.path.open("rb") as opened:
            fd, size = opened.fileno(), file.path.stat().st_size
            wrong = header_fault(opened.read(HEADER_BYTES), file.first, file.salt)
            reader = FrameReader(partial(os.pread, fd), file.salt, HEADER_BYTES, size)
            frames += sum(1 for _ in reader)
        if wrong or reader.gaps or reader.tail is not None:
            damage.append(f"{file.path.name}: {wrong or reader.gaps or reader.tail}")
    return frames, damage


@fault(
    "F26",
    "n-th write or sync of a file fails",
    "{n} runs: EIO or ENOSPC once, five times or for ever; then a kill",
    times=24,
    quick_times=0,
    invalid=0.1,
    limit_s=300,
)
async def calls_fail(world: World) -> None:
    """Let a call fail, kill the service, start it again."""
    rng, failed = world.random, world.folder / "failed"
    groups: list[int] = []  # the posts of each group of the journal that was refused
    step = NTH_MAX / world.times
    for number in range(world.times):
        world.patch(
            "failing",
            FAULTS_NTH=1 + int(number * step + rng.random() * step),
            FAULTS_ERROR=rng.choice((errno.EIO, errno.ENOSPC)),
            FAULTS_TIMES=rng.choice((1, 5, 1 << 40)),
        )
        os.kill(world.service.pid, signal.SIGKILL)
        await world.service.ended()
        failed.unlink(missing_ok=True)
        try:
            await world.restart()
        except AssertionError:  # allowed: it says that its folder cannot be used, and ends
            world.expect("cannot be used" in world.service.output, "F26: ended at its start")
            world.expect(failed.exists(), f"F26: run {number} had no call to fail")
            world.found.count += 1
            continue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while not failed.exists():  # noqa: ASYNC110  of the service
                    await asyncio.sleep(0.02)
        world.expect(failed.exists(), f"F26: no call failed in run {number}")
        await world.sleep(0.8, 2.0)
        world.expect(world.service.running, f"F26: run {number} ended by itself")
        groups += _refused_groups(world.service.output)
        world.count()
    world.patch("")
    if world.service.running:
        os.kill(world.service.pid, signal.SIGKILL)
        await world.service.ended()
    await world.restart()
    world.expect(max(groups, default=0) > 1, f"F26: refused groups had {groups} posts")


def _refused_groups(log: str) -> list[int]:
    """Return the posts of each group that the journal could not write."""
    lines = [each for each in log.splitlines() if "journal_write_failed" in each]
    return [int(found) for each in lines for found in re.findall(r"\bposts\W+(\d+)", each)]


async def power_lost(world: World) -> None:
    """Kill the service at a random moment, and take from its files what a power loss may take."""
    for _ in range(world.times):
        await world.answered(world.random.randrange(1, 40), within_s=40)
        stalled = world.random.random() < 0.7
        if stalled:
            world.proxy.stall()
            await world.sleep(0.05, 0.8)
        os.kill(world.service.pid, signal.SIGKILL)
        await world.service.ended()
        forget(world.state, world.folder / "disk", world.random)
        world.count()
        if stalled:
            await world.proxy.cut()
            world.proxy.resume()
        await world.restart()


@fault(
    "F27",
    "power lost",
    "SIGKILL {n} times; bytes and names that were not fsynced are lost",
    mutant="forgetting",
    invalid=0.05,
    times=25,
    quick_times=2,
    limit_s=300,
)
async def power(world: World) -> None:
    """The disk loses what was not fsynced."""
    await power_lost(world)


@fault(
    "F28",
    "files damaged while it is down",
    "{n} times: skipped, counted, never fatal",
    times=5,
    invalid=0.05,
)
async def damaged(world: World) -> None:
    """Damage files, but never the only copy of a reading."""
    for _ in range(world.times):
        await world.answered(30)
        world.proxy.stall()
        await world.answered(5)
        os.kill(world.service.pid, signal.SIGKILL)
        await world.service.ended()
        _damage_journal(world)
        _damage_letters(world)
        world.count()
        await world.proxy.cut()
        world.proxy.resume()
        await world.restart()
        await world.service.wait_state("accepting", "slowed", within_s=30)
        async with asyncio.timeout(20):
            while True:
                samples = await world.service.metrics()
                if samples["ingest_journal_damaged_total"] >= 1:
                    break
                await asyncio.sleep(0.05)


def _damage_journal(world: World) -> None:
    rng, folder = world.random, world.state / "journal"
    found = segment_files(folder)
    if not found:
        return
    last = found[-1]
    with last.path.open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 3_000)))
    shutil.copy(last.path, folder / segment_name(last.first + 1_000_000, last.salt ^ 1))
    noise = folder / segment_name(last.first + 2_000_000, 7)
    noise.write_bytes(rng.randbytes(rng.randrange(1, 5_000)))
    (folder / segment_name(last.first + 3_000_000, 8)).write_bytes(b"")
    for each in found:
        with each.done_path.open("ab") as file:
            file.write(rng.randbytes(rng.randrange(1, 200)))


def _damage_letters(world: World) -> None:
    rng, folder = world.random, world.state / "dead-letters"
    for path in sorted(folder.glob("dlq-*.jsonl"))[-2:]:
        data = bytearray(path.read_bytes())
        if not data:
            continue
        for _ in range(20):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        head = path.name.rsplit("-", 1)[0]
        _ = (folder / f"{head}-{rng.getrandbits(32):08x}.jsonl").write_bytes(
            data[: rng.randrange(1, len(data) + 1)]
        )
