"""When a reading was taken: RFC 3339 text or a Unix number, to whole Unix microseconds.

Exact: all arithmetic is done in integers, and rounds half to even. `datetime.fromisoformat` is not
used because it takes more than RFC 3339 (week dates, compact forms) and cuts digits off.
Whether a time is too old or in the future is not judged here.
"""

from __future__ import annotations

import math
import re
from datetime import date

Fault = tuple[str, str]  # a key of codes.ITEM_CODES, and a message for the client

PRECISIONS = ("s", "ms", "us", "ns")
TEXT_CHARACTERS_SHOWN = 40

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))?",
    re.ASCII,
)
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_US_PER_UNIT = {"s": (1_000_000, 1), "ms": (1_000, 1), "us": (1, 1), "ns": (1, 1_000)}


def shown(text: str) -> str:
    """Quote text of a client for a message: escaped, and cut to a few dozen characters."""
    if len(text) > TEXT_CHARACTERS_SHOWN:
        return f"{text[:TEXT_CHARACTERS_SHOWN]!r}.."
    return repr(text)


def text_us(text: str) -> int | Fault:
    """Read RFC 3339 (`T`, `t` or a space between date and time); return Unix microseconds.

    A leap second (`:60`) is the second after it, as in PostgreSQL.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        return "ts_unreadable", _unreadable(text)
    year, month, day, hour, minute, second, fraction, zulu, sign, off_hour, off_minute = (
        match.groups()
    )
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    except ValueError:
        return "ts_unreadable", f"{shown(text)} names a day that does not exist"
    if int(hour) > 23 or int(minute) > 59 or int(second) > 60:
        return "ts_unreadable", f"{shown(text)} names a time of day that does not exist"
    offset_s = 0
    if sign:
        if int(off_hour) > 23 or int(off_minute) > 59:
            return "ts_unreadable", f"{shown(text)} has an offset that does not exist"
        offset_s = (int(off_hour) * 60 + int(off_minute)) * (-60 if sign == "-" else 60)
    elif not zulu:
        return "ts_without_offset", f"{shown(text)} has no offset: append Z or one like +02:00"
    whole_s = ((days * 24 + int(hour)) * 60 + int(minute)) * 60 + int(second) - offset_s
    return whole_s * 1_000_000 + (_fraction_us(fraction) if fraction else 0)


def number_us(number: int | float, precision: str | None) -> int | Fault:
    """Turn Unix time in `precision` (a unit, or None: by magnitude) into Unix microseconds."""
    if precision is None:
        precision = _unit(number)
    times, parts = _US_PER_UNIT[precision]
    if isinstance(number, float):
        if not math.isfinite(number):  # infinite: JSON like 1e999
            return ("ts_in_future" if number > 0 else "ts_too_old"), "does not fit into a float64"
        number, denominator = number.as_integer_ratio()
        parts *= denominator
    if parts == 1:
        return number * times
    return _divided(number * times, parts)


def _unit(number: int | float) -> str:
    size = abs(number)
    if size < 5_000_000_000:
        return "s"
    if size < 5_000_000_000_000:
        return "ms"
    return "us" if size < 5_000_000_000_000_000 else "ns"


def _divided(dividend: int, divisor: int) -> int:
    """Divide, rounding half to even."""
    quotient, rest = divmod(dividend, divisor)
    if 2 * rest > divisor or (2 * rest == divisor and quotient & 1):
        quotient += 1
    return quotient


def _fraction_us(digits: str) -> int:
    """Return the microseconds of the digits after the point, however many there are."""
    us = int(digits[:6].ljust(6, "0"))
    rest = digits[6:].rstrip("0")  # compared as text: int() refuses more than 4,300 digits
    if rest > "5" or (rest == "5" and us & 1):
        us += 1
    return us


def _unreadable(text: str) -> str:
    if _NUMBER.fullmatch(text):
        return f"{shown(text)} is text: a Unix time is a number without quotes"
    return f"{shown(text)} is not RFC 3339, like 2026-01-31T23:59:59.5Z"
