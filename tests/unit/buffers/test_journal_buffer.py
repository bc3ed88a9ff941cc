"""The journal buffer: it spills, reads back and recovers, and loses nothing in any process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import pytest

from ingest.buffers.frames import HEAD_BYTES, MARK
from ingest.buffers.journal import loader as buffer_journal_loader
from ingest.buffers.journal import segments as format_
from ingest.buffers.journal.buffer import BACKLOG_EVERY
from ingest.buffers.journal.loader import LIVE_BATCH_ROWS_MAX, PAUSE_S_MAX
from ingest.buffers.journal.segments import HEADER_BYTES, segment_files
from ingest.buffers.waiting import Decision
from ingest.model.block import Ack, Block
from ingest.model.errors import BufferFull, NotKept
from ingest.system.files import open_regular
from tests.support.brokers import until
from tests.support.journals import HangingDisk, JournalRun, killed, left, make_block, on_disk


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_journal_loader, "READ_AGAIN_S", 0.01)


async def put_many(life: JournalRun, count: int, rows: int = 1) -> list[Block]:
    """Post blocks, a few at a time."""
    blocks: list[Block] = []
    while len(blocks) < count:
        some = [make_block(rows) for _ in range(min(50, count - len(blocks)))]
        await asyncio.gather(*map(life.put, some))
        blocks += some
    return blocks


def tuples_of(blocks: list[Block]) -> list[bytes]:
    """Return the bytes of the rows of blocks."""
    return [block.tuples for block in blocks]


# More than memory


async def test_what_memory_cannot_hold_is_spilled_and_comes_back_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All posts of a long outage are accepted; memory stays in its bounds, with one range.

    A limit of threads that is reached meanwhile does not stop the loader.
    """

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with JournalRun(tmp_path, rows_max=80, bytes_max=6000, put_wait_s_max=5) as life:
        await life.scan()
        monkeypatch.setattr(threading.Thread, "start", start)
        blocks = await put_many(life, 1000)
        assert len(life.journal.index.spilled) == 1, "blocks are remembered one by one"
        assert life.buffer.stats().rows == 1000
        assert life.buffer.stats().posts_waiting == 0
        assert life.buffer.stats().oldest_received_s == blocks[0].received_s
        life.load()
        found: list[Block] = []
        while (stats := life.buffer.stats()).rows:
            assert stats.rows_waiting <= 80
            assert stats.size_bytes <= 6000
            batch = await life.take(7)
            life.settle(batch)
            found += batch
        assert tuples_of(found) == tuples_of(blocks)
    assert on_disk(tmp_path) == []


async def test_live_blocks_are_not_starved_by_the_backlog_nor_it_by_them(tmp_path: Path) -> None:
    """One batch in four is of the backlog, and goes back to it if it fails."""
    async with JournalRun(tmp_path, rows_max=400) as life:
        await put_many(life, 700)
        life.load()
        life.settle(await life.take(400))
        await until(lambda: life.buffer.stats().rows_waiting >= 100)
        old = life.buffer.take(5)
        life.buffer.give_back(old)
        assert life.buffer.first_received_s() == old[0].received_s
        assert life.buffer.take(5) == old
        life.settle(old)
        await put_many(life, 100)
        batches = [await life.take(5) for _ in range(2 * BACKLOG_EVERY)]
        assert sum(batch[0].reloaded for batch in batches) == 2
        for batch in batches:
            life.settle(batch)
        assert len(await life.drain()) + 5 * len(batches) == 395


async def test_spilling_ends_once_memory_is_half_empty(tmp_path: Path) -> None:
    """So ranges stay few, and a short overload does not send posts to the disk for ever."""
    async with JournalRun(tmp_path, rows_max=100) as life:
        await put_many(life, 101)
        for settled, waiting in ((30, 70), (20, 51)):
            life.settle(life.buffer.take(settled))
            await put_many(life, 1)
            assert life.buffer.stats().rows_waiting == waiting
        assert [each.rows for each in life.journal.index.spilled] == [2]


async def test_room_reserved_before_the_spilling_splits_the_range(tmp_path: Path) -> None:
    """A block that is in memory is in no range, so it is not read back a second time."""
    async with JournalRun(tmp_path, rows_max=10) as life:
        slow = make_block(5)
        reservation = await life.buffer.reserve(5, len(slow.tuples))
        others = await put_many(life, 9)
        life.ledger.received += 5
        await reservation.put(slow)
        others += await put_many(life, 3)
        assert len(life.journal.index.spilled) == 2
        found = await life.drain()
        assert sorted(tuples_of(found)) == sorted(tuples_of([slow, *others]))


async def test_post_that_waits_for_its_commit_is_not_spilled(tmp_path: Path) -> None:
    """It waits for memory. Other posts do not wait behind it."""
    async with JournalRun(tmp_path, rows_max=4, put_wait_s_max=5) as life:
        await put_many(life, 6)
        block = make_block(1, ack=Ack())
        waiting = asyncio.create_task(life.put(block))
        await asyncio.sleep(0.01)
        await put_many(life, 1)
        assert not waiting.done()
        assert life.buffer.stats().posts_waiting == 0  # the service has room
        life.settle(life.buffer.take(2))
        await waiting
        assert block in await life.drain()


async def test_full_journal_lets_posts_wait_then_refuses(tmp_path: Path) -> None:
    """It is bounded in bytes. There is room again once a segment is removed."""
    async with JournalRun(
        tmp_path, rows_max=10, segment_bytes=1000, journal_bytes_max=5000, put_wait_s_max=0.4
    ) as life:
        kept = 0
        with contextlib.suppress(BufferFull):
            while True:
                await life.put(make_block(1))
                kept += 1
        assert life.buffer.stats().used > 0.9
        assert life.buffer.journal_stats().size_bytes <= 5000
        assert kept > 30
        posts = [asyncio.create_task(life.buffer.reserve(1, 60)) for _ in range(3)]
        await asyncio.sleep(0)
        assert life.buffer.stats().posts_waiting == 3
        assert len(await life.drain()) == kept
        for reservation in await asyncio.gather(*posts):
            reservation.release()
        assert life.buffer.unwritten.size_bytes == 0


# The next process


async def test_killed_process_is_recovered_but_for_what_was_settled(tmp_path: Path) -> None:
    """Exactly the blocks that were acknowledged and not stored, beside posts that come in."""
    async with JournalRun(tmp_path / "a", rows_max=50, segment_bytes=2000) as life:
        blocks = await put_many(life, 200)
        taken = life.buffer.take(40)
        life.settle(taken[:10] + taken[25:])
        await life.quiet()
        await killed(tmp_path / "a", tmp_path / "b")
    async with JournalRun(tmp_path / "b", rows_max=50) as after:
        fresh = await after.put(make_block(1))  # before anything is counted or read back
        found = await after.read_back()
        assert after.ledger.recovered == 175
        found.remove(fresh.tuples)
        assert found == tuples_of(taken[10:25] + blocks[40:])
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["lock"]


async def test_drain_leaves_everything_to_the_journal(tmp_path: Path) -> None:
    """Blocks that are not stored are in the journal, those of memory too. Posts are answered."""
    async with JournalRun(tmp_path, rows_max=20) as life:
        blocks = await put_many(life, 30)
        life.load()
        life.settle(life.buffer.take(12))
        ack = Ack()
        awaited = await life.put(make_block(2, ack=ack))
        life.buffer.shut_inlet()
        await life.buffer.keep_rest()
        assert life.buffer.take(100) == []
        assert (await ack.wait()).set_aside
        stats = life.buffer.stats()
        assert stats.rows == stats.rows_kept == 20
    async with JournalRun(tmp_path) as after:
        found = await after.read_back()
        assert sorted(found) == sorted(tuples_of([*blocks[12:], awaited]))


@pytest.mark.parametrize("torn", [b"\xf7", b"\xf7JR\n" + b"\1" * 60, bytes(5000)])
@pytest.mark.parametrize("read_only", [False, True])
async def test_torn_tail_is_cut_off_and_is_no_damage(
    tmp_path: Path, torn: bytes, read_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that was not finished was never acknowledged. A tail that stays stops nothing."""

    def refuse(path: Path, length: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    rows = await left(tmp_path / "b", 5)
    (file,) = segment_files(tmp_path / "b")
    whole = file.path.stat().st_size
    with file.path.open("ab") as tail:
        tail.write(torn)
    if read_only:
        monkeypatch.setattr(os, "truncate", refuse)
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        assert file.path.stat().st_size == whole + read_only * len(torn)
        assert after.buffer.journal_stats().damaged == 0
        assert tuples_of(await after.drain()) == rows


@pytest.mark.parametrize("place", [0, 40, 100, 300, -1])
async def test_damaged_segment_gives_what_is_whole_and_is_set_aside(
    tmp_path: Path, place: int
) -> None:
    """A flipped byte costs one block and counts as damage. The file is kept."""
    rows = await left(tmp_path / "b", 60, rows=2, segment_bytes=1000)
    file = segment_files(tmp_path / "b")[0]
    damaged = bytearray(file.path.read_bytes())
    damaged[place] ^= 0x10
    file.path.write_bytes(damaged)
    async with JournalRun(tmp_path / "b") as after:
        found = await after.read_back()
        assert after.buffer.journal_stats().damaged == 1
        assert len(found) == (60 if place == 0 else 59)
        assert set(found) <= set(rows)
    suffixes = sorted(path.suffix for path in (tmp_path / "b").iterdir() if path.name != "lock")
    assert suffixes == [".damaged"]


@pytest.mark.parametrize(("place", "bit"), [(-1, 1), (0, 1), (8, 1), (9, 0x80), (11, 0x40)])
async def test_whole_frame_that_is_wrong_at_the_end_is_damage_not_a_torn_tail(
    tmp_path: Path, place: int, bit: int
) -> None:
    """Its block may have been acknowledged, so it counts as damage and the file is kept."""
    rows = await left(tmp_path / "b", 5)
    (file,) = segment_files(tmp_path / "b")
    damaged = bytearray(file.path.read_bytes())
    last = damaged.rindex(MARK)
    damaged[last + place if place >= 0 else place] ^= bit
    file.path.write_bytes(damaged)
    async with JournalRun(tmp_path / "b") as after:
        assert await after.read_back() == rows[:4]
        assert after.buffer.journal_stats().damaged == 1
    assert file.path.with_suffix(".damaged").read_bytes() == damaged


async def test_notes_behind_a_torn_note_are_believed(tmp_path: Path) -> None:
    """If a kill tears a note, the notes of the next process begin at a whole record."""
    async with JournalRun(tmp_path / "a") as life:
        blocks = await put_many(life, 9)
        life.settle(life.buffer.take(3))
        await life.quiet()
        await killed(tmp_path / "a", tmp_path / "b")
    (file,) = segment_files(tmp_path / "b")
    with file.done_path.open("ab") as notes:
        notes.write(b"\0" * 7)
    async with JournalRun(tmp_path / "b") as second:
        await second.scan()
        second.load()
        second.settle(await second.take(2))
        await second.quiet()
        await killed(tmp_path / "b", tmp_path / "c")
    async with JournalRun(tmp_path / "c") as third:
        assert await third.read_back() == tuples_of(blocks[5:])
        assert third.ledger.recovered == 4


async def test_segment_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """The service starts, reports the file, and does not change it."""
    await left(tmp_path / "b", 2)
    (file,) = segment_files(tmp_path / "b")
    data = bytearray(file.path.read_bytes())
    header = format_._HEADER.pack(b"IOTJRNL\n", 3, file.first, file.salt, 0)
    data[: format_.HEADER_BYTES] = header + format_._CRC.pack(crc32(header))
    file.path.write_bytes(data)
    async with JournalRun(tmp_path / "b") as after:
        fresh = await after.put(make_block(1))
        assert await after.read_back() == [fresh.tuples]
        assert after.ledger.recovered == 0
        assert after.buffer.journal_stats().damaged == 1
    assert file.path.read_bytes() == data


async def test_segment_that_cannot_be_read_does_not_stop_the_start(tmp_path: Path) -> None:
    """A folder with such a name counts as damage. A segment without a byte is removed."""
    tmp_path.joinpath("journal-00000000000000000001-00000001.log").mkdir()
    tmp_path.joinpath("journal-00000000000000000009-00000001.log").write_bytes(b"")
    async with JournalRun(tmp_path) as life:
        await life.scan()
        assert life.buffer.journal_stats().damaged == 1
        assert (await life.put(make_block(1))).sequence > 9
        await life.drain()
    assert len(segment_files(tmp_path)) == 1


async def test_blocks_that_vanish_between_scan_and_load_are_told_as_lost(tmp_path: Path) -> None:
    """The balance shows the loss, and nothing hangs."""
    await left(tmp_path / "b", 10)
    after = JournalRun(tmp_path / "b")
    after.buffer.open()
    await after.scan()
    (file,) = segment_files(tmp_path / "b")
    os.truncate(file.path, file.path.stat().st_size - 1)
    after.load()
    async with asyncio.timeout(5):
        while after.buffer.stats().rows:
            after.settle(after.buffer.take(100))
            await asyncio.sleep(0.001)
    assert after.ledger.dropped == after.ledger.imbalance == 1
    await after.end()


@pytest.mark.parametrize("at", [0, 2, -1], ids=["the first", "between", "the last"])
async def test_scan_that_fails_for_a_moment_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """If no descriptor is free at the start, the file is read later, and it is no damage."""
    rows = await left(tmp_path / "b", 100, segment_bytes=1000)
    failing = [segment_files(tmp_path / "b")[at].path] * (buffer_journal_loader.READS_MAX - 1)
    real = open_regular

    def out_of_descriptors(path: Path) -> BinaryIO:
        if path in failing:
            failing.remove(path)
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path)

    monkeypatch.setattr("ingest.buffers.journal.segments.open_regular", out_of_descriptors)
    async with JournalRun(tmp_path / "b", segment_bytes=1000) as after:
        assert sorted(await after.read_back()) == sorted(rows)
        assert not failing
        assert after.buffer.journal_stats().damaged == 0


# Files that change below the service


async def test_what_cannot_be_read_back_comes_once_it_can(tmp_path: Path) -> None:
    """If a file cannot be read for a while, the others are read first, and then this one."""
    async with JournalRun(tmp_path, rows_max=20, segment_bytes=1000) as life:
        blocks = [await life.put(make_block(1)) for _ in range(100)]
        files = [file.path for file in segment_files(tmp_path)]
        hidden = files[len(files) // 2]
        hidden.rename(tmp_path / "hidden")
        life.load()
        found: list[Block] = []
        async with asyncio.timeout(5):
            while not life.buffer.journal_stats().damaged or life.buffer.rows_waiting:
                batch = life.buffer.take(7)
                life.settle(batch)
                found += batch
                await asyncio.sleep(0.001)
        assert 80 < len(found) < 100
        assert life.buffer.stats().rows == 100 - len(found)
        assert life.buffer.stats().oldest_received_s is not None
        (tmp_path / "hidden").rename(hidden)
        found += await life.drain()
        assert sorted(tuples_of(found)) == sorted(tuples_of(blocks))
        assert life.ledger.dropped == 0


@pytest.mark.parametrize("whole_folder", [True, False])
async def test_drain_does_not_call_kept_what_is_in_removed_files(
    tmp_path: Path, whole_folder: bool
) -> None:
    """Blocks of memory are written again. Blocks that were only on the disk count as lost."""
    folder = tmp_path / "journal"
    life = JournalRun(folder, rows_max=20)
    life.buffer.open()
    blocks = await put_many(life, 50)
    if whole_folder:
        folder.rename(tmp_path / "elsewhere")
    else:
        segment_files(folder)[0].path.unlink()
    life.buffer.shut_inlet()
    await life.buffer.keep_rest()
    stats = life.buffer.stats()
    assert (stats.rows, stats.rows_kept) == (50, 20)
    await life.end()
    async with JournalRun(folder) as after:
        assert await after.read_back() == tuples_of(blocks[:20])


async def test_post_while_a_drain_looks_for_files_is_in_the_file_it_is_said_to_be_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block in the file that is begun then has a sequence below the number of the file."""
    admin_side, go, lexists = threading.Event(), threading.Event(), os.path.lexists

    def slow(path: Path) -> bool:
        admin_side.set()
        go.wait(5)
        return lexists(path)

    async with JournalRun(tmp_path, segment_bytes=200) as life:
        blocks = [await life.put(make_block(2)) for _ in range(4)]
        segment_files(tmp_path)[0].path.unlink()
        monkeypatch.setattr(os.path, "lexists", slow)
        ending = asyncio.create_task(life.buffer.keep_rest())
        await asyncio.to_thread(admin_side.wait, 5)
        blocks.append(await life.put(make_block(2)))
        go.set()
        await ending
        for block in blocks:
            path = life.journal.index.segment_of(block.sequence).file.path
            assert block.tuples in path.read_bytes()
        assert life.buffer.stats().rows_kept == 10


PAGE_BYTES = 4096


def _reads_to_a_bad_page(bad: int) -> Callable[[int, int, int], bytes]:
    """Return a `pread` like the kernel's with a bad page: a read that begins there fails."""
    pread = os.pread

    def read(fd: int, count: int, offset: int) -> bytes:
        if bad <= offset < bad + PAGE_BYTES:
            raise OSError(errno.EIO, "Input/output error")
        return pread(fd, min(count, bad - offset) if offset < bad else count, offset)

    return read


async def test_bad_sector_costs_what_comes_behind_it_and_not_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There from the start, or bad since: blocks before it are stored once, the rest once read."""
    rows = await left(tmp_path / "b", 8, rows=4000, segment_bytes=1 << 24)
    (file,) = segment_files(tmp_path / "b")
    bad = file.path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES
    whole = (bad - HEADER_BYTES) // (HEAD_BYTES + len(rows[0]))
    found: list[bytes] = []
    with monkeypatch.context() as bad_disk:
        bad_disk.setattr(os, "pread", _reads_to_a_bad_page(bad))
        for _ in range(2):
            async with JournalRun(tmp_path / "b") as after:
                found += await after.read_back()
                assert after.buffer.journal_stats().damaged == 1
                await after.quiet()
                assert file.path.exists()
                assert after.ledger.dropped == 0
    assert found == rows[:whole]
    async with JournalRun(tmp_path / "b") as last:
        await last.scan()
        with monkeypatch.context() as bad_disk:
            bad_disk.setattr(os, "pread", _reads_to_a_bad_page(file.path.stat().st_size - 10_000))
            last.load()
            await until(lambda: last.buffer.journal_stats().damaged)
            assert last.buffer.stats().rows == 4000 * (8 - whole)
        found += tuples_of(await last.drain())
        assert last.ledger.dropped == 0
    assert found == rows
    assert not file.path.exists()


# Who waits for whom


async def test_disk_that_hangs_does_not_fill_memory_with_what_is_stored(tmp_path: Path) -> None:
    """Blocks that are stored, but not yet in the journal, still need memory.

    Their bytes are bounded. At the bound posts wait, and go on when the disk does.
    """
    disk = HangingDisk()
    async with JournalRun(tmp_path, bytes_max=5000, put_wait_s_max=5, calls=disk) as life:
        await life.put(make_block(1))
        await life.drain()
        disk.go.clear()
        posts: list[asyncio.Task[Block]] = []
        for _ in range(200):
            posts.append(asyncio.create_task(life.put(make_block(1), durable=False)))
            await asyncio.sleep(0)
            life.settle(life.buffer.take(1000))
        put = [post for post in posts if post.done() and post.exception() is None]
        assert 1 < len(put) <= 5000 / len(make_block(1).tuples)
        assert len(put) == life.ledger.committed - 1
        waiting = [post for post in posts if not post.done()]
        assert waiting
        disk.go.set()
        await asyncio.gather(*waiting)
        assert len(await life.drain()) == len(waiting)
        await asyncio.gather(*posts, return_exceptions=True)


async def test_durable_post_does_not_wait_behind_one_that_needs_memory(tmp_path: Path) -> None:
    """While memory is full, a durable post goes on as soon as the way to the disk has room."""
    disk = HangingDisk()
    size = len(make_block(1).tuples)
    async with JournalRun(
        tmp_path, rows_max=2, bytes_max=40 * size, put_wait_s_max=5, calls=disk
    ) as life:
        await put_many(life, 3)
        disk.go.clear()
        spilling = asyncio.create_task(life.put(make_block(12)))
        await asyncio.sleep(0)
        awaited = asyncio.create_task(life.put(make_block(1, ack=Ack())))
        await asyncio.sleep(0)
        durable = asyncio.create_task(life.put(make_block(1)))
        await asyncio.sleep(0.01)
        assert not durable.done()
        disk.go.set()
        async with asyncio.timeout(3):
            await asyncio.gather(spilling, durable)
            reservation = await life.buffer.reserve(10, 10 * size)
            durable = asyncio.create_task(life.put(make_block(1)))
            await asyncio.sleep(0.01)
            assert not durable.done()
            reservation.release()
            await durable
        assert not awaited.done()
        life.settle(life.buffer.take(2))
        await awaited


async def test_room_given_back_wakes_the_loader(tmp_path: Path) -> None:
    """When a reservation of memory is released, blocks are read back from the disk."""
    rows = await left(tmp_path / "b", 5)
    async with JournalRun(tmp_path / "b", rows_max=10) as after:
        await after.scan()
        reservation = await after.buffer.reserve(10, 400)
        after.load()
        await asyncio.sleep(0.01)
        assert not after.buffer.rows_waiting
        reservation.release()
        assert tuples_of(await after.drain()) == rows


async def test_batches_of_the_backlog_are_small_while_live_posts_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live posts wait for the disk behind these batches. Without live posts they are large."""
    monkeypatch.setattr("ingest.buffers.journal.buffer.LIVE_S", 1_000.0)
    async with JournalRun(tmp_path, rows_max=8_000) as life:
        await put_many(life, 10_000)
        life.load()
        first = await life.take(8_000)
        life.settle(first[:3_000])
        await until(lambda: life.buffer.stats().rows_waiting >= 2_000)
        overload = await life.take(1_000)
        assert len(overload) == 1_000  # memory was full, and is not half empty since
        life.settle(first[3_000:])
        life.settle(overload)
        await life.put(make_block(1))
        for expected in (1, LIVE_BATCH_ROWS_MAX):
            live = await life.take(5_000)
            assert len(live) == expected
            life.settle(live)
        life.buffer.live_put_s -= 1_000
        assert len(await life.take(5_000)) == 1_000 - LIVE_BATCH_ROWS_MAX


@pytest.mark.parametrize("kind", ["awaited", "together", "buffered"])
async def test_live_posts_go_before_the_backlog_unless_they_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of any kind. A full journal gets room only by being read back, so that is not slow then."""
    monkeypatch.setattr("ingest.buffers.journal.buffer.LIVE_S", 1_000.0)
    async with JournalRun(tmp_path, journal_bytes_max=500, put_wait_s_max=5) as life:
        assert not life.buffer.live_first()
        if kind == "awaited":
            await life.put(make_block(1, ack=Ack()))
        else:
            life.ledger.received += 1
            waiter = [] if kind == "buffered" else [0, lambda _waiters, _error: None]
            assert life.buffer.take_in(make_block(1), *waiter)  # type: ignore[arg-type]
            if kind == "buffered":
                assert life.buffer.live_first()
                life.buffer.live_put_s -= 1_000
            await life.quiet()
        assert life.buffer.live_first()
        posts = [asyncio.create_task(life.put(make_block(1))) for _ in range(9)]
        await until(lambda: life.buffer.stats().posts_waiting)
        assert not life.buffer.live_first()
        for each in posts:
            each.cancel()
        await asyncio.gather(*posts, return_exceptions=True)
        assert life.buffer.live_first()


async def test_replay_gives_way_to_live_posts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The busier the process is, the longer are the pauses, up to a bound. Without posts: none."""
    cpu_s, pauses = 0.0, []
    busy = 1.0

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    def process_cpu_s() -> float:
        nonlocal cpu_s
        cpu_s += busy
        return cpu_s

    async with JournalRun(tmp_path) as life:
        loader, clock = life.buffer.loader, iter(range(1, 1_000))
        with monkeypatch.context() as patched:
            patched.setattr("ingest.buffers.journal.loader.process_cpu_s", process_cpu_s)
            patched.setattr("ingest.buffers.journal.loader.monotonic_s", lambda: float(next(clock)))
            patched.setattr("ingest.buffers.journal.loader.asyncio.sleep", sleep)
            await loader._pause()
            assert pauses == []
            patched.setattr(loader, "_live_first", lambda: True)
            for _ in range(50):
                await loader._pause()
            assert pauses[0] < pauses[5] < pauses[-1] == PAUSE_S_MAX
            busy = 0.0
            for _ in range(50):
                await loader._pause()
            assert pauses[-1] < 1e-4


@pytest.mark.parametrize("rows_max", [10, 2], ids=["in memory", "spilled"])
async def test_no_reading_is_counted_in_the_receiver_and_in_the_buffer_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_max: int
) -> None:
    """A block on the disk whose post has not run since counts once: the balance check is 0."""
    seen = []
    end = Decision.end

    def noting(decision: Decision, error: NotKept | None) -> None:
        end(decision, error)
        seen.append(life.buffer.stats().rows)

    monkeypatch.setattr(Decision, "end", noting)
    async with JournalRun(tmp_path, rows_max=rows_max) as life:
        await life.put(make_block(3))
        assert seen == [0]
        assert life.buffer.stats().rows == 3
