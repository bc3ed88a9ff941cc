"""The time of a reading: from RFC 3339 text or a Unix number to whole Unix microseconds.

Promises: exact results; all arithmetic is done in integers and rounds half to even.
Does not: decide whether a time is too old or in the future.

`datetime.fromisoformat` is not used: it accepts more than RFC 3339 (week dates, compact forms) and
drops digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date
from typing import NamedTuple, cast

import msgspec

from ingest.model.block import PG_EPOCH_US
from ingest.system.words import quoted

Fault = tuple[str, str]  # a key of codes.ITEM_CODES, and a message for the client

PRECISIONS = ("s", "ms", "us", "ns")
UNITS = (*PRECISIONS, "m", "h")  # minutes and hours are of line protocol only
MINUTES_CACHED_MAX = 4_096
TEXT_CHARACTERS_MAX = 64  # a longer text is refused unread
# Numbers of this size are beyond all allowed times in each unit. Calculating with floats near 1e308
# would make integers of a thousand bits.
NUMBER_MAX = 1e21
ALIKE_MIN = 12  # from this many texts on, reading them together is faster

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))?",
    re.ASCII,
)
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")
_INTEGERS = msgspec.json.Decoder(list[int])
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_US_PER_UNIT = {
    "h": (3_600_000_000, 1),
    "m": (60_000_000, 1),
    "s": (1_000_000, 1),
    "ms": (1_000, 1),
    "us": (1, 1),
    "ns": (1, 1_000),
}


def text_us(text: str) -> int | Fault:
    """Read RFC 3339 (`T`, `t` or a space between date and time); return Unix microseconds.

    A leap second (`:60`) is read as the second after it, as in PostgreSQL.
    """
    ts_us = read_text(text)
    return ts_us if isinstance(ts_us, int) else (ts_us[0], ts_us[1].format(quoted(text)))


def read_text(text: str) -> int | Fault:
    """Do what text_us does; a message has {} in place of the text, since most are never read."""
    match = _RFC3339.fullmatch(text) if len(text) <= TEXT_CHARACTERS_MAX else None
    if match is None:
        return "ts_unreadable", _unreadable(text)
    year, month, day, hour, minute, second, fraction, zulu, sign, off_hour, off_minute = (
        match.groups()
    )
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    except ValueError:
        return "ts_unreadable", "{} has a day that does not exist"
    if int(hour) > 23 or int(minute) > 59 or int(second) > 60:
        return "ts_unreadable", "{} has a time of day that does not exist"
    offset_s = 0
    if sign:
        if int(off_hour) > 23 or int(off_minute) > 59:
            return "ts_unreadable", "{} has an offset that does not exist"
        offset_s = (int(off_hour) * 60 + int(off_minute)) * (-60 if sign == "-" else 60)
    elif not zulu:
        return "ts_without_offset", "{} has no offset: append Z, or an offset like +02:00"
    whole_s = ((days * 24 + int(hour)) * 60 + int(minute)) * 60 + int(second) - offset_s
    return whole_s * 1_000_000 + (_fraction_us(fraction) if fraction else 0)


def number_us(number: int | float, precision: str | None) -> int | Fault:
    """Convert Unix time in `precision` (a unit, or None: by magnitude) to Unix microseconds."""
    if not -NUMBER_MAX <= number <= NUMBER_MAX:  # also 1e999, which is read as infinite
        return ("ts_in_future" if number > 0 else "ts_too_old"), "is beyond all times"
    if precision is None:
        precision = _unit(number)
    times, parts = _US_PER_UNIT[precision]
    if isinstance(number, float):
        number, denominator = number.as_integer_ratio()
        parts *= denominator
    if parts == 1:
        return number * times
    return _divided(number * times, parts)


def sum_us(first_s: int | float, second_s: int | float) -> int | Fault:
    """Return the sum of two numbers of seconds, exactly, in microseconds, half to even."""
    if not (-NUMBER_MAX <= first_s <= NUMBER_MAX and -NUMBER_MAX <= second_s <= NUMBER_MAX):
        return ("ts_in_future" if first_s + second_s > 0 else "ts_too_old"), "is beyond all times"
    first, first_parts = first_s.as_integer_ratio()
    second, second_parts = second_s.as_integer_ratio()
    parts = max(first_parts, second_parts)  # both are powers of two
    total = first * (parts // first_parts) + second * (parts // second_parts)
    return _divided(total * 1_000_000, parts) if parts > 1 else total * 1_000_000


class Times(NamedTuple):
    """Several times, in microseconds of PostgreSQL; the oldest and the newest in those of Unix."""

    pg_us: Sequence[int]
    oldest_us: int
    newest_us: int


def integers_us(
    numbers: Sequence[int], precision: str | None, *, may_be_half: bool = True
) -> Times | None:
    """Do what number_us does for each of one or more integers; None if one has a fault.

    `may_be_half` is false if none of them ends in 500: nanoseconds then cost half.
    """
    least, most = min(numbers), max(numbers)
    unit = precision or _unit(most)
    if not (precision or (least >= 0 and _unit(least) == unit)):
        return numbers_us(numbers, precision)
    times, parts = _US_PER_UNIT[unit]
    if parts == 1:
        pg_us = [number * times - PG_EPOCH_US for number in numbers]
        return Times(pg_us, least * times, most * times)
    if most > NUMBER_MAX or least < -NUMBER_MAX:
        return numbers_us(numbers, unit)
    # Nanoseconds. A half goes to the even microsecond.
    epoch_ns = 1_000 * PG_EPOCH_US
    if may_be_half:
        half_ns = 499 - epoch_ns
        return _times([(each + half_ns + (each // 1_000 & 1)) // 1_000 for each in numbers])
    half_ns = 500 - epoch_ns
    pg_us = [(each + half_ns) // 1_000 for each in numbers]
    return Times(pg_us, (least + 500) // 1_000, (most + 500) // 1_000)


def numbers_us(numbers: Sequence[int | float], precision: str | None) -> Times | None:
    """Do what number_us does for each of one or more numbers; None if one has a fault."""
    return _sound(number_us(number, precision) for number in numbers)


def texts_us(texts: Sequence[str]) -> Times | None:
    """Do what text_us does for each of one or more texts; None if one has a fault."""
    times = _alike(texts) if len(texts) >= ALIKE_MIN else None
    return times or _sound(map(plain_us, texts))


def _sound(times_us: Iterable[int | Fault]) -> Times | None:
    """Return the times, or None if one of them is a fault."""
    all_us = list(times_us)
    if set(map(type, all_us)) != {int}:
        return None
    return _times([each - PG_EPOCH_US for each in cast("list[int]", all_us)])


def _times(pg_us: list[int]) -> Times:
    return Times(pg_us, min(pg_us) + PG_EPOCH_US, max(pg_us) + PG_EPOCH_US)


class _Minutes(dict[str, int]):
    """Unix microseconds at the start of a minute, by its text like `2026-01-31T23:59:` (UTC)."""

    def __missing__(self, minute: str) -> int:
        start_us = text_us(f"{minute}00Z")
        if not isinstance(start_us, int):
            raise KeyError(minute)
        if len(self) >= MINUTES_CACHED_MAX:
            self.clear()
        self[minute] = start_us
        return start_us


_minutes = _Minutes()


def plain_us(text: str) -> int | Fault:
    """Do what read_text does; at a third of its cost for a text with Z whose minute is known."""
    rest = text[17:]
    if rest[-1:] == "Z" and (len(rest) == 3 or (rest[2:3] == "." and 5 <= len(rest) <= 10)):
        digits = rest[:2] + rest[3:-1]
        if digits < "6" and digits.isdigit() and digits.isascii():
            try:
                return _minutes[text[:17]] + int(digits.ljust(8, "0"))
            except KeyError:
                pass
    return read_text(text)


def _alike(texts: Sequence[str]) -> Times | None:
    """Read texts of one form: same length, same offset, at most six digits after the point.

    Returns None if they differ in form, or if one of them has a fault.

    One device or gateway writes all of its times in one form. The texts are joined to one text.
    Each column of digits is then one slice with a stride. So the seconds of all texts are read as
    one JSON array of numbers, without a step of Python for each text. It costs a third of reading
    the texts one by one.
    """
    count, size = len(texts), len(texts[0])
    offset = "Z" if texts[0][-1:] == "Z" else texts[0][-6:]
    offset_us = 0 if offset == "Z" else text_us(f"1970-01-01T00:00:00{offset}")
    digits = size - 20 - len(offset)  # of the fraction; -1 if there is no point
    joined = "".join(texts)
    if (
        not isinstance(offset_us, int)
        or not (digits == -1 or 1 <= digits <= 6)
        or set(map(len, texts)) != {size}
        or not joined.isascii()
    ):
        return None
    columns = joined.encode()
    # One number a text: a comma, a 1 (JSON allows no leading zeros), two digits of the second, six
    # of the fraction.
    numbers = bytearray(b",100000000" * count)
    for to, at in enumerate((17, 18, *range(20, 20 + digits)), 2):
        numbers[to::10] = columns[at::size]
    constant = list(enumerate(offset, size - len(offset)))
    if digits > 0:
        constant.append((19, "."))
    if any(columns[at::size] != character.encode() * count for at, character in constant):
        return None
    written = numbers.translate(None, b",")
    if len(written) != 9 * count or not written.isdigit():
        return None
    numbers[:1] = b"["
    seconds_us = _INTEGERS.decode(numbers + b"]")
    if max(seconds_us) >= 160_000_000:  # a leap second
        return None
    base_us = offset_us - 100_000_000 - PG_EPOCH_US
    try:
        return _times(
            [
                _minutes[text[:17]] + second_us + base_us
                for text, second_us in zip(texts, seconds_us, strict=True)
            ]
        )
    except KeyError:
        return None


def _unit(number: int | float) -> str:
    size = abs(number)
    if size < 5_000_000_000:
        return "s"
    if size < 5_000_000_000_000:
        return "ms"
    return "us" if size < 5_000_000_000_000_000 else "ns"


def _divided(dividend: int, divisor: int) -> int:
    """Divide and round half to even."""
    quotient, rest = divmod(dividend, divisor)
    if 2 * rest > divisor or (2 * rest == divisor and quotient & 1):
        quotient += 1
    return quotient


def _fraction_us(digits: str) -> int:
    """Return the microseconds of the digits after the point, however many there are."""
    us = int(digits[:6].ljust(6, "0"))
    # The rest is compared as text, because int() refuses more than 4,300 digits.
    rest = digits[6:].rstrip("0")
    if rest > "5" or (rest == "5" and us & 1):
        us += 1
    return us


def _unreadable(text: str) -> str:
    if len(text) > TEXT_CHARACTERS_MAX:
        return f"{{}} has more than {TEXT_CHARACTERS_MAX} characters"
    if _NUMBER.fullmatch(text):
        return "{} is a string; write a Unix time as a number, without quotes"
    return "{} is not an RFC 3339 time like 2026-01-31T23:59:59.5Z"
