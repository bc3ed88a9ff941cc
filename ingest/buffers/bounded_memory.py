"""The memory of a buffer: how much of it is in use, by blocks and by reservations.

Promises: what `take` gives never exceeds `rows_max` rows and `bytes_max` bytes.
Does not: hold the blocks, or let posts wait. It calls the buffer when room came free.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from ingest.model.block import Block


class BoundedMemory:
    """Room for blocks. It calls `freed` when room came free."""

    def __init__(self, rows_max: int, bytes_max: int, freed: Callable[[], None]) -> None:
        self.rows_max = rows_max
        self.bytes_max = bytes_max
        self.rows = 0  # of blocks that are not settled, and of reservations
        self.size_bytes = 0  # of the same
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

    def take(self, rows: int, size_bytes: int) -> bool:
        """Count room as in use if there is enough; return whether there was."""
        # What `fits` and `add` do, without two calls for each post.
        if self.rows + rows > self.rows_max or self.size_bytes + size_bytes > self.bytes_max:
            return False
        self.rows += rows
        self.size_bytes += size_bytes
        return True

    def free(self, rows: int, size_bytes: int) -> None:
        """Count room as free: a reservation is released, or blocks are settled."""
        self.rows -= rows
        self.size_bytes -= size_bytes
        self._freed()

    def trim(self, block: Block, rows: int, size_bytes: int) -> None:
        """Free what a block does not need of the room that was reserved for it."""
        rows -= block.rows
        size_bytes -= len(block.tuples)
        if rows or size_bytes:
            self.free(rows, size_bytes)


class _Completed:
    """An awaitable that is complete already. It costs less than a coroutine that only returns."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


COMPLETED = _Completed()
