"""What every buffer promises of `take_in`: a post is kept at once, or nothing of it is.

Posts that come together share a block, as long as nobody has taken it.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ingest.buffers.journal.buffer import JournalBuffer
from ingest.model.block import SHARED_BYTES_MAX, SHARED_ROWS_MAX, Block
from ingest.model.errors import BufferFull, JournalBroken, NotKept
from ingest.model.ports import Buffer, Inlet
from tests.contract.buffers import (
    PLENTY,
    empty,
    end,
    journal,
    memory,
    put,
    put_rows,
    queue_up,
    quiet,
    spilling,
    spin,
)
from tests.support.fakes import FakeInlet
from tests.support.journals import FailingCalls, HangingDisk, make_block, on_disk

ROWS_MAX = 1_000
Take = Callable[..., Any]


class Told:
    """Remembers who was told what, call by call; `look` is called before."""

    def __init__(self, look: Callable[[], object] = lambda: None) -> None:
        self.calls: list[tuple[list[object], NotKept | None]] = []
        self.look = look

    def __call__(self, waiters: Sequence[object], error: NotKept | None) -> None:
        """Note it."""
        self.look()
        self.calls.append((list(waiters), error))

    @property
    def waiters(self) -> list[object]:
        """All who were told, in order."""
        return [each for waiters, _ in self.calls for each in waiters]

    @property
    def errors(self) -> list[NotKept | None]:
        """What each of them was told."""
        return [error for waiters, error in self.calls for _ in waiters]


class Made:
    """Makes buffers of one kind, and closes them at the end."""

    def __init__(self, factory: Take, folder: Path) -> None:
        self.has_disk = factory is not memory
        self._factory = factory
        self._folder = folder
        self._made: list[Buffer] = []

    def __call__(
        self, rows_max: int = ROWS_MAX, bytes_max: int = PLENTY, wait_s: float = 0, **more: Any
    ) -> Buffer:
        """Make a buffer; of a memory buffer only `shared_rows_max` counts."""
        if not self.has_disk:
            more = {name: more[name] for name in more.keys() & {"shared_rows_max"}}
        self._made.append(self._factory(self._folder, rows_max, bytes_max, wait_s, **more))
        return self._made[-1]

    async def close(self) -> None:
        """Close all."""
        for buffer in self._made:
            await buffer.close()


@pytest.fixture(params=[memory, journal, spilling], ids=["memory", "journal", "spilling"])
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Made]:
    """Give buffers of each kind."""
    buffers = Made(request.param, tmp_path)
    yield buffers
    await buffers.close()


@pytest.fixture(params=[journal, spilling], ids=["journal", "spilling"])
async def durable(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Made]:
    """Give buffers of each kind that has a disk."""
    buffers = Made(request.param, tmp_path)
    yield buffers
    await buffers.close()


def rows_of(buffer: Buffer) -> tuple[int, int, int, int]:
    """Return rows held, bytes, rows that wait, blocks that wait."""
    stats = buffer.stats()
    assert buffer.rows_waiting == stats.rows_waiting
    return stats.rows, stats.size_bytes, stats.rows_waiting, stats.blocks_waiting


def content(blocks: Sequence[Block]) -> bytes:
    """Return all rows of blocks."""
    return b"".join(each.tuples for each in blocks)


# Kept at once


async def test_post_is_there_when_it_returns(made: Made) -> None:
    """Without a round of the event loop writers have it; writers that wait are woken."""
    buffer = made()
    waits = asyncio.create_task(buffer.wait_rows(5))
    await spin()
    blocks = [make_block(rows) for rows in (3, 2)]
    size, rows = len(content(blocks)), content(blocks)
    assert [buffer.take_in(block) for block in blocks] == [True, True]
    assert rows_of(buffer) == (5, size, 5, 1)
    assert buffer.stats().oldest_received_s == buffer.first_received_s() == blocks[0].received_s
    async with asyncio.timeout(1):
        await waits
    taken = buffer.take(100)
    assert content(taken) == rows
    assert rows_of(buffer) == (5, size, 0, 0)
    buffer.settle(taken)
    await quiet(buffer)
    assert empty(buffer)


async def test_block_grows_until_it_is_taken_and_not_after(made: Made) -> None:
    """A writer may hold the block, or have given it back: the next post needs another one."""
    buffer = made()
    first, second, third = (make_block(1) for _ in range(3))
    assert buffer.take_in(first)
    (taken,) = buffer.take(100)
    size = len(taken.tuples)
    assert buffer.take_in(second)
    assert (taken.rows, len(taken.tuples), taken.posts) == (1, size, 1)
    buffer.give_back([taken])
    assert buffer.take_in(third)
    assert [block.rows for block in buffer.take(100)] == [1, 2]


async def test_block_does_not_grow_behind_another_one(made: Made) -> None:
    """First in, first out: a post never comes before one that was kept earlier."""
    buffer = made()
    first, other, third = (make_block(1) for _ in range(3))
    rows = content([first, other, third])
    assert buffer.take_in(first)
    reservation = await buffer.reserve(1, len(other.tuples))
    putting = reservation.put(other, durable=False)
    assert buffer.take_in(third)
    await putting
    blocks = buffer.take(100)
    assert content(blocks) == rows
    assert len(blocks) == 3


@pytest.mark.parametrize("shared_rows_max", [SHARED_ROWS_MAX, 7, 1])
async def test_block_has_so_many_rows_at_most(made: Made, shared_rows_max: int) -> None:
    """The bound is exact. A post that is larger has a block of its own."""
    buffer = made(10_000, shared_rows_max=shared_rows_max)
    for _ in range(shared_rows_max + 1):
        assert buffer.take_in(make_block(1))
    assert buffer.take_in(make_block(shared_rows_max + 1))
    assert buffer.take_in(make_block(1))
    found = [block.rows for block in buffer.take(1 << 40)]
    assert found == [shared_rows_max, 1, shared_rows_max + 1, 1]


async def test_block_has_so_many_bytes_at_most(made: Made) -> None:
    """Rows with long names are large. The bound is exact, and a larger post is alone."""

    def block_of_bytes(size: int) -> Block:
        return Block(bytes(size), 1, received_s=1.0, received_us=0, newest_ts_us=0)

    buffer = made()
    half = SHARED_BYTES_MAX // 2
    for size in (half, half, 1, SHARED_BYTES_MAX - 1, SHARED_BYTES_MAX + 1, 1):
        assert buffer.take_in(block_of_bytes(size))
    found = [len(block.tuples) for block in buffer.take(1 << 40)]
    assert found == [2 * half, SHARED_BYTES_MAX, SHARED_BYTES_MAX + 1, 1]


async def test_room_is_taken_to_the_last_row_and_byte(made: Made) -> None:
    """The bounds of memory are exact; with room again, the next post is taken in."""
    block, fits = make_block(4), make_block(1)
    for rows_max, bytes_max in ((5, PLENTY), (100, len(content([block, fits])))):
        buffer = made(rows_max, bytes_max)
        assert buffer.take_in(make_block(4))
        assert buffer.take_in(make_block(1))
        assert not buffer.take_in(make_block(1))
        buffer.settle(buffer.take(100))
        await quiet(buffer)
        assert buffer.take_in(make_block(1))


# On the disk


async def test_waiters_are_told_once_in_order_in_a_later_round(durable: Made) -> None:
    """Not before the block is on the disk; and from that moment on writers may have it."""
    buffer = durable()
    assert isinstance(buffer, JournalBuffer)
    blocks = [make_block(rows) for rows in (1, 2, 3)]
    rows, size = content(blocks), len(content(blocks))
    seen: list[Any] = []
    told = Told(lambda: seen.append((rows_of(buffer), on_disk(_folder(buffer)))))
    for waiter, block in enumerate(blocks):
        assert buffer.take_in(block, waiter, told)
        assert not told.calls
    assert rows_of(buffer) == (0, size, 0, 0)  # room, and not rows: they are in the receiver
    await quiet(buffer)
    assert told.calls == [([0, 1, 2], None)]
    assert seen == [((6, size, 6, 1), [rows])]
    await quiet(buffer)
    assert told.waiters == [0, 1, 2]


async def test_waiters_of_several_groups_are_told_in_order(durable: Made) -> None:
    """Posts of one round are one group. While it is written the next ones gather in another."""
    disk = HangingDisk()
    buffer = durable(calls=disk, shared_rows_max=4)
    told = Told()
    rows = b""
    disk.go.clear()
    for waiter in range(12):
        if waiter in (3, 5):
            await spin()
        block = make_block(1)
        rows += block.tuples
        assert buffer.take_in(block, waiter, told)
    await spin()
    assert not told.calls
    disk.go.set()
    await quiet(buffer)
    assert told.waiters == list(range(12))
    assert told.errors == [None] * 12
    blocks = buffer.take(100)
    assert content(blocks) == rows
    assert [block.rows for block in blocks] == [3, 4, 4, 1]  # it is the same block in both rounds


async def test_both_kinds_share_no_block(durable: Made) -> None:
    """A post that waits for the disk is not given to writers before, nor the others after it."""
    buffer = durable()
    told = Told()
    for waiter in range(6):
        block = make_block(1)
        taken = buffer.take_in(block) if waiter % 2 else buffer.take_in(block, waiter, told)
        assert taken
    assert rows_of(buffer)[2:] == (3, 1)
    await quiet(buffer)
    assert told.waiters == [0, 2, 4]
    assert [block.posts for block in buffer.take(100)] == [3, 3]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
async def test_waiters_are_told_of_a_disk_that_fails(durable: Made, code: int) -> None:
    """Nothing of their posts is kept, their room is free, and those that wait for it get it."""
    calls = FailingCalls()
    buffer = durable(10, wait_s=5, calls=calls)
    assert isinstance(buffer, JournalBuffer)
    seen: list[Any] = []
    told = Told(lambda: seen.append(rows_of(buffer)))
    calls.failing, calls.left = {"write": code}, 2  # the group, and the probe of another file
    for waiter in range(10):
        assert buffer.take_in(make_block(1), waiter, told)
    waits = asyncio.create_task(buffer.reserve(1, 1, awaited=True))
    await spin()
    await quiet(buffer)
    assert told.waiters == list(range(10))
    assert all(isinstance(error, JournalBroken) for error in told.errors)
    (await waits).release()
    assert [each[0] for each in seen] == [0]
    assert empty(buffer)
    assert buffer.unwritten.size_bytes == 0
    assert on_disk(_folder(buffer)) == []


async def test_post_that_is_in_memory_stays_there_if_the_disk_fails(durable: Made) -> None:
    """It was promised for memory. A stop writes it again, if the disk works by then."""
    calls = FailingCalls(write=errno.EIO)
    buffer = durable(calls=calls)
    assert isinstance(buffer, JournalBuffer)
    buffer.journal._probe_s = 0.1
    blocks = [make_block(1) for _ in range(3)]
    rows, size = content(blocks), len(content(blocks))
    for block in blocks:
        assert buffer.take_in(block)
    await quiet(buffer)
    assert rows_of(buffer) == (3, size, 3, 1)
    assert buffer.unwritten.size_bytes == 0
    assert buffer.broken
    assert on_disk(_folder(buffer)) == []
    calls.failing = {}
    async with asyncio.timeout(10):
        while buffer.broken:  # noqa: ASYNC110  the probe is on a timer
            await asyncio.sleep(0.01)
    buffer.shut_inlet()
    await buffer.keep_rest()
    assert on_disk(_folder(buffer)) == [rows]
    assert (buffer.stats().rows, buffer.stats().rows_kept) == (3, 3)


async def test_post_taken_by_a_writer_before_its_group_is_written_is_complete_in_both(
    durable: Made,
) -> None:
    """The writer stores the block while the disk is slow; then it is done, and not read again."""
    disk = HangingDisk()
    buffer = durable(calls=disk)
    assert isinstance(buffer, JournalBuffer)
    disk.go.clear()
    assert buffer.take_in(make_block(1))
    await spin()  # the thread is busy now
    blocks = [make_block(1) for _ in range(3)]
    rows = content(blocks)
    for block in blocks:
        assert buffer.take_in(block)
    first, gathered = buffer.take(100)
    late = make_block(1)
    assert buffer.take_in(late)
    assert gathered.tuples == rows
    buffer.settle([first, gathered])
    disk.go.set()
    await quiet(buffer)
    assert on_disk(_folder(buffer))[1:] == [rows, late.tuples]
    assert sum(each.undone for each in buffer.journal.index.segments) == 1
    buffer.settle(buffer.take(100))
    await quiet(buffer)
    assert empty(buffer)


# Declined


async def full_of_rows(buffer: Buffer, _: HangingDisk) -> None:
    """There is room for no further row."""
    await put_rows(buffer, 10)


async def full_of_bytes(buffer: Buffer, _: HangingDisk) -> None:
    """There is room for rows, and for one byte."""
    await buffer.reserve(1, 4_999)


async def shut(buffer: Buffer, _: HangingDisk) -> None:
    """The service stops."""
    buffer.shut_inlet()


async def others_wait(buffer: Buffer, _: HangingDisk) -> None:
    """A large post waits, so a small one must not overtake it."""
    await buffer.reserve(1, 1)
    await queue_up(buffer, 10)
    assert buffer.stats().posts_waiting == 1


async def full_disk(buffer: Buffer, _: HangingDisk) -> None:
    """The journal has reached its bound, and memory has room."""
    while buffer.take_in(make_block(1)):
        await quiet(buffer)
    assert buffer.stats().rows < 10


async def broken_disk(buffer: Buffer, disk: HangingDisk) -> None:
    """The journal cannot be written."""
    disk.failing = {"write": errno.EIO}
    with pytest.raises(JournalBroken):
        await put(buffer, make_block(1))


async def hanging_disk(buffer: Buffer, disk: HangingDisk) -> None:
    """As much as may be on the way to the disk is: what is stored meanwhile needs memory too."""
    disk.go.clear()
    while buffer.take_in(make_block(1)):
        buffer.settle(buffer.take(1))
        await spin()
    assert empty(buffer)


async def spilled(buffer: Buffer, _: HangingDisk) -> None:
    """Blocks are on the disk only, so memory has room: but a spilled block has its own frame."""
    assert isinstance(buffer, JournalBuffer)
    await put_rows(buffer, 5, 5, 1)
    buffer.settle(buffer.take(5)[:1])
    buffer.memory.add(2, 0)
    assert buffer.memory.fits(1, 50)


Arrange = Callable[[Buffer, HangingDisk], Any]
DECLINES: list[tuple[Take, Arrange]] = [
    *((kind, each) for kind in (memory, journal) for each in (full_of_rows, full_of_bytes)),
    *((kind, each) for kind in (memory, journal) for each in (shut, others_wait)),
    (spilling, shut),
    *((kind, each) for kind in (journal, spilling) for each in (full_disk, broken_disk)),
    *((kind, hanging_disk) for kind in (journal, spilling)),
    (spilling, spilled),
]


def _name(each: object) -> str:
    return "spilling" if each is spilling else str(getattr(each, "__name__", each))


@pytest.mark.parametrize(("kind", "arrange"), DECLINES, ids=_name)
async def test_post_that_cannot_be_kept_at_once_leaves_nothing_behind(
    tmp_path: Path, kind: Take, arrange: Arrange
) -> None:
    """It says no, reserves nothing and tells nobody; the long way then waits or says why."""
    made, disk, told = Made(kind, tmp_path), HangingDisk(), Told()
    bounds = {"journal_bytes_max": 400} if arrange is full_disk else {}
    buffer = made(10, 5_000, 0.05 if arrange is not others_wait else 5, calls=disk, **bounds)
    await arrange(buffer, disk)
    before = _reserved(buffer)
    for _ in range(2):
        block = make_block(1)
        rows = block.tuples
        assert not buffer.take_in(block)
        assert not (made.has_disk and buffer.take_in(block, 0, told))
        assert (block.rows, block.tuples, block.posts, block.sequence) == (1, rows, 1, 0)
        assert _reserved(buffer) == before
    disk.go.set()
    if arrange is not others_wait:
        await quiet(buffer)
        assert not told.calls
    await made.close()


def _reserved(buffer: Buffer) -> Any:
    if isinstance(buffer, JournalBuffer):
        return buffer.stats(), buffer.unwritten.size_bytes, len(buffer.journal._gathering)
    return buffer.stats()


async def test_post_waits_the_long_way_and_the_next_ones_are_taken_in_again(made: Made) -> None:
    """`take_in` declines as long as somebody waits, and not longer."""
    buffer = made(10, wait_s=5, spills=False)
    await put_rows(buffer, 6)
    (large,) = await queue_up(buffer, 8)
    assert not buffer.take_in(make_block(1))
    buffer.settle(buffer.take(6))
    await spin()
    assert large.done()
    assert buffer.take_in(make_block(1))
    await end([large])


async def test_no_room_for_a_post_that_was_declined_is_said_by_reserve(made: Made) -> None:
    """The receiver asks `reserve` next, which has the reason."""
    buffer = made(10, spills=False)
    assert buffer.take_in(make_block(10))
    assert not buffer.take_in(make_block(1))
    with pytest.raises(BufferFull):
        await buffer.reserve(1, 1)


# The fake, which the tests of the receiver use


async def test_fake_tells_each_waiter_once_in_order_in_a_later_round() -> None:
    """As a journal does, with an error if it is told to."""
    inlet: Inlet
    inlet = fake = FakeInlet()
    told = Told()
    assert inlet.take_in(make_block(1))
    for error in (None, JournalBroken("full")):
        fake.put_error = error
        for waiter in range(3):
            assert inlet.take_in(make_block(1), waiter, told)
        assert len(told.calls) < 4
        await spin()
    assert told.waiters == [0, 1, 2] * 2
    assert [error is None for error in told.errors] == [True] * 3 + [False] * 3
    assert len(fake.blocks) == 4
    assert fake.durable == [False, True, True, True]


@pytest.mark.parametrize("why", ["waits", "full"])
async def test_fake_that_declines_leaves_nothing_behind(why: str) -> None:
    """Its tests then go the long way."""
    fake, told = FakeInlet(), Told()
    if why == "waits":
        fake.open.clear()
    else:
        fake.error = BufferFull(1.0)
    assert not fake.take_in(make_block(1))
    assert not fake.take_in(make_block(1), 0, told)
    await spin()
    assert not told.calls
    assert not fake.blocks
    assert not fake.reserved


def _folder(buffer: JournalBuffer) -> Path:
    return buffer.journal._folder.folder
