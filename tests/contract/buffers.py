"""The buffers under test, and helpers of their tests. A new buffer adds its factory here."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ingest.buffers.journal.buffer import JournalBuffer
from ingest.buffers.journal.log import Journal
from ingest.buffers.memory import MemoryBuffer
from ingest.model.block import Block
from ingest.model.ledger import Ledger
from ingest.model.ports import Buffer, Inlet, Outlet, Reservation
from tests.support.blocks import make_block

MakeBuffer = Callable[[int, int, float], Buffer]  # rows_max, bytes_max, put_wait_s_max


def memory(_: Path, rows_max: int, bytes_max: int, put_wait_s_max: float) -> Buffer:
    """Make the buffer that holds readings in memory."""
    return MemoryBuffer(rows_max=rows_max, bytes_max=bytes_max, put_wait_s_max=put_wait_s_max)


def journal(folder: Path, rows_max: int, bytes_max: int, put_wait_s_max: float) -> Buffer:
    """Make the buffer on a journal, open; without spilling its bounds are those of memory."""
    buffer = JournalBuffer(
        Journal(
            Path(tempfile.mkdtemp(dir=folder)), segment_bytes=1024, observe_sync_s=lambda _: None
        ),
        Ledger(),
        rows_max=rows_max,
        bytes_max=bytes_max,
        put_wait_s_max=put_wait_s_max,
        journal_bytes_max=1 << 40,
        spills=False,
    )
    buffer.open()
    return buffer


# Makes a buffer: a folder of the test's, rows_max, bytes_max, put_wait_s_max.
FACTORIES: list[Callable[[Path, int, int, float], Buffer]] = [memory, journal]
PLENTY = 1 << 20


async def put(buffer: Inlet, block: Block) -> Block:
    """Reserve room for a block and hand it over."""
    await (await buffer.reserve(block.rows, len(block.tuples))).put(block)
    return block


async def put_rows(buffer: Inlet, *rows: int) -> list[Block]:
    """Put one block for each number of rows."""
    return [await put(buffer, make_block(each)) for each in rows]


async def spin() -> None:
    """Let everything run that can run now."""
    for _ in range(5):
        await asyncio.sleep(0)


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
