"""The points that a client has to write, and the row that each must become.

A point has a time of its own in microseconds. Values are float64 with all their bits, integers and
booleans. One tag has characters that a client must escape.
Knows no library: the programs of the clients import it too.
"""

from __future__ import annotations

import random
import struct
from typing import NamedTuple

FIRST_US = 1_750_000_000_000_001  # of the first point
STEP_US = 1_003
DEVICES = 17
PLACES = ("attic", "room 2,north", "a=b", "küche")
AS_METRIC = ("attic", "room 2\\,north", "a\\=b", "küche")  # the tag's value in the metric's name


class Point(NamedTuple):
    """One point with one field. Its value is a float, an int or a bool."""

    ts_us: int
    device: str
    place: str
    field: str
    value: float

    def line(self, measurement: str) -> str:
        """Return the point as line protocol, without its time."""
        place = self.place.replace(",", "\\,").replace(" ", "\\ ").replace("=", "\\=")
        value = f"{self.value}i" if type(self.value) is int else repr(self.value)
        return f"{measurement},device={self.device},place={place} {self.field}={value}"


class Row(NamedTuple):
    """What the table must have of it."""

    ts_us: int
    device: str
    metric: str
    value: float


def make_points(count: int, seed: int) -> list[Point]:
    """Return points, the same ones for the same seed."""
    random_ = random.Random(seed)
    points = []
    for at in range(count):
        field, value = _value(at, random_)
        ts_us = FIRST_US + at * STEP_US
        place = PLACES[at % len(PLACES)]
        points.append(Point(ts_us, f"device-{at % DEVICES}", place, field, value))
    return points


def _value(at: int, random_: random.Random) -> tuple[str, float]:
    if at % 10 == 3:
        return "count", random_.randrange(-(2**53), 2**53)
    if at % 10 == 7:
        return "on", random_.random() < 0.5
    while True:  # any bits that are a number in the range where all clients write plain digits
        (value,) = struct.unpack("<d", random_.randbytes(8))
        if 1e-5 < abs(value) < 1e15:
            return "value", value


def row_of(point: Point, measurement: str) -> Row:
    """Return the row that docs/use/senders.md promises for a point."""
    place = AS_METRIC[PLACES.index(point.place)]
    name = measurement if point.field == "value" else f"{measurement}.{point.field}"
    return Row(point.ts_us, point.device, f"{name},place={place}", float(point.value))
