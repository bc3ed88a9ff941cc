"""A block: the readings of one post on their way to the table, as the bytes of their rows."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

from ingest.model.ack import Ack


@dataclass(slots=True, eq=False, repr=False)
class Block:
    """The readings of one post on their way to the table."""

    tuples: bytes  # the encoded rows
    rows: int
    _: KW_ONLY
    received_s: float  # monotonic time of receipt
    received_us: int  # wall time of receipt (Unix microseconds)
    newest_ts_us: int  # the latest `ts` of all rows
    items: list[int] | None = None  # items[i]: index in the post of row i; None: it is i itself
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
