"""A block to which small posts are added, until a writer or the journal takes it."""

from __future__ import annotations

from ingest.model.block import SHARED_BYTES_MAX, Block


class SharedBlock:
    """A block that may grow, and its size in bytes."""

    __slots__ = ("block", "bytes_max", "rows_max", "size_bytes")

    def __init__(self, block: Block, rows_max: int, bytes_max: int = SHARED_BYTES_MAX) -> None:
        self.block = block
        self.rows_max = rows_max
        self.bytes_max = bytes_max
        self.size_bytes = len(block.tuples)

    def takes(self, block: Block) -> bool:
        """Add a post's block to this one. Returns False if it is sealed, or would be too large."""
        size_bytes = self.size_bytes + len(block.tuples)
        own = self.block
        if own.sealed or own.rows + block.rows > self.rows_max or size_bytes > self.bytes_max:
            return False
        own.add(block)
        self.size_bytes = size_bytes
        return True
