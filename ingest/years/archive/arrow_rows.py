"""Rows as columns of Arrow: from and to PostgreSQL's binary COPY, and their checksum.

From the server each row has five columns: a marker, ts, value, device_id, metric. The marker is
random and begins with bytes that no UTF-8 text has, so Arrow finds the begin of each row by it.
There is no loop over rows.

The checksum is a sum over the rows, so their order does not matter; table_rows.py has the same in
SQL. The hash of a row, by PostgreSQL's own functions: of device_id, then metric, then ts, then
value; the result of each step is the seed of the next one. Each bit of a row counts. PostgreSQL's
hash of a float takes all NaN as one, and both zeros as one: their bits are hashed as an integer.
The functions are Bob Jenkins' lookup3, with words of 32 bits, little-endian.
Promises: each bit of a float and each microsecond is kept. What is not such rows is an error.
Does not: agree with a server on a big-endian machine, which hashes names in another way.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingest.model.block import HEADER, PG_EPOCH_US, TRAILER
from ingest.model.errors import StartError

MARKER_BYTES = 8
SCHEMA = pa.schema(
    [
        pa.field("ts", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("device_id", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("metric", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
_FIVE_COLUMNS = b"\x00\x05" + struct.pack(">i", MARKER_BYTES)  # before a marker
_EIGHT = struct.pack(">i", 8)  # before ts and before value
_FOUR_COLUMNS = b"\x00\x04" + _EIGHT
_NAME_BYTES_MAX = 65_535
_ENCODED_ROWS = 65_536
# Where the parts of a row begin, after its marker.
_TS, _VALUE, _NAMES = 4, 16, 24

SEED = 1  # not 0: PostgreSQL does not mix a seed of 0
_MASK = 0xFFFF_FFFF
_START = 0x9E37_79B9 + 3_923_095  # and the number of bytes
_U32 = pa.uint32()

# The rounds of lookup3: which of (a, b, c) changes, by which other one, and by how many bits.
_MIX = ((0, 2, 4, 1), (1, 0, 6, 2), (2, 1, 8, 0), (0, 2, 16, 1), (1, 0, 19, 2), (2, 1, 4, 0))
_FINAL = ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24))


class DamagedRows(StartError):
    """The bytes are not the rows that they should be."""


class CopiedRows(NamedTuple):
    """Some rows, in any order. `names` has both names of a row as the server sent them."""

    ts: pa.Int64Array  # Unix microseconds
    value: pa.DoubleArray
    names: pa.DictionaryArray


class Decoder:
    """Takes the bytes of one COPY in pieces of any size. `marker` is what the server has to send.

    All calls block, some 100 ns a row.
    """

    def __init__(self) -> None:
        self.marker = b"\xff\xfe\xfd" + secrets.token_bytes(MARKER_BYTES - 3)
        self._rest = b""
        self._is_first = True

    def rows_of(self, data: bytes) -> CopiedRows | None:
        """Return the rows that are complete; None if there are none. Keeps the rest."""
        data = self._rest + data
        cut = data.rfind(_FIVE_COLUMNS + self.marker)
        if cut < 0:
            self._rest = data
            return None
        self._rest = data[cut:]
        return self._decode(data[:cut])

    def end(self) -> CopiedRows | None:
        """Return the last row, or None. Raises DamagedRows if the COPY was cut off."""
        rest, self._rest = self._rest, b""
        if not rest.endswith(TRAILER):
            raise DamagedRows("the server's answer to COPY has no end")
        return self._decode(rest.removesuffix(TRAILER))

    def _decode(self, data: bytes) -> CopiedRows | None:
        # With the begin of a next row at the end, all rows have the same bytes after them.
        whole = pa.array([data + _FIVE_COLUMNS], pa.large_binary())
        parts = pc.split_pattern(whole, pattern=self.marker).values
        if self._is_first:
            self._is_first = False
            if parts[0].as_py() not in (HEADER + _FIVE_COLUMNS, HEADER):
                raise DamagedRows("the server's answer to COPY begins in an unknown way")
        rows = parts.slice(1)
        if not len(rows):
            return None
        for at in (0, _VALUE - 4):
            if not pc.all(pc.equal(pc.binary_slice(rows, at, at + 4), _EIGHT)).as_py():
                raise DamagedRows("a row has a null, or columns of other types")
        names = pc.binary_slice(rows, _NAMES, -len(_FIVE_COLUMNS))
        return CopiedRows(
            pc.add_checked(_numbers(rows, _TS, pa.int64()), pa.scalar(PG_EPOCH_US, pa.int64())),
            _numbers(rows, _VALUE, pa.float64()),
            names.cast(pa.binary()).dictionary_encode(),
        )


def _numbers(rows: pa.Array, at: int, kind: pa.DataType) -> pa.Array:
    """Return the 8 bytes at this place of each row as numbers; on the wire they are big-endian."""
    turned = pc.binary_reverse(pc.binary_slice(rows, at, at + 8))
    if turned.type == pa.large_binary() and turned.buffers()[2].size < 8 * len(rows):
        raise DamagedRows("a row is too short")
    return pa.Array.from_buffers(kind, len(rows), [None, turned.buffers()[2]])


def split_names(names: pa.BinaryArray) -> tuple[pa.StringArray, pa.StringArray]:
    """Return the device_id and the metric of names as the server sends them.

    Each name has its size before it, in 4 bytes, of which the first two are 0. Text of PostgreSQL
    has no byte 0, so the first two zeros after device_id are those of the metric's size.
    """
    behind = pc.binary_slice(names, 4, 2 * _NAME_BYTES_MAX + 8)
    both = pc.split_pattern(behind, pattern=b"\0\0", max_splits=1)
    if pc.any(pc.not_equal(pc.list_value_length(both), 2)).as_py():
        raise DamagedRows(f"a name has more than {_NAME_BYTES_MAX:,} bytes")
    pieces = both.values
    at = pa.array(range(0, len(pieces), 2), pa.int64())
    devices = pieces.take(at)
    metrics = pc.binary_slice(pieces.take(pc.add(at, 1)), 2, _NAME_BYTES_MAX + 2)
    return devices.cast(pa.string()), metrics.cast(pa.string())


def encoded(pieces: Iterable[pa.Table]) -> Iterator[bytes]:
    """Yield rows as binary COPY with the four columns of the table, for `copy .. from stdin`."""
    yield HEADER
    for rows in pieces:
        for batch in rows.to_batches(max_chunksize=_ENCODED_ROWS):
            yield _encode(batch)
    yield TRAILER


def _encode(batch: pa.RecordBatch) -> bytes:
    ts = pc.subtract_checked(
        batch.column("ts").cast(pa.int64()), pa.scalar(PG_EPOCH_US, pa.int64())
    )
    joined = pc.binary_join_element_wise(
        pa.scalar(_FOUR_COLUMNS, pa.large_binary()),
        _wire(ts),
        _sized(batch.column("device_id")),
        _sized(batch.column("metric")),
        pa.scalar(_EIGHT, pa.large_binary()),
        _wire(batch.column("value")),
        pa.scalar(b"", pa.large_binary()),
    )
    buffer = joined.buffers()[2]
    return b"" if buffer is None else buffer.to_pybytes()


def _wire(numbers: pa.Array) -> pa.Array:
    plain = pa.concat_arrays([numbers])  # without an offset
    as_bytes = pa.Array.from_buffers(pa.binary(8), len(plain), [None, plain.buffers()[1]])
    return pc.binary_reverse(as_bytes.cast(pa.large_binary()))


def _sized(names: pa.DictionaryArray) -> pa.Array:
    sized = [
        struct.pack(">i", len(name)) + name
        for name in names.dictionary.cast(pa.binary()).to_pylist()
    ]
    return pa.array(sized, pa.large_binary()).take(names.indices)


class Checksum(NamedTuple):
    """What two copies of the same rows have in common: their number, and the sum of their hashes.

    Both can be added and subtracted; a sum has any size.
    """

    rows: int
    sum: int

    def plus(self, other: Checksum) -> Checksum:
        """Return the checksum of both sets of rows together."""
        return Checksum(self.rows + other.rows, self.sum + other.sum)

    def minus(self, other: Checksum) -> Checksum:
        """Return the checksum without the rows of the other one."""
        return Checksum(self.rows - other.rows, self.sum - other.sum)


NOTHING = Checksum(0, 0)


def checksum_of(rows: pa.Table) -> Checksum:
    """Return the checksum of rows with the columns of the archive. Blocks: some 50 ns a row."""
    found = NOTHING
    for batch in rows.to_batches():
        if batch.num_rows:
            found = found.plus(_of_batch(batch))
    return found


def _of_batch(batch: pa.RecordBatch) -> Checksum:
    ts = pc.subtract(batch.column("ts").view(pa.int64()), pa.scalar(PG_EPOCH_US, pa.int64()))
    value = batch.column("value")
    seed = _hash_int64(ts, _seeds(batch))
    hashed = _hash_float64_bits(value, seed)
    special = pc.or_(pc.equal(value, 0.0), pc.is_nan(value))
    if pc.any(special).as_py():
        as_integer = _hash_int64(value.view(pa.int64()), seed)
        hashed = Words(*map(pc.if_else, [special] * 2, as_integer, hashed))
    # The sum of signed 64-bit numbers, in two halves that cannot overflow.
    high = pc.sum(hashed.high.view(pa.int32())).as_py()
    low = pc.sum(hashed.low).as_py()
    return Checksum(batch.num_rows, (high << 32) + low)


class Words(NamedTuple):
    """A column of 64-bit numbers as two columns of 32 bits."""

    high: pa.Array
    low: pa.Array


def _seeds(batch: pa.RecordBatch) -> Words:
    """Return for each row the hash of its two names."""
    devices, metrics = batch.column("device_id"), batch.column("metric")
    wide = pa.int64()
    series = pc.add(
        pc.multiply(devices.indices.cast(wide), pa.scalar(len(metrics.dictionary), wide)),
        metrics.indices.cast(wide),
    ).dictionary_encode()
    device_names, metric_names = devices.dictionary.to_pylist(), metrics.dictionary.to_pylist()
    hashes = [
        series_hash(
            device_names[number // len(metric_names)], metric_names[number % len(metric_names)]
        )
        for number in series.dictionary.to_pylist()
    ]
    high = pa.array([each >> 32 for each in hashes], _U32)
    low = pa.array([each & _MASK for each in hashes], _U32)
    return Words(high.take(series.indices), low.take(series.indices))


def _hash_int64(numbers: pa.Array, seed: Words) -> Words:
    """hashint8extended: it folds the two halves, so a small number has one hash in all types."""
    halves = _halves(numbers)
    negative = pc.less(numbers, pa.scalar(0, pa.int64()))
    folded = pc.bit_wise_xor(
        halves.low, pc.if_else(negative, pc.bit_wise_not(halves.high), halves.high)
    )
    state = _begin(4, seed)
    state[0] = pc.add(state[0], folded)
    return _finish(state)


def _hash_float64_bits(values: pa.Array, seed: Words) -> Words:
    """hashfloat8extended, of values that are neither zero nor NaN."""
    halves = _halves(values.view(pa.int64()))
    state = _begin(8, seed)
    state[0] = pc.add(state[0], halves.low)
    state[1] = pc.add(state[1], halves.high)
    return _finish(state)


def _halves(numbers: pa.Array) -> Words:
    bits = numbers.view(pa.uint64())
    low = pc.bit_wise_and(bits, pa.scalar(_MASK, pa.uint64()))
    high = pc.shift_right(bits, pa.scalar(32, pa.uint64()))
    return Words(high.cast(_U32), low.cast(_U32))


def _begin(size: int, seed: Words) -> list[pa.Array]:
    start = pa.scalar((_START + size) & _MASK, _U32)
    state = [pc.add(seed.high, start), pc.add(seed.low, start), start]
    for changed, by, bits, grown in _MIX:
        state[changed] = pc.bit_wise_xor(
            pc.subtract(state[changed], state[by]), _rotated(state[by], bits)
        )
        state[by] = pc.add(state[by], state[grown])
    return state


def _finish(state: list[pa.Array]) -> Words:
    for changed, by, bits in _FINAL:
        state[changed] = pc.subtract(
            pc.bit_wise_xor(state[changed], state[by]), _rotated(state[by], bits)
        )
    return Words(state[1], state[2])


def _rotated(words: pa.Array, bits: int) -> pa.Array:
    left = pc.shift_left(words, pa.scalar(bits, _U32))
    return pc.bit_wise_or(left, pc.shift_right(words, pa.scalar(32 - bits, _U32)))


# The same for one name: there are few of them.


def series_hash(device_id: str, metric: str) -> int:
    """Return hashtextextended(metric, hashtextextended(device_id, SEED)), without a sign."""
    return _hash_text(metric.encode(), _device_hash(device_id))


@lru_cache(maxsize=4_096)
def _device_hash(device_id: str) -> int:
    return _hash_text(device_id.encode(), SEED)


def _hash_text(name: bytes, seed: int) -> int:
    start = (_START + len(name)) & _MASK
    state = [start, start, start]
    if seed:
        state[0] = (state[0] + (seed >> 32)) & _MASK
        state[1] = (state[1] + seed) & _MASK
        _mix(state)
    whole = len(name) // 12 * 12
    for at in range(0, whole, 12):
        _add_words(state, name[at : at + 12])
        _mix(state)
    rest = name[whole:]
    # The lowest byte of the third word is not used.
    _add_words(state, rest if len(rest) <= 8 else rest[:8] + b"\0" + rest[8:])
    for changed, by, bits in _FINAL:
        word = state[by]
        turned = (word << bits | word >> (32 - bits)) & _MASK
        state[changed] = ((state[changed] ^ word) - turned) & _MASK
    return state[1] << 32 | state[2]


def _add_words(state: list[int], data: bytes) -> None:
    for at in range(0, len(data), 4):
        word = int.from_bytes(data[at : at + 4], "little")
        state[at // 4] = (state[at // 4] + word) & _MASK


def _mix(state: list[int]) -> None:
    for changed, by, bits, grown in _MIX:
        word = state[by]
        turned = (word << bits | word >> (32 - bits)) & _MASK
        state[changed] = ((state[changed] - word) & _MASK) ^ turned
        state[by] = (word + state[grown]) & _MASK
