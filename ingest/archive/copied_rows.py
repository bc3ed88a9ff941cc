"""Rows between PostgreSQL's binary COPY and columns of Arrow, without a loop over rows.

From the server each row has five columns: a marker, ts, value, device_id, metric. The marker is
random and begins with bytes that no UTF-8 text has, so Arrow finds the begin of each row by it.
Promises: each bit of a float and each microsecond is kept. What is not such rows is an error.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingest.model.errors import StartError
from ingest.model.rows import HEADER, PG_EPOCH_US, TRAILER

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
