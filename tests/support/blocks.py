"""Makes blocks for tests: real encoded rows, all different unless the test says otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from ingest.model.block import Ack, Block, encode_reading
from ingest.model.reading import Reading
from ingest.system.clock import monotonic_s, unix_us

_numbers = itertools.count(1)


def make_reading(*, device_id: str | None = None, value: float = 1.0) -> Reading:
    """Make a reading that no other call makes; its device is one of ten unless it is given."""
    number = next(_numbers)
    return Reading(unix_us() + number, device_id or f"device-{number % 10}", "temperature", value)


def block_of(
    readings: Iterable[Reading],
    *,
    ack: Ack | None = None,
    items: list[int] | None = None,
    age_s: float = 0.0,
) -> Block:
    """Encode readings as the receiver does; they were received `age_s` ago."""
    rows = list(readings)
    return Block(
        b"".join(encode_reading(each) for each in rows),
        len(rows),
        received_s=monotonic_s() - age_s,
        received_us=unix_us() - int(age_s * 1e6),
        newest_ts_us=max(each.ts_us for each in rows),
        items=items,
        ack=ack,
    )


def size_of(rows: int) -> tuple[int, int]:
    """Return the rows and bytes of any `make_block(rows)`: what is to be reserved for it."""
    return rows, len(make_block(rows).tuples)


def make_block(rows: int, *, ack: Ack | None = None, age_s: float = 0.0) -> Block:
    """Make a block of `rows` fresh readings."""
    return block_of((make_reading() for _ in range(rows)), ack=ack, age_s=age_s)
