"""Rows for tests of the sink: readings that differ, and their encoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ingest.model.block import encode_reading
from ingest.model.reading import Reading

START_US = 1_760_000_000_000_000  # 2025-10-09


def readings(count: int, *, start: int = 0, device: str = "device") -> list[Reading]:
    """Give `count` different readings; equal arguments give equal readings."""
    return [
        Reading(START_US + number * 1_000, f"{device}-{number % 7}", "temperature", number * 0.1)
        for number in range(start, start + count)
    ]


def encode(rows: Iterable[Reading], posts: int = 1) -> Sequence[bytes]:
    """Encode rows as the blocks of `posts` posts."""
    encoded = [encode_reading(row) for row in rows]
    size = max(1, -(-len(encoded) // posts))
    return [b"".join(encoded[at : at + size]) for at in range(0, len(encoded), size)]
