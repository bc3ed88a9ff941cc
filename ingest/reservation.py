"""Room in memory that is promised to one post.

Promises: it is used once. A block that is larger than its reservation fails loudly: otherwise the
bounds of the buffer would not hold.
Does not: count anything. The buffer does. What a reservation asks of it stands in
`ReservingBuffer`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Protocol

from ingest.block import Block


class ReservingBuffer(Protocol):
    """What a reservation asks of its buffer."""

    def accept(self, block: Block, rows: int, size_bytes: int) -> None:
        """Let the writers have a block; `rows` and `size_bytes` were reserved for it."""

    def unreserve(self, rows: int, size_bytes: int) -> None:
        """Room that was reserved is free again."""


class MemoryReservation:
    """Room in memory for one block: put the block, or release the room."""

    __slots__ = ("_buffer", "_rows", "_size_bytes")

    def __init__(self, buffer: ReservingBuffer, rows: int, size_bytes: int) -> None:
        self._buffer: ReservingBuffer | None = buffer
        self._rows = rows
        self._size_bytes = size_bytes

    def put(self, block: Block, *, durable: bool = True) -> Awaitable[None]:
        """Hand the block over, at once: there is nothing to wait for."""
        buffer = self._buffer
        assert buffer is not None, "a reservation is used once"
        assert block.rows <= self._rows, "more rows than reserved"
        assert len(block.tuples) <= self._size_bytes, "more bytes than reserved"
        self._buffer = None
        buffer.accept(block, self._rows, self._size_bytes)
        return DONE

    def release(self) -> None:
        """Give the room back; does nothing after put or a second time."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.unreserve(self._rows, self._size_bytes)


class _Done:
    """An awaitable that is done already. A coroutine that returns at once would cost more."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


DONE = _Done()
