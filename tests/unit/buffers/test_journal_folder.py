"""The journal's folder, when somebody changes the folder, its lock or the clock."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from ingest.buffers.journal.segments import segment_files
from ingest.model.block import Block
from ingest.model.errors import JournalBroken, StartError
from ingest.system.clock import monotonic_s
from ingest.system.files import FolderLock
from tests.support.journals import JournalRun, killed, make_block, on_disk


@pytest.fixture(autouse=True)
def _look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.buffers.journal.folder.UNSEEN_S_MAX", 0.0)


async def put_until_kept(life: JournalRun) -> bytes:
    """Post until the disk can be written again; return the block that was kept."""
    async with asyncio.timeout(5):
        while True:
            try:
                return (await life.put(make_block(1))).tuples
            except JournalBroken:
                await asyncio.sleep(0.01)


async def test_lock_that_a_hand_removed_lets_nobody_in(tmp_path: Path) -> None:
    """A second service would remove the files that the first one writes."""
    async with JournalRun(tmp_path) as life:
        await life.put(make_block(1))
        for _ in range(2):
            with pytest.raises(StartError, match="another service writes the journal"):
                JournalRun(tmp_path).buffer.open()
            (tmp_path / "lock").unlink(missing_ok=True)
        await life.drain()
    async with JournalRun(tmp_path):
        pass


async def test_folder_moved_away_is_taken_anew_with_its_lock(tmp_path: Path) -> None:
    """The folder that the service then makes under the old name is locked too."""
    folder = tmp_path / "journal"
    life = JournalRun(folder)
    life.buffer.open()
    before = await life.put(make_block(1))
    folder.rename(tmp_path / "moved")
    with pytest.raises(JournalBroken):
        await life.put(make_block(1))
    kept = await put_until_kept(life)
    assert kept in on_disk(folder)
    with pytest.raises(StartError, match="another service writes the journal"):
        JournalRun(folder).buffer.open()
    async with JournalRun(tmp_path / "moved") as other:
        assert on_disk(tmp_path / "moved") == [before.tuples]
        assert await other.read_back() == [before.tuples]
    await life.end()


async def test_folder_gone_before_anything_was_written_closes_nobodys_descriptors(
    tmp_path: Path,
) -> None:
    """A descriptor is closed only once. The folder is made and locked again."""
    folder = tmp_path / "journal"
    life = JournalRun(folder)
    life.buffer.open()
    shutil.rmtree(folder)
    with pytest.raises(JournalBroken):
        await life.put(make_block(1))
    others = [os.memfd_create(f"other-{number}") for number in range(8)]
    kept = await put_until_kept(life)
    for number, fd in enumerate(others):
        assert os.readlink(f"/proc/self/fd/{fd}").startswith(f"/memfd:other-{number}")
    assert on_disk(folder) == [kept]
    assert FolderLock.of(folder) is None
    for fd in others:
        os.close(fd)
    await life.end()


async def test_folder_of_another_service_under_our_name_gets_nothing_of_ours(
    tmp_path: Path,
) -> None:
    """The other service would remove the files that we write there."""
    folder = tmp_path / "journal"
    life = JournalRun(folder)
    life.buffer.open()
    await life.put(make_block(1))
    folder.rename(tmp_path / "moved")
    async with JournalRun(folder) as other:
        theirs = await other.put(make_block(1))
        for _ in range(3):
            with pytest.raises(JournalBroken):
                await life.put(make_block(1))
            await asyncio.sleep(0.03)  # some probes
        assert on_disk(folder) == [theirs.tuples]
        await other.drain()
    assert await put_until_kept(life) in on_disk(folder)
    await life.end()


def test_folder_that_cannot_be_locked_is_held_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems cannot lock folders."""
    lock = fcntl.flock

    def no_folders(fd: int, operation: int) -> None:
        if Path(f"/proc/self/fd/{fd}").is_dir():
            raise OSError(9, "Bad file descriptor")
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", no_folders)
    held = FolderLock.of(tmp_path)
    assert held is not None
    assert held.holds()
    assert FolderLock.of(tmp_path) is None
    held.close()
    again = FolderLock.of(tmp_path)
    assert again is not None
    again.close()


@pytest.mark.parametrize("change", [b"from somebody else", None], ids=["appended", "cut off"])
async def test_segment_that_a_hand_changed_takes_nothing_more(
    tmp_path: Path, change: bytes | None
) -> None:
    """Behind foreign bytes our frames would not be at the offsets that we remember."""
    life = JournalRun(tmp_path)
    life.buffer.open()
    before = await life.put(make_block(1))
    (theirs,) = segment_files(tmp_path)
    if change is None:
        os.truncate(theirs.path, 0)
    else:
        theirs.path.write_bytes(theirs.path.read_bytes() + change)
    with pytest.raises(JournalBroken):
        await life.put(make_block(1))
    after = await put_until_kept(life)
    assert on_disk(tmp_path)[-1] == after
    assert (before.tuples in on_disk(tmp_path)) == (change is not None)
    await life.end()


def of_an_hour_ahead() -> Block:
    """Make a block that was received while the clock was an hour fast."""
    block = make_block(2)
    block.received_us += 3_600_000_000
    return block


async def test_clock_set_back_makes_nothing_received_later_than_it_was(tmp_path: Path) -> None:
    """`hold release --dead-letter` covers all that was received before, in earlier runs too."""
    async with JournalRun(tmp_path / "first") as first:
        await first.put(of_an_hour_ahead())
        await killed(tmp_path / "first", tmp_path / "second")
        await first.drain()
    async with JournalRun(tmp_path / "second", rows_max=20) as life:
        await life.scan()
        for _ in range(30):  # most of them are spilled
            await life.put(of_an_hour_ahead())
        await life.quiet()
        released_s = monotonic_s()
        await asyncio.sleep(0.01)
        life.load()
        found = await life.drain(rows_max=5)
        assert len(found) == 31
        assert all(each.received_s < released_s for each in found)
