"""A value of a mapped document as a number, or as a time."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from ingest.formats.json_whole import EXACT_MAX
from ingest.formats.timestamp import Fault, number_us, text_us

UTC = "utc"  # the unit of a text without an offset; numbers are by magnitude then
_NUMBER_CHARACTERS_MAX = 400
_TIME_CHARACTERS_MAX = 200

_NUMBER = re.compile(
    r"\s*([+-]?)(?:([0-9]+)|(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]+)?)\s*"
)
_UNIX = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,20})?")


class Receipt(NamedTuple):
    """When somebody has received a document (Unix us), perhaps before its post; and its bounds."""

    at_us: int
    readings_max: int
    parts_max: int  # members and entries that are read for all rows together


def number_in(text: str) -> int | float | None:
    """Return the number that a text is; None if it is none. It may be infinite."""
    found = _NUMBER.fullmatch(text) if len(text) <= _NUMBER_CHARACTERS_MAX else None
    if found is None:
        return None
    return int(found[1] + found[2]) if found[2] else float(text)


def float_of(value: Any) -> tuple[float, bool]:
    """Return a number, a boolean or a numeric text as a float64, and whether an integer is exact.

    It is infinite if it does not fit.
    """
    if type(value) is str:
        value = number_in(value)
    try:
        number = float(value)
    except OverflowError:
        return math.inf, True
    is_exact = type(value) is not int or abs(number) < EXACT_MAX or int(number) == value
    return number + 0.0, is_exact  # -0.0 becomes 0.0


def time_us(value: Any, unit: str | None) -> int | Fault:
    """Return a time as Unix microseconds. `unit` is that of numbers, or UTC; None: by magnitude."""
    if type(value) is str:
        if len(value) > _TIME_CHARACTERS_MAX:
            return "ts_unreadable", "the time is no number, and no RFC 3339 time"
        text = value.strip()
        if not _UNIX.fullmatch(text):
            ts_us = text_us(text)
            if unit == UTC and not isinstance(ts_us, int) and ts_us[0] == "ts_without_offset":
                return text_us(f"{text}Z")
            return ts_us
        value = float(text) if "." in text else int(text)
    if type(value) is not int and type(value) is not float:
        return "ts_unreadable", "the time is neither a number nor a text"
    return number_us(value, None if unit == UTC else unit)
