"""Groups of the journal: after the put the block is on the disk, whatever call fails when."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import pytest

from ingest.buffers.frames import HEAD_BYTES
from ingest.buffers.journal import folder as journal_store
from ingest.buffers.journal import loader as buffer_journal_loader
from ingest.buffers.journal import log as journal
from ingest.buffers.journal.segments import HEADER_BYTES, read_done, segment_files
from ingest.model.block import Ack, Block
from ingest.model.errors import JournalBroken, NotKept, StartError
from ingest.model.ports import JournalStats
from tests.support.journals import (
    NO_SPACE,
    FailingCalls,
    HangingDisk,
    JournalRun,
    killed,
    left,
    make_block,
    on_disk,
)


async def works_again(life: JournalRun) -> None:
    """Wait until the journal can be written again."""
    async with asyncio.timeout(5):
        while life.buffer.broken:  # noqa: ASYNC110  the probe is on a timer
            await asyncio.sleep(0.002)


async def put_all(life: JournalRun, blocks: list[Block]) -> list[bool]:
    """Post blocks at once; return which were kept."""
    results = await asyncio.gather(*map(life.put, blocks), return_exceptions=True)
    assert all(isinstance(each, Block | JournalBroken) for each in results), results
    return [not isinstance(each, JournalBroken) for each in results]


def take_in(life: JournalRun, count: int) -> list[tuple[bytes, list[bool]]]:
    """Take small posts in that wait for the disk; return their rows, and later whether kept."""
    posts: list[tuple[bytes, list[bool]]] = []

    def told(waiters: Sequence[list[bool]], error: NotKept | None) -> None:
        for each in waiters:
            each.append(error is None)

    for _ in range(count):
        block, kept = make_block(1), list[bool]()
        posts.append((block.tuples, kept))
        assert life.buffer.take_in(block, kept, told)
        life.ledger.received += 1
    return posts


async def test_posts_that_meet_share_one_fsync_and_are_on_the_disk_after_it(tmp_path: Path) -> None:
    """In the order in which they came; writers get them then. One that waits for its commit is not.

    It was promised nothing before, so it needs no fsync.
    """
    calls = FailingCalls()
    async with JournalRun(tmp_path, calls=calls) as life:
        first = await life.put(make_block(1))
        assert calls.names[-1] == "fdatasync"
        before = calls.names.count("fdatasync")
        blocks = [make_block(1) for _ in range(100)]
        assert all(await put_all(life, blocks))
        await life.put(make_block(2, ack=Ack()))
        assert calls.names.count("fdatasync") == before + 1
        assert on_disk(tmp_path) == [block.tuples for block in (first, *blocks)]
        assert (await life.drain())[1:-1] == blocks


async def test_each_of_many_groups_is_synced(tmp_path: Path) -> None:
    """Also in further files."""
    calls = FailingCalls()
    async with JournalRun(tmp_path, calls=calls, segment_bytes=10_000) as life:
        for _ in range(300):
            await life.put(make_block(1))
            assert calls.names[-1] == "fdatasync"


async def test_small_posts_of_a_round_are_one_frame(tmp_path: Path) -> None:
    """The next process has one block for it, which says how many they are."""
    rows: list[bytes] = []
    async with JournalRun(tmp_path / "a") as life:
        for count in (1, 100):
            rows.append(b"".join(each for each, _ in take_in(life, count)))
            await life.quiet()
        assert on_disk(tmp_path / "a") == rows
        await killed(tmp_path / "a", tmp_path / "b")
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        blocks = await after.drain()
        assert [block.tuples for block in blocks] == rows
        assert [(block.posts, block.parts) for block in blocks] == [(1, None), (100, None)]


async def test_log_of_a_failed_group_says_how_many_posts_it_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not how many frames."""
    async with JournalRun(tmp_path, calls=FailingCalls(write=errno.EIO)) as life:
        posts = take_in(life, 7)
        await life.quiet()
        assert [kept for _, kept in posts] == [[False]] * 7
        life.ledger.rejected["disk_low"] += 7
    assert "posts=7" in capsys.readouterr().out


@pytest.mark.parametrize("fails", [False, True])
async def test_room_on_the_disk_that_a_group_leaves_lets_the_next_post_in(
    tmp_path: Path, fails: bool
) -> None:
    """Two posts have reserved two frames, and need one; or none, if the write fails."""
    disk = HangingDisk()
    room = HEADER_BYTES + 2 * HEAD_BYTES + 3 * len(make_block(1).tuples) + 2
    async with JournalRun(tmp_path, put_wait_s_max=5, journal_bytes_max=room, calls=disk) as life:
        disk.go.clear()
        for _ in range(2):
            life.ledger.received += 1
            assert life.buffer.take_in(make_block(1))
        assert not life.buffer.take_in(make_block(1))
        waiting = asyncio.create_task(life.put(make_block(1)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        if fails:
            disk.failing, disk.nth = {"fdatasync": errno.EIO}, 2  # the header's, then the group's
        disk.go.set()
        async with asyncio.timeout(3):
            await waiting
        assert disk.fired == fails
        assert len(on_disk(tmp_path)) == 2 - fails


@pytest.mark.parametrize("kept", [True, False])
async def test_cancelled_put_is_counted_by_its_outcome(tmp_path: Path, kept: bool) -> None:
    """If a client hangs up during the fsync, the group decides before the cancellation counts."""
    calls = FailingCalls() if kept else FailingCalls(fdatasync=errno.EIO)
    async with JournalRun(tmp_path, calls=calls) as life:
        block = make_block(2)
        counted: list[str] = []

        async def post() -> None:
            reservation = await life.buffer.reserve(2, len(block.tuples))
            try:
                await reservation.put(block)
                counted.append("kept")
            except JournalBroken:
                counted.append("refused")
            await asyncio.sleep(0)
            counted.append("never")

        task = asyncio.create_task(post())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert counted == ["kept" if kept else "refused"]
        life.ledger.received += 2 * kept
        assert len(await life.drain()) == kept


async def test_failed_fsync_is_never_tried_again_on_its_file(tmp_path: Path) -> None:
    """The kernel drops data that it could not write. So the posts are refused."""
    calls = FailingCalls()
    async with JournalRun(tmp_path, calls=calls) as life:
        first = await life.put(make_block(1))
        calls.failing = {"fdatasync": errno.EIO}
        calls.left = 1
        with pytest.raises(JournalBroken):
            await life.put(make_block(1))
        assert not life.buffer.broken
        second = await life.put(make_block(1))
        assert len(segment_files(tmp_path)) == 2
        assert on_disk(tmp_path) == [first.tuples, second.tuples]


async def test_buffered_post_outlives_a_broken_disk_in_memory(tmp_path: Path) -> None:
    """`buffered` promises memory only, so a failing disk does not remove the block."""
    async with JournalRun(tmp_path, calls=FailingCalls(write=NO_SPACE)) as life:
        block = await life.put(make_block(3), durable=False)
        await life.quiet()
        assert life.buffer.broken
        assert await life.drain() == [block]


async def test_segment_goes_when_all_of_it_is_settled(tmp_path: Path) -> None:
    """Segments rotate at `segment_bytes`. Blocks may be settled in any order."""
    async with JournalRun(tmp_path, segment_bytes=400) as life:
        blocks = [await life.put(make_block(2)) for _ in range(13)]
        there = len(segment_files(tmp_path))
        assert there > 2
        assert life.buffer.journal_stats().segments == there
        size = sum(file.path.stat().st_size for file in segment_files(tmp_path))
        assert life.buffer.journal_stats().size_bytes == size
        taken = life.buffer.take(100)
        assert taken == blocks
        life.settle(taken[1:])
        await life.quiet()
        assert len(segment_files(tmp_path)) == 2  # the first, pinned, and the last, being written
        life.settle(taken[:1])
        await life.quiet()
        assert len(segment_files(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


async def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """If a file is in the place of the folder, the error is one sentence."""
    (tmp_path / "journal").write_text("")
    life = JournalRun(tmp_path / "journal")
    with pytest.raises(StartError, match="--buffer memory"):
        life.buffer.open()


async def test_notes_of_a_segment_that_is_gone_are_removed(tmp_path: Path) -> None:
    """Otherwise they could count for the blocks of another segment."""
    stale = tmp_path / "journal-00000000000000000001-00000000.done"
    stale.write_bytes(b"x" * 40)
    strange = tmp_path / "journal-00000000000000000002-00000000.done"
    strange.mkdir()  # cannot be removed, and a start never fails for what lies there
    async with JournalRun(tmp_path) as life:
        assert not stale.exists()
        assert strange.exists()
        await life.put(make_block(1))


async def test_segment_that_cannot_be_removed_goes_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes count until then. Otherwise the journal would become full of removed segments."""
    unlink, refusing = Path.unlink, True

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if refusing and path.suffix == ".log":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    async with JournalRun(tmp_path, segment_bytes=400) as life:
        for _ in range(13):
            await life.put(make_block(2))
        there = len(segment_files(tmp_path))
        await life.drain()
        await life.quiet()
        assert life.buffer.journal_stats().segments == there > 2
        refusing = False
        async with asyncio.timeout(5):
            while life.buffer.journal_stats().segments > 1:  # noqa: ASYNC110  it is on a timer
                await asyncio.sleep(0.002)
        assert len(segment_files(tmp_path)) == 1


async def test_segment_removed_by_a_hand_gives_its_room_back(tmp_path: Path) -> None:
    """A segment that somebody has removed does not count, nor do its blocks count twice."""
    async with JournalRun(tmp_path, segment_bytes=400) as life:
        for _ in range(13):
            await life.put(make_block(2))
        for file in segment_files(tmp_path)[:-1]:
            file.path.unlink()
        await life.drain()
        await life.quiet()
        stats = life.buffer.journal_stats()
        (file,) = segment_files(tmp_path)
        assert stats.segments == 1
        assert stats.size_bytes == file.path.stat().st_size


async def test_note_that_is_cut_short_spoils_no_other_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk may write half a note without an error. The next one begins at a whole record."""
    write = os.write

    def cut(fd: int, data: bytes) -> int:
        return write(fd, data[:7])

    async with JournalRun(tmp_path) as life:
        blocks = [await life.put(make_block(1)) for _ in range(6)]
        life.buffer.take(6)
        life.settle(blocks[:1])
        await life.quiet()
        monkeypatch.setattr(os, "write", cut)
        life.settle(blocks[1:2])
        await life.quiet()
        monkeypatch.undo()
        life.settle(blocks[3:5])
        await life.quiet()
        (file,) = segment_files(tmp_path)
        done = read_done(file)
        assert [each.sequence in done for each in blocks] == [True, False, False, True, True, False]
        life.settle([blocks[2], blocks[5]])


async def test_folder_made_anew_is_brought_to_the_disk_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in a folder whose name is not on the disk would be lost in a crash."""
    synced: list[Path] = []

    class Calls(FailingCalls):
        def fsync(self, fd: int) -> None:
            synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
            super().fsync(fd)

    monkeypatch.setattr(journal_store, "UNSEEN_S_MAX", 0.0)  # is it there: looked at each time
    folder = tmp_path / "journal"
    async with JournalRun(folder, calls=Calls()) as life:
        await life.put(make_block(1))
        await life.drain()
        shutil.rmtree(folder)
        synced.clear()
        with pytest.raises(JournalBroken):
            await life.put(make_block(1))
        assert synced == [tmp_path, folder]
        await life.put(make_block(1))
        assert len(on_disk(folder)) == 1


@pytest.mark.parametrize("number", ["9" * 20, "18446744073709551615", "\u0663" * 20])
async def test_name_with_a_number_that_is_none_does_not_stop_the_start(
    tmp_path: Path, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign file is not changed, and our own files are read."""
    monkeypatch.setattr(buffer_journal_loader, "READ_AGAIN_S", 0.01)  # the link leads nowhere
    strange = tmp_path / f"journal-{number}-00000001.log"
    strange.write_bytes(b"x" * 100)
    (tmp_path / "journal-00000000000000000001-00000001.log").symlink_to(tmp_path / "nowhere")
    async with JournalRun(tmp_path) as life:
        await life.scan()
        await life.put(make_block(1))
        await life.drain()
        assert life.ledger.recovered == 0
    assert strange.exists()


async def test_last_segment_goes_too_once_nothing_of_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further post is needed for that: while the disk is low there are none."""
    monkeypatch.setattr(journal, "IDLE_S", 0.02)
    async with JournalRun(tmp_path, segment_bytes=1 << 16) as life:
        for size in (2, 20):  # the first is too small to be worth a new file
            await life.put(make_block(size))
            assert len(await life.drain()) == 1
            await asyncio.sleep(0.1)
            await life.quiet()
            assert len(segment_files(tmp_path)) == (size == 2)
        assert life.buffer.journal_stats() == JournalStats(0, 0, 0)
        waiting = await life.put(make_block(20))
        await asyncio.sleep(0.1)
        assert on_disk(tmp_path) == [waiting.tuples]


async def test_segment_that_grows_is_not_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Posts that are stored before the next one comes do not begin a new file every 2 s."""
    monkeypatch.setattr(journal, "IDLE_S", 0.1)
    async with JournalRun(tmp_path, segment_bytes=1 << 16) as life:
        for _ in range(30):
            await life.put(make_block(20))
            await life.drain()
            await asyncio.sleep(0.01)
        await life.quiet()
        assert len(segment_files(tmp_path)) == 1
        assert life.journal.index.segments[0].size > 30_000


async def test_posts_go_on_while_idle_segments_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment is ended for being idle only while no group is being written to it."""
    monkeypatch.setattr(journal, "IDLE_S", 0.0)
    async with JournalRun(tmp_path, segment_bytes=1000) as life:
        life.load()
        for number in range(300):
            await life.put(make_block(1))
            if number % 3:
                await life.drain()
            if number % 7 == 0:
                await asyncio.sleep(0)
            there = {each.path for each in segment_files(tmp_path)}
            assert {each.file.path for each in life.journal.index.segments if each.undone} <= there


async def test_full_segment_goes_without_another_group(tmp_path: Path) -> None:
    """A journal of which nothing is needed has room for the largest post."""
    async with JournalRun(tmp_path, segment_bytes=400, journal_bytes_max=4000) as life:
        await life.put(make_block(40))
        await life.drain()
        await life.quiet()
        assert segment_files(tmp_path) == []
        assert life.buffer.journal_stats().size_bytes == 0


async def test_full_disk_gets_the_room_of_what_is_stored_back(tmp_path: Path) -> None:
    """A file that fills the disk is removed once it is settled, even if no group can follow."""
    calls = FailingCalls()
    async with JournalRun(tmp_path, calls=calls) as life:
        for _ in range(20):
            await life.put(make_block(5))
        calls.failing = {"write": NO_SPACE}
        assert not any(await put_all(life, [make_block(1) for _ in range(5)]))
        assert life.buffer.broken
        (await life.buffer.reserve(1, 1, awaited=True)).release()  # this one needs no disk
        await asyncio.sleep(0.05)
        assert life.buffer.broken
        assert len(await life.drain()) == 20
        await life.quiet()
        assert segment_files(tmp_path) == []
        calls.failing = {}
        await works_again(life)
        await life.put(make_block(1))


@pytest.mark.parametrize("content", [b"", b"x" * 100])
async def test_great_name_of_somebody_costs_no_reading_of_ours(
    tmp_path: Path, content: bytes
) -> None:
    """A number beyond any clock needs a right header. Otherwise our next names would be invalid."""
    folder = tmp_path / "journal"
    folder.mkdir()
    strange = folder / "journal-09223372036854775807-00000001.log"
    strange.write_bytes(content)
    life = JournalRun(folder)
    life.buffer.open()
    await life.scan()
    blocks = [await life.put(make_block(2)) for _ in range(3)]
    assert life.buffer.journal_stats().damaged == 1
    await killed(folder, tmp_path / "copy")
    await life.end()
    async with JournalRun(tmp_path / "copy") as after:
        assert await after.read_back() == [each.tuples for each in blocks]
    assert (tmp_path / "copy" / strange.name).read_bytes() == content


async def test_segment_put_back_beside_those_of_later_runs_is_read(tmp_path: Path) -> None:
    """A copy of the folder may be put back after later runs have stored more."""
    rows = await left(tmp_path / "copy", 30) + await left(tmp_path / "b", 20)
    for file in segment_files(tmp_path / "copy"):
        file.path.rename(tmp_path / "b" / file.path.name)
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        assert after.ledger.recovered == 50
        rows += [(await after.put(make_block(1))).tuples for _ in range(10)]
        found = [each.tuples for each in await after.drain()]
        await after.quiet()
    assert sorted(found) == sorted(rows)
    assert segment_files(tmp_path / "b") == []


async def test_disk_that_does_not_answer_is_told_as_broken_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Posts are refused and do not wait. Blocks of posts that wait are not lost."""
    monkeypatch.setattr(journal, "HANGS_S", 0.05)
    calls, frozen = FailingCalls(), Event()
    sync = calls.fdatasync

    def hang(fd: int) -> None:
        frozen.wait(5)
        sync(fd)

    monkeypatch.setattr(calls, "fdatasync", hang)
    async with JournalRun(tmp_path, calls=calls) as life:
        assert not life.buffer.broken
        post = asyncio.create_task(life.put(make_block(1)))
        await asyncio.sleep(0.2)
        assert life.buffer.broken
        frozen.set()
        await post
        await life.quiet()
        assert not life.buffer.broken
        await life.drain()
