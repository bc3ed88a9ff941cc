"""A block: the readings of a post on their way to the table, as the bytes of their rows.

Small posts that come at the same time may share a block: one frame of the journal, one element of
a queue. A block grows only at the end of a queue, until it is taken from there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import accumulate

from ingest.model.ack import Ack

# A block that has more gets no further post. More rows in a block save nothing more, and a bad row
# among them costs more.
SHARED_ROWS_MAX = 300
SHARED_BYTES_MAX = 32 * 1024


# What one post of a block is known by: its rows (behind those of the part before it), received_us,
# items and sender, as in Block. A plain tuple, since there is one for nearly every post.
Part = tuple[int, int, "Sequence[int | None] | None", str]


@dataclass(eq=False, repr=False)
class Block:
    """The readings of one post, or of some small ones, on their way to the table."""

    # No slots: fields with a default that nobody changes are the class's, which makes a block in
    # 0.5 us instead of 1.

    tuples: bytes  # the encoded rows; of a block that grows: only once it is sealed
    rows: int
    _: KW_ONLY
    received_s: float  # monotonic time of receipt, of the first post
    received_us: int  # wall time of receipt (Unix microseconds), of the first post
    newest_ts_us: int  # the latest `ts` of all rows
    # items[i]: index in the post of row i, None if unknown; without `items` it is i itself.
    items: Sequence[int | None] | None = None
    ack: Ack | None = None  # resolved with the outcome; None if no post waits for it
    replayed: bool = False  # a dead letter that is replayed
    sender: str = ""  # where its post came from: an address, or the network of one; "" if unknown
    # Set once a write ended without a verdict: from then on only the idempotent path may write it.
    doubtful: bool = field(default=False, init=False)
    # Set once the block has a row that the database refuses, and cannot be cut any smaller.
    isolate: bool = field(default=False, init=False)
    attempts: int = field(default=0, init=False)  # failed writes
    sequence: int = field(default=0, init=False)  # its number in the journal, 0 if it is in none
    reloaded: bool = field(default=False, init=False)  # read from the journal after a start
    posts: int = field(default=1, init=False)
    parts: list[Part] | None = field(default=None, init=False)  # of several posts, if still known
    sealed: bool = field(default=False, init=False)  # it does not grow any more
    _pieces: list[bytes] | None = field(default=None, init=False)  # the rows of each post

    def add(self, other: Block) -> None:
        """Add the rows of another post, which needs no block of its own then."""
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
        """Return for each of these rows when its post was received, and its item in that post.

        The item is None if it is not known any more: the block was read back from the journal.
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
