"""The disk of the archive: full before a file is written, and in the middle of it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.faults.machine import SmallDisk
from tests.faults.matrix import fault
from tests.faults.years_ledger import detached
from tests.faults.years_world import YearsWorld

DISK_KIB = 512
LEFT_BYTES = 12_288  # three pages: by the estimate of 24 bytes each, room for 512 readings
ROUNDS_MAX = 12
FULL = ("make room", "No space left")  # before a file is begun, and in the middle of it


async def _small_archive(world: YearsWorld) -> None:
    world.small = world.undo.enter_context(SmallDisk(world.cold, DISK_KIB))


@fault(
    "Y4",
    "disk of the archive is full",
    "three pages left, {n} times: it says so and drops nothing; with room it goes on",
    years=True,
    settings={"housekeeping": False, "rollups": False, "disk_free_bytes_min": 0},
    before=_small_archive,
    times=2,
    limit_s=300,
)
async def disk_full(world: YearsWorld) -> None:
    """Fill the disk of the archive, run the housekeeping, make room."""
    assert world.small is not None, "mounted before"
    filler = world.cold / ".filler"
    for number in range(world.times):
        _fill(filler, world.cold)
        wanted = set(FULL)
        for _ in range(ROUNDS_MAX):
            await world.answered(15)
            _fill(filler, world.cold)
            await world.housekeep("--yes")
            wanted = {text for text in wanted if not any(text in said for said in world.said)}
            if not wanted:
                break
        for text in wanted:
            world.expect(False, f"Y4: no run said: {text}; but {world.said[-3:]}")
        world.expect(await detached(world.server), "Y4: nothing waits for the archive")
        left = list(world.cold.glob(".readings*"))
        world.expect(not left, f"Y4: half a file was left on the full disk: {left}")
        verified = await world.command("archive", "verify")
        world.expect(verified.code == 0, f"Y4: {verified.stdout}{verified.stderr}")
        world.count()
        filler.unlink()
        world.small.grow(4_096 << number)
        world.fixed()
        world.said.clear()
        await world.housekeep("--yes")
        failed = [said for said in world.said if any(text in said for text in FULL)]
        world.expect(not failed, f"Y4: with room the next run failed: {failed}")
        if number + 1 < world.times:
            world.small.grow(DISK_KIB)


def _fill(filler: Path, disk: Path) -> None:
    """Give the filler a size with which LEFT_BYTES are left on its disk."""
    filler.unlink(missing_ok=True)
    free = os.statvfs(disk)
    size_bytes = free.f_bavail * free.f_frsize - LEFT_BYTES
    if size_bytes > 0:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
