"""The checksum of rows: PostgreSQL's own hash functions, here for whole columns at once.

`archive_rows.py` has the same in SQL. The checksum is a sum over the rows, so their order does not
matter. The hash of a row: of device_id, then metric, then ts, then value; the result of each step
is the seed of the next one. Each bit of a row counts. PostgreSQL's hash of a float takes all NaN as
one, and both zeros as one: their bits are hashed as an integer instead.

The functions are Bob Jenkins' lookup3, with words of 32 bits, little-endian. Does not: agree with
a server on a big-endian machine, which hashes names in another way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingest.model.rows import PG_EPOCH_US

SEED = 1  # not 0: PostgreSQL does not mix a seed of 0
_MASK = 0xFFFF_FFFF
_START = 0x9E37_79B9 + 3_923_095  # and the number of bytes
_U32 = pa.uint32()

# The rounds of lookup3: which of (a, b, c) changes, by which other one, and by how many bits.
_MIX = ((0, 2, 4, 1), (1, 0, 6, 2), (2, 1, 8, 0), (0, 2, 16, 1), (1, 0, 19, 2), (2, 1, 4, 0))
_FINAL = ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24))


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


def checksum_of(rows: pa.RecordBatch | pa.Table) -> Checksum:
    """Return the checksum of rows with the columns of the archive. Blocks: some 50 ns a row."""
    found = NOTHING
    for batch in rows.to_batches() if isinstance(rows, pa.Table) else [rows]:
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
