"""Rollups computed from raw readings in Python: what the tables of rollups must contain."""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import asyncpg

from ingest.model.reading import Reading

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
_US = "(extract(epoch from {}) * 1000000)::int8"
Key = tuple[int, str, str]  # the start in Unix microseconds, the device, the metric


class Rollup(NamedTuple):
    """The numbers of one bucket. `magnitude` is the sum of the absolute values, of an oracle."""

    readings: int
    least: float
    greatest: float
    sum: float
    first: float
    last: float
    magnitude: float = 0.0


def _order(value: float) -> tuple[bool, float]:
    """NaN is greater than all other values."""
    return math.isnan(value), 0.0 if math.isnan(value) else value


def _sum(values: list[float]) -> float:
    if any(map(math.isnan, values)) or {math.inf, -math.inf} <= set(values):
        return math.nan
    if found := [each for each in values if math.isinf(each)]:
        return found[0]
    scaled = math.fsum(each * 2.0**-80 for each in values)
    if abs(scaled) >= 2.0**944:
        return math.copysign(math.inf, scaled)
    return math.fsum(values) if max(map(abs, values)) < 1e290 else scaled * 2.0**80


def expected(readings: Iterable[Reading], bucket_us: int) -> dict[Key, Rollup]:
    """Return the rollups of readings, each of which is given once."""
    buckets: dict[Key, list[tuple[int, float]]] = defaultdict(list)
    for ts_us, device_id, metric, value in readings:
        start_us = ts_us // bucket_us * bucket_us
        buckets[start_us, device_id, metric].append((ts_us, value))
    return {key: _rollup(members) for key, members in buckets.items()}


def _rollup(members: list[tuple[int, float]]) -> Rollup:
    values = [value for _, value in members]
    first_us, last_us = min(ts for ts, _ in members), max(ts for ts, _ in members)
    return Rollup(
        len(values),
        min(values, key=_order) + 0.0,
        max(values, key=_order) + 0.0,
        _sum(values),
        min((value for ts, value in members if ts == first_us), key=_order),
        min((value for ts, value in members if ts == last_us), key=_order),
        math.fsum(min(abs(each), 1e300) for each in values if not math.isnan(each)),
    )


async def stored(connection: asyncpg.Connection, table: str, start: str) -> dict[Key, Rollup]:
    """Return what a table of rollups has; `start` is its column `hour` or `day`."""
    rows = await connection.fetch(
        f"select {_US.format(start)} as at, device_id, metric, count, min, max, sum, first, last "
        f"from {table}"
    )
    return {(row[0], row[1], row[2]): Rollup(*row[3:]) for row in rows}


async def raw(connection: asyncpg.Connection, table: str = "readings") -> list[Reading]:
    """Return all readings of the table."""
    rows = await connection.fetch(
        f"select {_US.format('ts')}, device_id, metric, value from {table}"
    )
    return [Reading(*row) for row in rows]


def differences(found: dict[Key, Rollup], wanted: dict[Key, Rollup]) -> list[Any]:
    """Return the keys that differ, with both rollups: all bit for bit, but the sum to 1e-12."""
    wrong: list[Any] = []
    for key in found.keys() | wanted.keys():
        a, b = found.get(key), wanted.get(key)
        if a is None or b is None or not _alike(a, b):
            wrong.append((key, a, b))
    return sorted(wrong, key=str)


def _alike(found: Rollup, wanted: Rollup) -> bool:
    for at in (1, 2, 4, 5):
        if math.isnan(found[at]) and math.isnan(wanted[at]):
            continue
        if struct.pack(">d", found[at]) != struct.pack(">d", wanted[at]):
            return False
    both_nan = math.isnan(found.sum) and math.isnan(wanted.sum)
    close = both_nan or found.sum == wanted.sum
    if not close and math.isfinite(found.sum) and math.isfinite(wanted.sum):
        close = abs(found.sum - wanted.sum) <= 1e-12 * wanted.magnitude
    return found.readings == wanted.readings and close
