"""A block: the readings of a post on their way to the table, as the bytes of their rows; its room.

Small posts that come at the same time may share a block. Then they are one frame of the journal and
one element of a queue. A block may grow until a writer or the journal takes it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import accumulate

from ingest.model.ack import Ack

# A block does not grow beyond this. More rows in a block save hardly more, and make it harder to
# find a bad one.
SHARED_ROWS_MAX = 300
SHARED_BYTES_MAX = 32 * 1024


# One post of a shared block: its number of rows, received_us, items and sender, as in Block. The
# rows of the posts are in the same order. A plain tuple is the fastest; nearly every post has one.
Part = tuple[int, int, "Sequence[int | None] | None", str]


@dataclass(eq=False, repr=False)
class Block:
    """The readings of one post, or of some small ones, on their way to the table."""

    # No slots: so the fields with `init=False` cost nothing until somebody sets them. To make a
    # block takes 0.5 us, and 1 with slots.

    tuples: bytes  # the encoded rows; of a block that has grown: complete once it is sealed
    rows: int
    _: KW_ONLY
    received_s: float  # monotonic time of receipt, of the first post
    received_us: int  # wall time of receipt (Unix microseconds), of the first post
    newest_ts_us: int  # the latest `ts` of all rows
    # items[i]: index in the post of row i, None if unknown; without `items` it is i itself.
    items: Sequence[int | None] | None = None
    ack: Ack | None = None  # resolved with the outcome; None if no post waits for it
    replayed: bool = False  # a dead letter that is replayed
    sender: str = ""  # the token or network of the (first) post's client; "" if unknown
    # Set once a write may have stored it: from then on only the idempotent path may write it.
    doubtful: bool = field(default=False, init=False)
    # Set when the database refuses a row of its batch: the next write looks for that row.
    isolate: bool = field(default=False, init=False)
    attempts: int = field(default=0, init=False)  # failed writes
    sequence: int = field(default=0, init=False)  # its number in the journal, 0 if it is in none
    reloaded: bool = field(default=False, init=False)  # read back from the journal
    posts: int = field(default=1, init=False)
    parts: list[Part] | None = field(default=None, init=False)  # if several, and not read back
    sealed: bool = field(default=False, init=False)  # it does not grow any more
    _pieces: list[bytes] | None = field(default=None, init=False)  # the rows of each post

    def add(self, other: Block) -> None:
        """Add the rows of another post. `other` must not be used any more."""
        parts, pieces = self.parts, self._pieces
        if parts is None or pieces is None:
            parts = self.parts = [(self.rows, self.received_us, self.items, self.sender)]
            pieces = self._pieces = [self.tuples]
        parts.append((other.rows, other.received_us, other.items, other.sender))
        pieces.append(other.tuples)
        self.rows += other.rows
        self.posts += 1
        self.newest_ts_us = max(self.newest_ts_us, other.newest_ts_us)

    def seal(self) -> None:
        """Let it grow no more; its `tuples` are complete then. It may be called again."""
        self.sealed = True
        if self._pieces is not None:
            self.tuples = b"".join(self._pieces)
            self._pieces = None

    def origins(self, rows: Sequence[int]) -> list[tuple[int, int | None]]:
        """Return for each row: when its post was received, and the index of its item in that post.

        The index is None if it is unknown, as for a shared block that was read back.
        """
        if self.parts is None:
            if self.posts > 1:
                return [(self.received_us, None)] * len(rows)
            items = self.items
            return [(self.received_us, items[row] if items else row) for row in rows]
        ends = list(accumulate(part[0] for part in self.parts))
        found: list[tuple[int, int | None]] = []
        for row in rows:
            index = bisect_right(ends, row)
            rows_of_part, received_us, items, _ = self.parts[index]
            row_of_part = row - ends[index] + rows_of_part
            found.append((received_us, items[row_of_part] if items else row_of_part))
        return found


class Reservation:
    """Room in a buffer for one block. Put the block, or release the room.

    `put(block, rows, size_bytes, durable)` is the buffer's part of `put`; it gives back what the
    block does not need of the room. `free(rows, size_bytes)` gives back the room.
    """

    __slots__ = ("_free", "_put", "_rows", "_size_bytes")

    def __init__(
        self,
        rows: int,
        size_bytes: int,
        put: Callable[[Block, int, int, bool], Awaitable[None]],
        free: Callable[[int, int], None],
    ) -> None:
        self._rows = rows
        self._size_bytes = size_bytes
        self._put = put
        self._free: Callable[[int, int], None] | None = free

    def put(self, block: Block, *, durable: bool = True) -> Awaitable[None]:
        """Put the block; await the result. The block must not be larger than the reservation.

        A buffer in memory has the block when this returns, and cannot fail. A journal has the block
        on disk once the result has been awaited, a stream has it on the broker's. If the block
        cannot be written, the await raises NotKept, and nothing of the block is kept; or the broker
        did not say what became of it (BrokerOutcomeUnknown). If `durable` is false, the block is in
        memory at once and is written a little later. A cancellation does not interrupt the write:
        it is raised at the caller's next await.
        """
        assert self._free is not None, "a reservation is used once"
        assert block.rows <= self._rows, "more rows than reserved"
        assert len(block.tuples) <= self._size_bytes, "more bytes than reserved"
        self._free = None
        return self._put(block, self._rows, self._size_bytes, durable)

    def release(self) -> None:
        """Give the room back. After `put`, or a second time, this does nothing."""
        free, self._free = self._free, None
        if free is not None:
            free(self._rows, self._size_bytes)
