"""The journal buffer: it spills, reads back and recovers, and loses nothing in any process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import pytest

from ingest.buffers.decision import Decision
from ingest.buffers.frames import HEAD_BYTES, MARK
from ingest.buffers.journal import format as format_
from ingest.buffers.journal import loader as buffer_journal_loader
from ingest.buffers.journal.buffer import BACKLOG_EVERY
from ingest.buffers.journal.format import HEADER_BYTES
from ingest.buffers.journal.loader import LIVE_BATCH_ROWS_MAX, PAUSE_S_MAX
from ingest.buffers.journal.reader import segment_files
from ingest.model.ack import Ack
from ingest.model.block import Block
from ingest.model.errors import BufferFull, NotKept
from ingest.system.files import open_regular
from tests.support.blocks import make_block
from tests.support.journals import FailingCalls, HangingDisk, JournalRun, killed, on_disk


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


async def test_what_memory_cannot_hold_is_spilled_and_comes_back_in_order(tmp_path: Path) -> None:
    """All posts of a long outage are accepted. Blocks of memory come first, then spilled ones."""
    async with JournalRun(tmp_path, rows_max=100, segment_bytes=4000) as life:
        blocks = await put_many(life, 1000)
        stats = life.buffer.stats()
        assert (stats.rows, stats.rows_waiting, stats.posts_waiting) == (1000, 100, 0)
        assert life.ledger.imbalance == 0
        assert stats.oldest_received_s == blocks[0].received_s
        life.load()
        found = await life.drain(rows_max=30)
        assert tuples_of(found) == tuples_of(blocks)
        await life.quiet()
        assert life.buffer.stats().rows == 0
        assert len(segment_files(tmp_path)) <= 1  # none, if the last one was full


async def test_backlog_comes_back_where_no_more_threads_are_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of threads that is reached later does not stop the loader."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with JournalRun(tmp_path, rows_max=10, segment_bytes=4000) as life:
        await life.scan()
        monkeypatch.setattr(threading.Thread, "start", start)
        blocks = await put_many(life, 200)
        life.load()
        assert tuples_of(await life.drain()) == tuples_of(blocks)


async def test_spilled_blocks_cost_ranges_not_blocks(tmp_path: Path) -> None:
    """A range grows while no other block is written, so blocks are not remembered one by one."""
    calls = FailingCalls()
    async with JournalRun(tmp_path, rows_max=20, calls=calls) as life:
        await put_many(life, 500)
        assert len(life.journal.index.spilled) == 1
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(1500):
                await life.put(make_block(1))
            calls.names.clear()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 30_000, "20 bytes a block: somebody remembers each"
        life.load()
        assert len(await life.drain()) == 2000


async def test_memory_never_holds_more_than_its_bounds(tmp_path: Path) -> None:
    """A journal much larger than memory is read back through a quarter of memory."""
    async with JournalRun(
        tmp_path, rows_max=80, bytes_max=6000, segment_bytes=5000, put_wait_s_max=5
    ) as life:
        blocks = await put_many(life, 600)
        life.load()
        most = 0
        found: list[Block] = []
        while life.buffer.stats().rows:
            stats = life.buffer.stats()
            most = max(most, stats.rows_waiting)
            assert stats.size_bytes <= 6000
            batch = await life.take(7)
            life.settle(batch)
            found += batch
        assert most <= 80
        assert tuples_of(found) == tuples_of(blocks)


async def test_live_blocks_are_not_starved_by_the_backlog_nor_it_by_them(tmp_path: Path) -> None:
    """One batch in four is of the backlog, and each one while no live block waits."""
    async with JournalRun(tmp_path, rows_max=400) as life:
        await put_many(life, 700)
        life.load()
        life.settle(await life.take(400))
        async with asyncio.timeout(5):
            while life.buffer.stats().rows_waiting < 100:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await put_many(life, 100)
        batches = [await life.take(5) for _ in range(2 * BACKLOG_EVERY)]
        assert sum(batch[0].reloaded for batch in batches) == 2
        for batch in batches:
            life.settle(batch)
        found = await life.drain()
        assert len(found) + 5 * len(batches) == 400


async def test_spilling_ends_once_memory_is_half_empty(tmp_path: Path) -> None:
    """So ranges stay few, and a short overload does not send posts to the disk for ever."""
    async with JournalRun(tmp_path, rows_max=100) as life:
        await put_many(life, 101)
        life.settle(life.buffer.take(30))
        await put_many(life, 1)
        assert life.buffer.stats().rows_waiting == 70
        life.settle(life.buffer.take(20))
        await put_many(life, 1)
        assert life.buffer.stats().rows_waiting == 51
        assert [each.rows for each in life.journal.index.spilled] == [2]
        life.load()
        await life.drain()


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
        life.load()
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
        life.load()
        assert block in await life.drain()
    async with JournalRun(tmp_path, rows_max=4) as life:
        await put_many(life, 4)
        with pytest.raises(BufferFull):
            await life.buffer.reserve(1, 1, awaited=True)
        await life.drain()


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
        stats = life.buffer.stats()
        assert stats.used > 0.9
        assert life.buffer.journal_stats().size_bytes <= 5000
        assert kept > 30
        life.load()
        posts = [asyncio.create_task(life.buffer.reserve(1, 60)) for _ in range(3)]
        await asyncio.sleep(0)
        assert life.buffer.stats().posts_waiting == 3
        found = await life.drain()
        for reservation in await asyncio.gather(*posts):
            reservation.release()
        assert len(found) == kept
        assert life.buffer.unwritten.size_bytes == 0


async def test_killed_process_is_recovered_but_for_what_was_settled(tmp_path: Path) -> None:
    """After kill -9 exactly the blocks that were acknowledged and not stored are recovered."""
    async with JournalRun(tmp_path / "a", rows_max=50, segment_bytes=2000) as life:
        blocks = await put_many(life, 200)
        taken = life.buffer.take(40)
        life.settle(taken[:10] + taken[25:])
        await life.quiet()
        await killed(tmp_path / "a", tmp_path / "b")
        async with JournalRun(tmp_path / "b", rows_max=50) as after:
            await after.scan()
            assert after.ledger.recovered == 175
            assert after.buffer.stats().rows == 175
            assert after.ledger.imbalance == 0
            fresh = await after.put(make_block(1))  # posts come in before anything is read back
            after.load()
            found = await after.drain()
            assert fresh in found
            found.remove(fresh)
            assert tuples_of(found) == tuples_of(taken[10:25] + blocks[40:])
        life.settle(taken[10:25])
        life.load()
        await life.drain()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["lock"]


async def test_posts_during_the_scan_harm_nothing_that_is_not_counted_yet(tmp_path: Path) -> None:
    """A segment whose blocks are not counted yet is not removed."""
    async with JournalRun(tmp_path / "a", segment_bytes=600) as life:
        blocks = [await life.put(make_block(1)) for _ in range(60)]
        await killed(tmp_path / "a", tmp_path / "b")
        life.load()
        await life.drain()
    async with JournalRun(tmp_path / "b", segment_bytes=600) as after:
        last = after.journal.index.segments[-1]
        fresh = [await after.put(make_block(1))]  # before anything was read
        scanned = after.buffer.loader._scan_segment(
            last, after.stopping, is_last=True, gives_up=True
        )
        assert await scanned is not None
        fresh += [await after.put(make_block(1)) for _ in range(20)]
        await after.quiet()
        await after.scan()
        assert after.ledger.recovered == 60
        after.load()
        found = tuples_of(await after.drain())
        assert after.ledger.dropped == 0
        assert sorted(found) == sorted(tuples_of(blocks + fresh))


async def test_processes_that_end_early_add_up(tmp_path: Path) -> None:
    """Processes are killed while they read back. In the end each block has come back once."""
    blocks: list[Block] = []
    stored: list[bytes] = []
    for number in range(5):
        folder, copy = tmp_path / str(number), tmp_path / str(number + 1)
        life = JournalRun(folder, rows_max=30, segment_bytes=1500)
        async with life:
            await life.scan()
            assert life.ledger.recovered == len(blocks) - len(stored)
            life.load()
            blocks += await put_many(life, 60)
            for _ in range(4):
                batch = await life.take(6)
                life.settle(batch)
                stored += tuples_of(batch)
            await life.quiet()
            await killed(folder, copy)
    async with JournalRun(tmp_path / "5") as last:
        await last.scan()
        last.load()
        stored += tuples_of(await last.drain())
    assert sorted(stored) == sorted(tuples_of(blocks))


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
        assert ack.resolved
        assert (await ack.wait()).set_aside
        stats = life.buffer.stats()
        assert stats.rows == stats.rows_kept == 20
        assert life.ledger.imbalance == 0
    async with JournalRun(tmp_path) as after:
        await after.scan()
        assert after.ledger.recovered == 20
        after.load()
        found = await after.drain()
        assert sorted(tuples_of(found)) == sorted(tuples_of([*blocks[12:], awaited]))


async def test_torn_tail_is_cut_off_and_is_no_damage(tmp_path: Path) -> None:
    """A write that was not finished was never acknowledged."""
    for torn in (b"\xf7", b"\xf7JR\n" + b"\1" * 60, bytes(5000)):
        folder, copy = tmp_path / f"a{len(torn)}", tmp_path / f"b{len(torn)}"
        async with JournalRun(folder) as life:
            blocks = await put_many(life, 5)
            await killed(folder, copy)
            life.load()
            await life.drain()
        (file,) = segment_files(copy)
        whole = file.path.read_bytes()
        file.path.write_bytes(whole + torn)
        async with JournalRun(copy) as after:
            await after.scan()
            assert file.path.stat().st_size == len(whole)
            assert after.buffer.journal_stats().damaged == 0
            after.load()
            assert tuples_of(await after.drain()) == tuples_of(blocks)


@pytest.mark.parametrize("place", [0, 40, 100, 300, -1])
async def test_damaged_segment_gives_what_is_whole_and_is_set_aside(
    tmp_path: Path, place: int
) -> None:
    """A flipped byte costs one block and counts as damage. The file is kept."""
    async with JournalRun(tmp_path / "a", segment_bytes=1000) as life:
        blocks = await put_many(life, 60, rows=2)
        await killed(tmp_path / "a", tmp_path / "b")
        life.load()
        await life.drain()
    file = segment_files(tmp_path / "b")[0]
    damaged = bytearray(file.path.read_bytes())
    damaged[place] ^= 0x10
    file.path.write_bytes(damaged)
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        assert after.buffer.journal_stats().damaged == 1
        after.load()
        found = tuples_of(await after.drain())
        assert len(found) == (60 if place == 0 else 59)
        assert set(found) < set(tuples_of(blocks)) or place == 0
    left = sorted(path.suffix for path in (tmp_path / "b").iterdir() if path.name != "lock")
    assert left == [".damaged"]


@pytest.mark.parametrize(("place", "bit"), [(-1, 1), (0, 1), (8, 1), (9, 0x80), (11, 0x40)])
async def test_whole_frame_that_is_wrong_at_the_end_is_damage_not_a_torn_tail(
    tmp_path: Path, place: int, bit: int
) -> None:
    """Its block may have been acknowledged, so it counts as damage and the file is kept."""
    async with JournalRun(tmp_path / "a") as life:
        blocks = await put_many(life, 5)
        await killed(tmp_path / "a", tmp_path / "b")
        life.load()
        await life.drain()
    (file,) = segment_files(tmp_path / "b")
    damaged = bytearray(file.path.read_bytes())
    last = damaged.rindex(MARK)
    damaged[last + place if place >= 0 else place] ^= bit
    file.path.write_bytes(damaged)
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        assert after.buffer.journal_stats().damaged == 1
        after.load()
        assert tuples_of(await after.drain()) == tuples_of(blocks[:4])
    assert file.path.with_suffix(".damaged").read_bytes() == damaged


async def test_notes_behind_a_torn_note_are_believed(tmp_path: Path) -> None:
    """If a kill tears a note, the notes of the next process begin at a whole record."""
    async with JournalRun(tmp_path / "a") as life:
        blocks = await put_many(life, 9)
        life.settle(life.buffer.take(3))
        await life.quiet()
        await killed(tmp_path / "a", tmp_path / "b")
        life.settle(life.buffer.take(9))
    (file,) = segment_files(tmp_path / "b")
    with file.done_path.open("ab") as notes:
        notes.write(b"\0" * 7)
    async with JournalRun(tmp_path / "b") as second:
        await second.scan()
        second.load()
        second.settle(await second.take(2))
        await second.quiet()
        await killed(tmp_path / "b", tmp_path / "c")
        await second.drain()
    async with JournalRun(tmp_path / "c") as third:
        await third.scan()
        assert third.ledger.recovered == 4
        third.load()
        assert tuples_of(await third.drain()) == tuples_of(blocks[5:])


async def test_segment_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """The service starts, reports the file, and does not change it."""
    async with JournalRun(tmp_path / "a") as life:
        await put_many(life, 2)
        await killed(tmp_path / "a", tmp_path / "b")
        life.load()
        await life.drain()
    (file,) = segment_files(tmp_path / "b")
    data = bytearray(file.path.read_bytes())
    header = format_._HEADER.pack(b"IOTJRNL\n", 2, file.first, file.salt, 0)
    data[: format_.HEADER_BYTES] = header + format_._CRC.pack(crc32(header))
    file.path.write_bytes(data)
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        assert after.ledger.recovered == 0
        assert after.buffer.journal_stats().damaged == 1
        await after.put(make_block(1))
        after.load()
        assert len(await after.drain()) == 1
    assert file.path.read_bytes() == data


async def test_segment_that_cannot_be_read_does_not_stop_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with such a name counts as damage. A segment without a byte is removed."""
    monkeypatch.setattr(buffer_journal_loader, "READ_AGAIN_S", 0.01)
    tmp_path.joinpath("journal-00000000000000000001-00000001.log").mkdir()
    tmp_path.joinpath("journal-00000000000000000009-00000001.log").write_bytes(b"")
    async with JournalRun(tmp_path) as life:
        await life.scan()
        assert life.buffer.journal_stats().damaged == 1
        block = await life.put(make_block(1))
        assert block.sequence > 9
        await life.drain()
    assert len(segment_files(tmp_path)) == 1


async def test_blocks_that_vanish_between_scan_and_load_are_told_as_lost(tmp_path: Path) -> None:
    """The balance shows the loss, and nothing hangs."""
    async with JournalRun(tmp_path / "a") as life:
        await put_many(life, 10)
        await killed(tmp_path / "a", tmp_path / "b")
        life.load()
        await life.drain()
    after = JournalRun(tmp_path / "b")
    async with asyncio.timeout(5):
        after.buffer.open()
        await after.scan()
        (file,) = segment_files(tmp_path / "b")
        os.truncate(file.path, file.path.stat().st_size - 1)
        after.load()
        while after.buffer.stats().rows:
            if after.buffer.rows_waiting:
                after.settle(after.buffer.take(100))
            await asyncio.sleep(0.001)
        assert after.ledger.dropped == 1
        assert after.ledger.imbalance == 1
        await after.end()


async def test_given_back_backlog_keeps_its_order_and_its_place(tmp_path: Path) -> None:
    """A failed batch of the backlog goes back to the backlog, and a live one to the live ones."""
    async with JournalRun(tmp_path, rows_max=40) as life:
        await put_many(life, 60)
        life.load()
        live = await life.take(40)
        life.settle(live)
        async with asyncio.timeout(5):
            while life.buffer.rows_waiting < 10:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        old = life.buffer.take(10)
        assert all(block.reloaded for block in old)
        life.buffer.give_back(old)
        assert life.buffer.first_received_s() == old[0].received_s
        again = life.buffer.take(10)
        assert again == old
        life.settle(again)
        await life.drain()
    assert on_disk(tmp_path) == []


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
        life.load()
        assert len(await life.drain()) == len(waiting)
        await asyncio.gather(*posts, return_exceptions=True)


async def test_durable_post_does_not_wait_behind_one_that_needs_memory(tmp_path: Path) -> None:
    """While memory is full, a durable post goes on as soon as the disk has room."""
    disk = HangingDisk()
    block = make_block(1)
    size = len(block.tuples)
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
        assert not awaited.done()
        life.settle(life.buffer.take(2))
        await awaited
        life.load()
        await life.drain()


async def test_way_to_the_disk_given_back_lets_the_next_post_in(tmp_path: Path) -> None:
    """When a reservation for a spilled block is released, the next post gets its room."""
    size = len(make_block(1).tuples)
    async with JournalRun(tmp_path, rows_max=2, bytes_max=40 * size, put_wait_s_max=5) as life:
        await put_many(life, 3)
        reservation = await life.buffer.reserve(10, 10 * size)
        waiting = asyncio.create_task(life.put(make_block(1)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        reservation.release()
        async with asyncio.timeout(3):
            await waiting
        life.load()
        await life.drain()


async def test_buffered_block_that_cannot_be_written_leaves_room_on_the_disk(
    tmp_path: Path,
) -> None:
    """After its write failed once, the post that waited for room is kept."""
    disk = HangingDisk()
    frame = HEAD_BYTES + len(make_block(1).tuples)
    async with JournalRun(
        tmp_path, put_wait_s_max=5, journal_bytes_max=2 * frame - 1, calls=disk
    ) as life:
        disk.go.clear()
        await life.put(make_block(1), durable=False)
        waiting = asyncio.create_task(life.put(make_block(1)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        disk.failing, disk.nth = {"fdatasync": errno.EIO}, 2  # the header's, then the group's
        disk.go.set()
        async with asyncio.timeout(3):
            await waiting
        assert disk.fired == 1
        await life.drain()


async def test_room_given_back_wakes_the_loader(tmp_path: Path) -> None:
    """When a reservation of memory is released, blocks are read back from the disk."""
    async with JournalRun(tmp_path / "a") as life:
        await put_many(life, 5)
        await killed(tmp_path / "a", tmp_path / "b")
        await life.drain()
    async with JournalRun(tmp_path / "b", rows_max=10) as after:
        await after.scan()
        reservation = await after.buffer.reserve(10, 400)
        after.load()
        await asyncio.sleep(0.01)
        assert not after.buffer.rows_waiting
        reservation.release()
        assert len(await after.drain()) == 5


@pytest.mark.parametrize("at", [0, 2, -1], ids=["the first", "between", "the last"])
async def test_scan_that_fails_for_a_moment_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """If no descriptor is free at the start, the file is read later, and it is no damage."""
    monkeypatch.setattr(buffer_journal_loader, "READ_AGAIN_S", 0.01)
    async with JournalRun(tmp_path / "a", segment_bytes=1000) as life:
        blocks = [await life.put(make_block(1)) for _ in range(100)]
        await killed(tmp_path / "a", tmp_path / "b")
        life.load()
        await life.drain()
    failing = [segment_files(tmp_path / "b")[at].path] * (buffer_journal_loader.READS_MAX - 1)
    real = open_regular

    def out_of_descriptors(path: Path) -> BinaryIO:
        if path in failing:
            failing.remove(path)
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path)

    monkeypatch.setattr("ingest.buffers.journal.reader.open_regular", out_of_descriptors)
    async with JournalRun(tmp_path / "b", segment_bytes=1000) as after:
        await after.scan()
        assert not failing
        assert after.ledger.recovered == 100
        assert after.buffer.journal_stats().damaged == 0
        after.load()
        assert sorted(tuples_of(await after.drain())) == sorted(tuples_of(blocks))


async def test_what_cannot_be_read_back_comes_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file cannot be read for a while, the others are read first, and then this one."""
    monkeypatch.setattr(buffer_journal_loader, "READ_AGAIN_S", 0.01)
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
    life = JournalRun(folder, rows_max=20, segment_bytes=1 << 20)
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
        await after.scan()
        after.load()
        assert tuples_of(await after.drain()) == tuples_of(blocks[:20])


PAGE_BYTES = 4096


def _reads_to_a_bad_page(bad: int) -> Callable[[int, int, int], bytes]:
    """Return a `pread` like the kernel's with a bad page: a read that begins there fails."""
    pread = os.pread

    def read(fd: int, count: int, offset: int) -> bytes:
        if bad <= offset < bad + PAGE_BYTES:
            raise OSError(errno.EIO, "Input/output error")
        return pread(fd, min(count, bad - offset) if offset < bad else count, offset)

    return read


async def _left_with_a_bad_page(folder: Path) -> tuple[list[Block], int, int]:
    """Leave a journal in `folder`/b; return its 8 blocks, how many are before a page, that page."""
    async with JournalRun(folder / "a", segment_bytes=1 << 24) as life:
        blocks = [await life.put(make_block(4000)) for _ in range(8)]
        await killed(folder / "a", folder / "b")
        await life.drain(rows_max=100_000)
    (file,) = segment_files(folder / "b")
    bad = file.path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES
    return blocks, (bad - HEADER_BYTES) // (HEAD_BYTES + len(blocks[0].tuples)), bad


async def test_bad_sector_costs_what_comes_behind_it_and_not_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks before it are stored once. The file stays until the rest can be read."""
    blocks, whole, bad = await _left_with_a_bad_page(tmp_path)
    monkeypatch.setattr(os, "pread", _reads_to_a_bad_page(bad))
    monkeypatch.setattr(buffer_journal_loader, "READ_AGAIN_S", 0.01)
    (file,) = segment_files(tmp_path / "b")
    found: list[bytes] = []
    for _ in range(2):
        async with JournalRun(tmp_path / "b") as after:
            await after.scan()
            assert after.buffer.journal_stats().damaged == 1
            after.load()
            found += tuples_of(await after.drain(rows_max=100_000))
            await after.quiet()
            assert file.path.exists()
            assert after.ledger.dropped == 0
    assert found == tuples_of(blocks)[:whole]
    monkeypatch.undo()
    async with JournalRun(tmp_path / "b") as last:
        await last.scan()
        last.load()
        found += tuples_of(await last.drain(rows_max=100_000))
    assert found == tuples_of(blocks)
    assert not file.path.exists()


async def test_sector_that_turns_bad_after_the_start_is_read_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost: blocks before it are stored, and the rest once it can be read."""
    monkeypatch.setattr("ingest.buffers.journal.loader.READ_AGAIN_S", 0.05)
    blocks, whole, bad = await _left_with_a_bad_page(tmp_path)
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        found: list[Block] = []
        with monkeypatch.context() as bad_disk:  # READ_AGAIN_S stays short when it ends
            bad_disk.setattr(os, "pread", _reads_to_a_bad_page(bad))
            after.load()
            async with asyncio.timeout(10):
                while len(found) < whole:
                    taken = await after.take(4000)
                    after.settle(taken)
                    found += taken
            async with asyncio.timeout(5):
                while after.buffer.journal_stats().damaged == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            assert after.buffer.journal_stats().damaged == 1
            assert after.buffer.stats().rows == 4000 * (8 - whole)
        found += await after.drain(rows_max=100_000)
        assert tuples_of(found) == tuples_of(blocks)
        assert after.ledger.dropped == 0


async def test_tail_that_cannot_be_cut_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file is read-only, its whole blocks are loaded."""
    async with JournalRun(tmp_path / "a") as life:
        blocks = await put_many(life, 5)
        await killed(tmp_path / "a", tmp_path / "b")
        await life.drain()
    (file,) = segment_files(tmp_path / "b")
    with file.path.open("ab") as torn:
        torn.write(b"\xf7JR")

    def refuse(path: Path, length: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "truncate", refuse)
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        after.load()
        assert tuples_of(await after.drain()) == tuples_of(blocks)
        assert after.buffer.journal_stats().damaged == 0


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
        async with asyncio.timeout(5):
            while life.buffer.stats().rows_waiting < 2_000:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
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
        rest = await life.take(5_000)
        assert len(rest) == 1_000 - LIVE_BATCH_ROWS_MAX
        life.settle(rest)


async def test_replay_does_not_give_way_to_posts_that_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full journal gets room only by being read back, so that must not be slow then."""
    monkeypatch.setattr("ingest.buffers.journal.buffer.LIVE_S", 1_000.0)
    async with JournalRun(tmp_path, journal_bytes_max=500, put_wait_s_max=5) as life:
        await life.put(make_block(1))
        assert life.buffer.live_first()
        posts = [asyncio.create_task(life.put(make_block(1))) for _ in range(9)]
        async with asyncio.timeout(5):
            while not life.buffer.stats().posts_waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert not life.buffer.live_first()
        for each in posts:
            each.cancel()
        await asyncio.gather(*posts, return_exceptions=True)
        assert life.buffer.live_first()
        await life.drain()


async def test_post_that_waits_for_its_commit_is_a_live_one(tmp_path: Path) -> None:
    """It is not journaled, but reading back must not delay it."""
    async with JournalRun(tmp_path) as life:
        assert not life.buffer.live_first()
        await life.put(make_block(1, ack=Ack()))
        assert life.buffer.live_first()
        await life.drain()


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
        life.load()
        await life.drain()
        assert life.buffer.stats().rows == 0
