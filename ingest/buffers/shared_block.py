"""A block to which small posts are added, until a writer or the journal takes it."""

from __future__ import annotations

from ingest.model.block import SHARED_BYTES_MAX, Block
from ingest.model.errors import NotKept
from ingest.model.ports import Told


class SharedBlock:
    """A block that may grow, its size in bytes, and who waits until it is kept.

    `told` gets the waiters of all its posts. With it the block is queued for the writers once it is
    kept, and before they are told. None: nobody waits; the block was queued at once. `spilled`: it
    has no room in memory, and will only be in the journal.
    """

    __slots__ = ("block", "bytes_max", "rows_max", "size_bytes", "spilled", "told", "waiters")

    def __init__(
        self,
        block: Block,
        rows_max: int = 0,
        bytes_max: int = SHARED_BYTES_MAX,
        *,
        told: Told | None = None,
        spilled: bool = False,
    ) -> None:
        self.block = block
        self.rows_max = rows_max
        self.bytes_max = bytes_max
        self.size_bytes = len(block.tuples)
        self.told = told
        self.spilled = spilled
        self.waiters: list[object] = []  # in the order of their posts

    def takes(self, block: Block) -> bool:
        """Add a post's block to this one. Returns False if it is sealed, or would be too large."""
        size_bytes = self.size_bytes + len(block.tuples)
        own = self.block
        if own.sealed or own.rows + block.rows > self.rows_max or size_bytes > self.bytes_max:
            return False
        own.add(block)
        self.size_bytes = size_bytes
        return True

    def tell(self, error: NotKept | None) -> None:
        """Tell the waiters that the block is kept, or why it is not."""
        # A list that is not kept: nobody's request may stay in memory because of a block.
        waiters, self.waiters = self.waiters, []
        if self.told is not None:
            self.told(waiters, error)
