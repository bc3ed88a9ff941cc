"""Groups of the journal: after the put the block is on the disk, whatever call fails when."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path
from threading import Event

import pytest

from ingest.buffers.journal import folder as journal_store
from ingest.buffers.journal import loader as buffer_journal_loader
from ingest.buffers.journal import log as journal
from ingest.buffers.journal.reader import read_done, segment_files
from ingest.model.block import Block
from ingest.model.errors import JournalBroken, StartError
from ingest.model.ports import JournalStats
from tests.support.blocks import make_block
from tests.support.journals import NO_SPACE, FailingCalls, JournalRun, killed, on_disk

CALLS_MAX = 200  # more than any run needs


async def works_again(life: JournalRun) -> None:
    """Wait until the journal can be written again."""
    async with asyncio.timeout(5):
        while life.buffer.broken:  # noqa: ASYNC110  the probe is on a timer
            await asyncio.sleep(0.002)


async def struck_again(calls: FailingCalls) -> None:
    """Wait until one more call has failed: the journal has tried the disk."""
    fired = calls.fired
    async with asyncio.timeout(5):
        while calls.fired == fired:  # noqa: ASYNC110  the probe is on a timer
            await asyncio.sleep(0.002)


async def put_all(life: JournalRun, blocks: list[Block]) -> list[bool]:
    """Post blocks at once; return which were kept."""
    results = await asyncio.gather(*map(life.put, blocks), return_exceptions=True)
    assert all(isinstance(each, Block | JournalBroken) for each in results), results
    return [not isinstance(each, JournalBroken) for each in results]


async def test_awaited_put_is_on_the_disk_before_the_writers_have_it(tmp_path: Path) -> None:
    """A durable block is written and synced when put returns; writers get it after that."""
    calls = FailingCalls()
    async with JournalRun(tmp_path, calls=calls) as life:
        block = await life.put(make_block(3))
        assert on_disk(tmp_path) == [block.tuples]
        assert calls.names[-1] == "fdatasync"
        assert life.buffer.take(10) == [block]
        life.settle([block])


async def test_posts_that_meet_share_one_fsync(tmp_path: Path) -> None:
    """A hundred posts of one round are one group, in the order in which they came."""
    calls = FailingCalls()
    async with JournalRun(tmp_path, calls=calls) as life:
        await life.put(make_block(1))
        before = calls.names.count("fdatasync")
        blocks = [make_block(1) for _ in range(100)]
        assert all(await put_all(life, blocks))
        assert calls.names.count("fdatasync") == before + 1
        assert on_disk(tmp_path)[1:] == [block.tuples for block in blocks]
        assert (await life.drain())[1:] == blocks


async def test_buffered_put_does_not_wait_and_is_on_the_disk_soon(tmp_path: Path) -> None:
    """With `ack=buffered` writers get the block at once, and the disk with the next group."""
    async with JournalRun(tmp_path) as life:
        block = make_block(2)
        reservation = await life.buffer.reserve(2, len(block.tuples))
        life.ledger.received += 2
        put = reservation.put(block, durable=False)
        assert life.buffer.take(10) == [block]
        life.settle([block])  # stored before the journal had it
        await put
        await life.quiet()
        assert life.journal.index.segments[0].undone == 0
    assert segment_files(tmp_path) == []


async def test_block_with_an_ack_is_not_journaled(tmp_path: Path) -> None:
    """A post that waits for the commit was promised nothing before, so it needs no fsync."""
    async with JournalRun(tmp_path) as life:
        block = make_block(2)
        reservation = await life.buffer.reserve(2, len(block.tuples), awaited=True)
        life.ledger.received += 2
        await reservation.put(block)
        assert on_disk(tmp_path) == []
        life.settle(life.buffer.take(10))


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


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize(
    "failing",
    [
        {"write": errno.EIO},
        {"write": NO_SPACE},
        {"fdatasync": errno.EIO},
        {"fsync": errno.EIO},
        {"write": errno.EIO, "ftruncate": errno.EIO},
        {"fdatasync": errno.EIO, "ftruncate": errno.EIO},
    ],
    ids=lambda each: "+".join(f"{name}-{number}" for name, number in each.items()),
)
async def test_nth_call_that_fails_loses_no_promise(
    tmp_path: Path, failing: dict[str, int], forever: bool
) -> None:
    """For every n: kept blocks are read by the next process, once; refused ones cost nothing.

    The call fails once, or until the disk works again. After that posts are kept again.
    """
    for nth in range(1, CALLS_MAX):
        folder = tmp_path / str(nth)
        calls = FailingCalls(**failing)
        calls.nth, calls.onwards = nth, forever
        kept: list[bytes] = []
        life = JournalRun(folder, calls=calls, segment_bytes=600)
        try:
            life.buffer.open()
        except StartError:
            assert calls.names[-1] == "fsync"
            continue
        for _ in range(4):
            blocks = [make_block(2) for _ in range(3)]
            for block, well in zip(blocks, await put_all(life, blocks), strict=True):
                kept += [block.tuples] if well else []
            if not forever:
                await works_again(life)
        if life.buffer.broken:
            await struck_again(calls)
        calls.failing = {}
        await works_again(life)
        last = await life.put(make_block(2))
        kept.append(last.tuples)
        assert life.ledger.imbalance == 0
        assert life.buffer.stats().rows == 2 * len(kept)
        await life.end()
        found = on_disk(folder)
        assert [each for each in found if each in kept] == kept
        async with JournalRun(folder) as after:
            await after.scan()
            assert after.ledger.recovered == 2 * len(found)
            assert after.journal.damaged <= ("ftruncate" in failing) * calls.fired
            after.load()
            assert [block.tuples for block in await after.drain()] == found
        if not calls.fired:
            return
    pytest.fail("the sweep did not come to a clean run")


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
        await life.drain()


async def test_disk_that_takes_nothing_refuses_until_it_does(tmp_path: Path) -> None:
    """A full disk refuses posts at once with `disk_low`, tears no frame, and is tried again."""
    calls = FailingCalls()
    async with JournalRun(tmp_path, calls=calls) as life:
        kept = await life.put(make_block(1))
        calls.failing = {"write": NO_SPACE}
        assert not any(await put_all(life, [make_block(1) for _ in range(5)]))
        assert life.buffer.broken
        with pytest.raises(JournalBroken):
            await life.buffer.reserve(1, 1)
        awaited = await life.buffer.reserve(1, 1, awaited=True)  # needs no disk
        awaited.release()
        await asyncio.sleep(0.05)
        assert life.buffer.broken
        assert on_disk(tmp_path) == [kept.tuples]
        calls.failing = {}
        await works_again(life)
        again = await life.put(make_block(1))
        assert on_disk(tmp_path) == [kept.tuples, again.tuples]
        assert life.buffer.stats().size_bytes == len(kept.tuples) + len(again.tuples)
        await life.drain()


async def test_buffered_post_outlives_a_broken_disk_in_memory(tmp_path: Path) -> None:
    """`buffered` promises memory only, so a failing disk does not remove the block."""
    calls = FailingCalls(write=NO_SPACE)
    async with JournalRun(tmp_path, calls=calls) as life:
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


async def test_second_service_on_a_folder_is_told(tmp_path: Path) -> None:
    """Two writers of one journal would remove each other's files."""
    async with JournalRun(tmp_path):
        other = JournalRun(tmp_path)
        with pytest.raises(StartError, match="another service writes the journal"):
            other.buffer.open()
    async with JournalRun(tmp_path):
        pass


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
        await life.drain()


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
        await life.drain()


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
        await life.drain()


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
        await life.drain()


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
        with pytest.raises(JournalBroken):
            await life.put(make_block(1))
        assert len(await life.drain()) == 20
        await life.quiet()
        assert segment_files(tmp_path) == []
        calls.failing = {}
        await works_again(life)
        await life.put(make_block(1))
        await life.drain()


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
    await life.drain()
    await life.end()
    async with JournalRun(tmp_path / "copy") as after:
        await after.scan()
        assert after.ledger.recovered == 6
        after.load()
        assert [each.tuples for each in await after.drain()] == [each.tuples for each in blocks]
    assert (tmp_path / "copy" / strange.name).read_bytes() == content


async def test_segment_put_back_beside_those_of_later_runs_is_read(tmp_path: Path) -> None:
    """A copy of the folder may be put back after later runs have stored more."""
    async with JournalRun(tmp_path / "a") as first:
        old = [await first.put(make_block(1)) for _ in range(30)]
        await killed(tmp_path / "a", tmp_path / "copy")
        await first.drain()
    async with JournalRun(tmp_path / "a") as second:
        new = [await second.put(make_block(1)) for _ in range(20)]
        await killed(tmp_path / "a", tmp_path / "b")
        await second.drain()
    for file in segment_files(tmp_path / "copy"):
        file.path.rename(tmp_path / "b" / file.path.name)
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        assert after.ledger.recovered == 50
        after.load()
        live = [await after.put(make_block(1)) for _ in range(10)]
        found = await after.drain()
        await after.quiet()
    assert sorted(each.tuples for each in found) == sorted(
        each.tuples for each in (*old, *new, *live)
    )
    assert segment_files(tmp_path / "b") == []


async def test_segment_cut_off_by_a_hand_takes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that the frames go to a new file, which is whole."""
    monkeypatch.setattr("ingest.buffers.journal.folder.UNSEEN_S_MAX", 0.0)
    life = JournalRun(tmp_path)
    life.buffer.open()
    await life.put(make_block(1))
    (cut,) = segment_files(tmp_path)
    os.truncate(cut.path, 0)
    with pytest.raises(JournalBroken):
        await life.put(make_block(1))
    after = await life.put(make_block(1))
    assert after.tuples in on_disk(tmp_path)
    await life.drain()
    await life.end()


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
