"""The memory of a buffer: how much of it is in use, and reservations of it.

Promises: reservations never exceed `rows_max` rows and `bytes_max` bytes, blocks in memory
included. A block that is larger than its reservation raises an AssertionError.
Does not: let posts wait. It calls the buffer when room came free.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator

from ingest.model.block import Block


class BoundedMemory:
    """Room for blocks. It gives them to `append`, and calls `freed` when room came free."""

    def __init__(
        self,
        append: Callable[[Block], None],
        rows_max: int,
        bytes_max: int,
        freed: Callable[[], None],
    ) -> None:
        self.rows_max = rows_max
        self.bytes_max = bytes_max
        self.rows = 0  # of blocks that are not settled, and of reservations
        self.size_bytes = 0  # of the same
        self._append = append
        self._freed = freed

    @property
    def used(self) -> float:
        """The share of the bounds that is in use."""
        return max(self.rows / self.rows_max, self.size_bytes / self.bytes_max)

    def fits(self, rows: int, size_bytes: int) -> bool:
        """Whether there is room for a block."""
        return self.rows + rows <= self.rows_max and self.size_bytes + size_bytes <= self.bytes_max

    def add(self, rows: int, size_bytes: int) -> None:
        """Count room as in use, even if there is not enough."""
        self.rows += rows
        self.size_bytes += size_bytes

    def place(self, rows: int, size_bytes: int) -> MemoryReservation | None:
        """Reserve room for a block; None if there is not enough now."""
        # What `fits` and `add` do, without two calls for each post.
        if self.rows + rows > self.rows_max or self.size_bytes + size_bytes > self.bytes_max:
            return None
        self.rows += rows
        self.size_bytes += size_bytes
        return MemoryReservation(self, rows, size_bytes)

    def free(self, rows: int, size_bytes: int) -> None:
        """Count room as free: a reservation is released, or blocks are settled."""
        self.rows -= rows
        self.size_bytes -= size_bytes
        self._freed()

    def accept(self, block: Block, rows: int, size_bytes: int) -> None:
        """Append a block; `rows` and `size_bytes` were reserved for it."""
        self._append(block)
        rows -= block.rows
        size_bytes -= len(block.tuples)
        if rows or size_bytes:  # the post had invalid items, which are not in the block
            self.free(rows, size_bytes)


class MemoryReservation:
    """Room in memory for one block. Put the block, or release the room."""

    __slots__ = ("_memory", "_rows", "_size_bytes")

    def __init__(self, memory: BoundedMemory, rows: int, size_bytes: int) -> None:
        self._memory: BoundedMemory | None = memory
        self._rows = rows
        self._size_bytes = size_bytes

    def put(self, block: Block, *, durable: bool = True) -> Awaitable[None]:
        """Hand the block over. It is in the buffer at once."""
        memory = self._memory
        assert memory is not None, "a reservation is used once"
        assert block.rows <= self._rows, "more rows than reserved"
        assert len(block.tuples) <= self._size_bytes, "more bytes than reserved"
        self._memory = None
        memory.accept(block, self._rows, self._size_bytes)
        return COMPLETED

    def release(self) -> None:
        """Give the room back. Does nothing after `put`, or when called again."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.free(self._rows, self._size_bytes)


class _Completed:
    """An awaitable that is complete already. It costs less than a coroutine that only returns."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


COMPLETED = _Completed()
