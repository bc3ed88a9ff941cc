"""A block: the readings of a post on their way to the table, as the bytes of their rows.

Small posts that come at the same time may share a block. Then they are one frame of the journal and
one element of a queue. A block may grow until a writer or the journal takes it. With it come the
room in a buffer that waits for it, its acknowledgement, and its outcome, which others decide.

Rows are bytes for PostgreSQL's binary COPY. Each reading is encoded once. After the receiver only
these bytes are passed on: a buffer stores them, and a write puts them between HEADER and TRAILER.
No other file knows their layout. One row, big-endian, 34 bytes and the two names:

    int16 4 | int32 8, int64 microseconds since 2000-01-01 | int32 n, device_id | int32 n, metric
            | int32 8, float64
"""

from __future__ import annotations

import asyncio
import struct
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from itertools import accumulate
from operator import add
from typing import Any, NamedTuple

from ingest.model.reading import NAME_BYTES_MAX, Reading

# A block does not grow beyond this. More rows in a block save hardly more, and make it harder to
# find a bad one.
SHARED_ROWS_MAX = 300
SHARED_BYTES_MAX = 32 * 1024

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, no flags, no extension
TRAILER = b"\xff\xff"
PG_EPOCH_US = 946_684_800_000_000  # PostgreSQL counts from 2000-01-01, Unix from 1970-01-01
ROW_BYTES_MIN = 34  # of a row, without its names
DEVICE_COLUMN = 14  # where the size of device_id begins in a row

_HEAD = struct.Struct(">hiqi")
_SIZE = struct.Struct(">i")
_SIZES = [_SIZE.pack(size) for size in range(NAME_BYTES_MAX + 1)]
_VALUE = struct.Struct(">id")
_ROW_HEAD = b"\x00\x04\x00\x00\x00\x08"  # four columns, the first of them 8 bytes long
_VALUE_HEAD = b"\x00\x00\x00\x08"  # the size of a value
RUN_ROWS_MAX = 64  # packed in one call

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


class Refusal(NamedTuple):
    """One row that the database refuses, with the SQLSTATE: by its index in the batch or the block.

    `constraint` is the name of the violated constraint, if the server gave one. `no_partition`: the
    table has no partition for the row; with `too_old` it gets none later, either. `ended`: the last
    partition is before its time.
    """

    row: int
    sqlstate: str
    message: str
    constraint: str | None = None
    no_partition: bool = False
    too_old: bool = False
    ended: bool = False

    @property
    def votes(self) -> bool:
        """Whether it counts for the circuit breaker.

        A time for which nobody made a partition does not, unless all newer ones have none either.
        """
        return self.ended or not self.no_partition

    @property
    def comes_back(self) -> bool:
        """Whether it can be stored once a partition has been made."""
        return self.no_partition and not self.too_old


class Outcome(NamedTuple):
    """The outcome of a block: the refused rows, or the whole block set aside for later."""

    refusals: tuple[Refusal, ...] = ()
    set_aside: bool = False

    @property
    def coming_back(self) -> frozenset[int]:
        """The refused rows that are sent again by themselves."""
        return frozenset(each.row for each in self.refusals if each.comes_back)


class Ack:
    """It belongs to a block and is resolved once: after commit, or after the dead-letter fsync."""

    __slots__ = ("_calls", "_outcome")

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._calls: list[Callable[[], None]] = []

    def resolve(self, outcome: Outcome) -> None:
        """Set the outcome and call all callbacks. A second call is a fault of ours and fails."""
        assert self._outcome is None, "an ack is resolved once"
        self._outcome = outcome
        for call in self._calls:
            call()

    @property
    def outcome(self) -> Outcome | None:
        """The outcome of the block, None while it is not known."""
        return self._outcome

    @property
    def resolved(self) -> bool:
        """Whether the outcome is known."""
        return self._outcome is not None

    def when_resolved(self, call: Callable[[], None]) -> None:
        """Add a callback for `resolve`. It must be short. Not allowed once the outcome is known."""
        assert self._outcome is None, "it is known already"
        self._calls.append(call)

    async def wait(self) -> Outcome:
        """Wait for the outcome. Cancelling the wait changes nothing for the block."""
        if self._outcome is None:
            known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_resolved(lambda: None if known.done() else known.set_result(None))
            await known
        assert self._outcome is not None, "the wait ends when the outcome is known"
        return self._outcome


class Reservation:
    """Room in a buffer for one block. Put the block, or release the room.

    `put(block, durable)` is the buffer's part of `put`. `free(rows, size_bytes)` gives back the
    room.
    """

    __slots__ = ("_free", "_put", "_rows", "_size_bytes")

    def __init__(
        self,
        rows: int,
        size_bytes: int,
        put: Callable[[Block, bool], Awaitable[None]],
        free: Callable[[int, int], None],
    ) -> None:
        self._rows = rows
        self._size_bytes = size_bytes
        self._put = put
        self._free: Callable[[int, int], None] | None = free

    def put(self, block: Block, *, durable: bool = True) -> Awaitable[None]:
        """Put the block; await the result. The block has the size that was reserved.

        A buffer in memory has the block when this returns, and cannot fail. A journal has the block
        on disk once the result has been awaited, a stream has it on the broker's. If the block
        cannot be written, the await raises NotKept, and nothing of the block is kept; or the broker
        did not say what became of it (BrokerOutcomeUnknown). If `durable` is false, the block is in
        memory at once and is written a little later. A cancellation does not interrupt the write:
        it is raised at the caller's next await.
        """
        assert self._free is not None, "a reservation is used once"
        assert block.rows == self._rows, "not as many rows as reserved"
        assert len(block.tuples) == self._size_bytes, "not as many bytes as reserved"
        self._free = None
        return self._put(block, durable)

    def release(self) -> None:
        """Give the room back. After `put`, or a second time, this does nothing."""
        free, self._free = self._free, None
        if free is not None:
            free(self._rows, self._size_bytes)


def names_between(device_id: str, metric: str) -> bytes:
    """Return the bytes between ts and value in the rows of a series, sizes included."""
    return device_needle(device_id) + metric_after(metric)


def metric_after(metric: str) -> bytes:
    """Return what `names_between` has after the device."""
    name = metric.encode()
    return _SIZE.pack(len(name)) + name + _VALUE_HEAD


def device_needles(device_ids: list[str]) -> list[bytes]:
    """Return what `names_between` begins with, for each of these valid devices."""
    names = [*map(str.encode, device_ids)]
    return [*map(add, map(_SIZES.__getitem__, map(len, names)), names)]


def device_needle(device_id: str) -> bytes:
    """Return the bytes that each row of a device has at offset DEVICE_COLUMN."""
    name = device_id.encode()
    return _SIZE.pack(len(name)) + name


def encode_row(ts_us: int, names: bytes, value: float) -> bytes:
    """Encode one row as binary COPY; `names` is what `names_between` returns."""
    return _packer(len(names))(_ROW_HEAD, ts_us - PG_EPOCH_US, names, value)


def encode_reading(reading: Reading) -> bytes:
    """Encode one reading as one row of binary COPY."""
    names = names_between(reading.device_id, reading.metric)
    return encode_row(reading.ts_us, names, reading.value)


def encode_rows(
    times_pg_us: Sequence[int], names: Sequence[bytes], values: Sequence[float]
) -> bytes:
    """Encode rows as binary COPY, column by column; element i of each column is of row i.

    `times_pg_us` are Unix microseconds less PG_EPOCH_US, `names` are results of `names_between`. If
    all names have the same length, as those of one device or of numbered devices, many rows are
    packed in one call.
    """
    sizes = set(map(len, names))
    if len(sizes) > 1:
        packs = [_packer(len(each)) for each in names]
        columns = zip(packs, times_pg_us, names, values, strict=True)
        return b"".join(
            [pack(_ROW_HEAD, ts, between, value) for pack, ts, between, value in columns]
        )
    (size,) = sizes
    cells: list[Any] = [_ROW_HEAD] * (4 * len(names))  # row after row
    cells[1::4] = times_pg_us
    cells[2::4] = names
    cells[3::4] = values
    packed: list[bytes] = []
    at = 0
    while at < len(cells):
        rows = min(RUN_ROWS_MAX, 1 << (len(cells) - at >> 2).bit_length() - 1)
        packed.append(_packer(size, rows)(*cells[at : at + 4 * rows]))
        at += 4 * rows
    return b"".join(packed)


# struct compiles a format once, and there are few: one for each length of names, and for each power
# of two rows.
@cache
def _packer(names_bytes: int, rows: int = 1) -> Callable[..., bytes]:
    """Return the packer of some rows whose names have this size."""
    # The head is an argument because a struct format cannot contain a constant.
    return struct.Struct(">" + f"6sq{names_bytes}sd" * rows).pack


def row_offsets(tuples: bytes) -> list[int]:
    """Return the offset of each row, and the end of the last one: rows + 1 numbers."""
    offsets = [0]
    end = 0
    size_of = _SIZE.unpack_from
    while end < len(tuples):
        end += 18 + size_of(tuples, end + DEVICE_COLUMN)[0]  # head and device_id
        end += 16 + size_of(tuples, end)[0]  # metric and value
        offsets.append(end)
    return offsets


def rows_fault(tuples: bytes, rows: int) -> str:
    """Return why `tuples` are not `rows` rows of this layout, or an empty string.

    Some 20 ns a row if all rows have names of the same sizes, else some 300 ns.
    """
    if rows <= 0:
        return f"it says that it has {rows} rows"
    if not _all_alike(tuples, rows) and _count_rows(tuples) != rows:
        return f"its bytes are not {rows} rows"
    return ""


def _all_alike(tuples: bytes, rows: int) -> bool:
    """Whether these are rows whose names have the same sizes in all of them."""
    size, rest = divmod(len(tuples), rows)
    if rest or size < ROW_BYTES_MIN:
        return False
    (device,) = _SIZE.unpack_from(tuples, DEVICE_COLUMN)
    metric_column = DEVICE_COLUMN + 4 + device
    metric = size - ROW_BYTES_MIN - device
    if not (0 < device <= NAME_BYTES_MAX and 0 < metric <= NAME_BYTES_MAX):
        return False
    fixed = (
        (0, _ROW_HEAD),
        (DEVICE_COLUMN, _SIZE.pack(device)),
        (metric_column, _SIZE.pack(metric)),
        (size - _VALUE.size, _SIZE.pack(8)),
    )
    # Column by column: byte `at` of each row is this one.
    return all(
        tuples[start + at :: size].count(byte) == rows
        for start, expected in fixed
        for at, byte in enumerate(expected)
    )


def _count_rows(tuples: bytes) -> int:
    """Return how many rows these are, or -1 if they are none."""
    at = rows = 0
    end = len(tuples)
    size_of = _SIZE.unpack_from
    try:
        while at < end:
            if tuples[at : at + 6] != _ROW_HEAD:
                return -1
            at += DEVICE_COLUMN
            for _ in range(2):  # device_id, metric
                (size,) = size_of(tuples, at)
                if not 0 < size <= NAME_BYTES_MAX:
                    return -1
                at += 4 + size
            if tuples[at : at + 4] != _VALUE_HEAD:
                return -1
            at += _VALUE.size
            rows += 1
    except struct.error:
        return -1
    return rows if at == end else -1


def decode_rows(tuples: bytes) -> Iterator[Reading]:
    """Yield the readings of encoded rows, in order. Slow, not for the hot path: some 2 us each."""
    at = 0
    while at < len(tuples):
        _, _, ts_pg_us, size = _HEAD.unpack_from(tuples, at)
        at += _HEAD.size
        device_id = tuples[at : at + size].decode()
        at += size
        (size,) = _SIZE.unpack_from(tuples, at)
        at += 4
        metric = tuples[at : at + size].decode()
        at += size
        _, value = _VALUE.unpack_from(tuples, at)
        at += _VALUE.size
        yield Reading(ts_pg_us + PG_EPOCH_US, device_id, metric, value)
