"""A block: the readings of one post on their way to the table, as the bytes of their rows."""

from __future__ import annotations

from ingest.model.ack import Ack


class Block:
    """The readings of one post on their way to the table.

    `tuples` holds `rows` encoded rows; `received_s` is the monotonic time of receipt,
    `received_us` the wall time of it (Unix microseconds); `newest_ts_us` the latest `ts` in it.
    `items[i]` is the index in the post of row i, or None where they are the same.
    `ack` is told what became of the block, or None if nobody waits.
    `doubtful` is set once a write of it ended without a verdict: from then on only the
    idempotent path may write it; `isolate` once it is known to hold a row that the database refuses
    and cannot be cut any smaller. `attempts` counts failed writes; `replayed` marks dead letters.
    `sequence` is the block's number in the journal, 0 if it is in none; `reloaded` marks one that
    was read from there.
    """

    __slots__ = (
        "ack",
        "attempts",
        "doubtful",
        "isolate",
        "items",
        "newest_ts_us",
        "received_s",
        "received_us",
        "reloaded",
        "replayed",
        "rows",
        "sequence",
        "tuples",
    )

    def __init__(
        self,
        tuples: bytes,
        rows: int,
        *,
        received_s: float,
        received_us: int,
        newest_ts_us: int,
        items: list[int] | None = None,
        ack: Ack | None = None,
        replayed: bool = False,
    ) -> None:
        self.tuples = tuples
        self.rows = rows
        self.received_s = received_s
        self.received_us = received_us
        self.newest_ts_us = newest_ts_us
        self.items = items
        self.ack = ack
        self.doubtful = False
        self.isolate = False
        self.attempts = 0
        self.replayed = replayed
        self.sequence = 0
        self.reloaded = False
