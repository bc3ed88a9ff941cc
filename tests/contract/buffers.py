"""The buffers under test, and helpers of their tests. A new buffer adds its factory here."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ingest.buffers.journal.buffer import JournalBuffer
from ingest.buffers.journal.log import Journal
from ingest.buffers.journal.segments import WITH_TABLES
from ingest.buffers.memory import MemoryBuffer
from ingest.model.block import SHARED_ROWS_MAX, Block, Reservation
from ingest.model.ledger import Ledger
from ingest.model.ports import Buffer, Inlet, Outlet
from ingest.system.files import REAL_CALLS
from tests.support.journals import FailingCalls, make_block
from tests.support.streams import Joined

MakeBuffer = Callable[[int, int, float], Buffer]  # rows_max, bytes_max, put_wait_s_max


def memory(
    _: Path,
    rows_max: int,
    bytes_max: int,
    put_wait_s_max: float,
    *,
    shared_rows_max: int = SHARED_ROWS_MAX,
) -> MemoryBuffer:
    """Make the buffer that holds readings in memory."""
    return MemoryBuffer(
        rows_max=rows_max,
        bytes_max=bytes_max,
        put_wait_s_max=put_wait_s_max,
        shared_rows_max=shared_rows_max,
    )


def journal(
    folder: Path,
    rows_max: int,
    bytes_max: int,
    put_wait_s_max: float,
    *,
    shared_rows_max: int = SHARED_ROWS_MAX,
    journal_bytes_max: int = 1 << 40,
    calls: FailingCalls | None = None,
    spills: bool = False,
) -> JournalBuffer:
    """Make the buffer on a journal, open; without spilling its bounds are those of memory."""
    buffer = JournalBuffer(
        Journal(
            Path(tempfile.mkdtemp(dir=folder)),
            segment_bytes=1024,
            version=WITH_TABLES,
            observe_sync_s=lambda _: None,
            calls=calls.calls if calls is not None else REAL_CALLS,
        ),
        Ledger(),
        rows_max=rows_max,
        bytes_max=bytes_max,
        put_wait_s_max=put_wait_s_max,
        journal_bytes_max=journal_bytes_max,
        shared_rows_max=shared_rows_max,
        spills=spills,
    )
    buffer.open()
    return buffer


spilling = partial(journal, spills=True)


def joined(
    _: Path,
    rows_max: int,
    bytes_max: int,
    put_wait_s_max: float,
    *,
    shared_rows_max: int = SHARED_ROWS_MAX,
) -> Joined:
    """Make both halves of the buffer on a stream; what is published has left the first one."""
    return Joined(
        rows_max=rows_max,
        bytes_max=bytes_max,
        put_wait_s_max=put_wait_s_max,
        shared_rows_max=shared_rows_max,
        wait_s_max=1_000,  # some blocks are old
    )


# Makes a buffer: a folder of the test's, rows_max, bytes_max, put_wait_s_max.
FACTORIES: list[Callable[..., Buffer]] = [memory, journal]
# A stream keeps a message, and room in the gateway is free at once: these cannot hold for it, and
# have a counterpart in tests/unit/roles/test_inlet.py.
NOT_OF_A_STREAM = {
    "test_room_comes_free_only_when_settled",
    "test_waiter_cancelled_in_the_round_of_its_grant_leaks_nothing",
    "test_refused_posts_are_told_to_come_back_later_as_the_outage_lasts",
    "test_rest_is_kept_or_goes_on_waiting",
}
PLENTY = 1 << 20


async def put(buffer: Inlet, block: Block) -> Block:
    """Reserve room for a block and hand it over."""
    await (await buffer.reserve(block.rows, len(block.tuples))).put(block)
    return block


async def put_rows(buffer: Inlet, *rows: int) -> list[Block]:
    """Put one block for each number of rows."""
    return [await put(buffer, make_block(each)) for each in rows]


def contents(blocks: Sequence[Block]) -> list[tuple[int, bytes]]:
    """Return what is in blocks. A block that went through a stream is another object."""
    return [(block.rows, block.tuples) for block in blocks]


async def spin() -> None:
    """Let everything run that can run now."""
    for _ in range(5):
        await asyncio.sleep(0)


async def quiet(buffer: Inlet) -> None:
    """Wait until a journal has nothing to do; else let everything run that can run now."""
    await spin()
    if isinstance(buffer, JournalBuffer):
        async with asyncio.timeout(5):
            await buffer.journal.wait_done()
    await spin()


async def queue_up(buffer: Inlet, *rows: int) -> list[asyncio.Task[Reservation]]:
    """Let posts wait for room, one after the other. Each byte is a row."""
    posts = []
    for each in rows:
        posts.append(asyncio.create_task(buffer.reserve(each, each)))
        await spin()
    return posts


async def end(posts: Sequence[asyncio.Task[Reservation]]) -> None:
    """Cancel the posts that still wait, and release the others."""
    for post in posts:
        post.cancel()
    for result in await asyncio.gather(*posts, return_exceptions=True):
        if not isinstance(result, BaseException):
            result.release()


def empty(buffer: Outlet) -> bool:
    """Whether no room is in use."""
    stats = buffer.stats()
    return (stats.rows, stats.size_bytes, stats.rows_waiting, stats.posts_waiting) == (0, 0, 0, 0)
