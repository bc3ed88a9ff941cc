"""A value of a mapped document as a number, or as a time; and hints at values that are skipped."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta, tzinfo
from typing import Any, NamedTuple

from ingest.formats.map_source import Source
from ingest.formats.post import EXACT_MAX
from ingest.formats.timestamp import Fault, number_us, text_us
from ingest.model.reading import NAME_CHARACTERS_MAX

_NUMBER_CHARACTERS_MAX = 400
_TIME_CHARACTERS_MAX = 200
HINTS_MAX = 10  # names of a post
FIELD_CHARACTERS_MAX = 80
_TIMES = frozenset({"ts", "time", "timestamp", "datetime", "epoch", "Time", "TS", "Timestamp"})

_NUMBER = re.compile(
    r"\s*([+-]?)(?:([0-9]+)|(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]+)?)\s*"
)
_UNIX = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,20})?")


class Hints:
    """What the author of a table may have missed: names of a post, and how often they came.

    Promises: few are kept, whatever a post has.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._found: dict[tuple[str, str], int] = {}

    def look(self, name: str | int, label: str, value: Any) -> None:
        """Look at a value: `name` is the last part of `label`, or a place in a list."""
        source = self._source
        if source.time is None and name in _TIMES:
            hint = "`{0}` looks like a time, and the source has none: time = '{0}'"
        elif type(value) is str and not source.numeric_strings and number_in(value) is not None:
            hint = "`{}` is a number in quotes, not stored: numeric_strings = true"
        elif (
            type(value) is list and list not in source.nests and value and type(value[0]) is not str
        ):
            hint = "`{}` is a list, not stored: lists = true"
        else:
            return
        key, wants = (label[:NAME_CHARACTERS_MAX], hint), source.wants
        is_meant = label in source.own_names or (wants is not None and not wants(key[0]))
        if not is_meant and (key in self._found or len(self._found) < HINTS_MAX):
            self._found[key] = self._found.get(key, 0) + 1

    def told(self) -> list[str]:
        """Return a sentence for each name."""
        return [f"{hint.format(shown(name))} ({n} x)" for (name, hint), n in self._found.items()]


class Receipt(NamedTuple):
    """When somebody has received a document (Unix us), perhaps before its post; and its bounds.

    `hints` are those of its post; None: enough of it has been looked at.
    """

    at_us: int
    readings_max: int
    parts_max: int  # members and entries that are read for all rows together
    hints: Hints | None


def shown(name: str) -> str:
    """Return a name as a text for people: cut off, and with bytes for all of it."""
    cut = name if len(name) <= FIELD_CHARACTERS_MAX else name[:FIELD_CHARACTERS_MAX] + ".."
    return cut.encode("utf-8", "replace").decode()  # half of a surrogate pair has no bytes


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


def time_us(value: Any, unit: str | None, zone: tzinfo | None) -> int | Fault:
    """Return a time as Unix microseconds.

    `unit` is that of numbers; None: by magnitude. `zone` is that of a text without an offset. A
    local time that comes twice, at the end of summer time, is the first of both: so a text always
    is the same time, whenever it is sent.
    """
    if type(value) is str:
        if len(value) > _TIME_CHARACTERS_MAX:
            return "ts_unreadable", "the time is no number, and no RFC 3339 time"
        text = value.strip()
        if not _UNIX.fullmatch(text):
            ts_us = text_us(text)
            if zone is None or isinstance(ts_us, int) or ts_us[0] != "ts_without_offset":
                return ts_us
            ts_us = text_us(f"{text}Z")
            if isinstance(ts_us, int):
                offset = zone.utcoffset(datetime.fromisoformat(text[:16])) or timedelta()
                ts_us -= offset // timedelta(microseconds=1)
            return ts_us
        value = float(text) if "." in text else int(text)
    if type(value) is not int and type(value) is not float:
        return "ts_unreadable", "the time is neither a number nor a text"
    return number_us(value, unit)
