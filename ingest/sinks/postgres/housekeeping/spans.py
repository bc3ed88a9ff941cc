"""Spans of time, UTC, of which each gets a partition: a day, or a month of the calendar.

Times are Unix microseconds; a span is half open. Calculated with whole numbers, since datetime ends
at the year 9999, and a table may have more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ingest.sinks.postgres.target import shortened

NONE, DAY, MONTH = "none", "day", "month"
SPANS = (NONE, DAY, MONTH)
DAY_US = 86_400_000_000
BEGINNING_US, END_US = -(2**63), 2**63 - 1  # of a partition without a lower or upper bound


class TimeSpan(NamedTuple):
    """From `from_us` until before `to_us`."""

    from_us: int
    to_us: int


def overlap(one: TimeSpan, other: TimeSpan) -> bool:
    """Whether two spans have a moment in common."""
    return one.from_us < other.to_us and other.from_us < one.to_us


def whole(span: TimeSpan, unit_us: int) -> TimeSpan:
    """Return the whole hours or days (`unit_us`) that a span touches."""
    from_us, to_us = span
    if from_us != BEGINNING_US:
        from_us = from_us // unit_us * unit_us
    if to_us != END_US:
        to_us = -(-to_us // unit_us) * unit_us
    return TimeSpan(from_us, to_us)


def joined(spans: Iterable[TimeSpan]) -> list[TimeSpan]:
    """Return the same times, sorted, and those that touch as one."""
    found: list[TimeSpan] = []
    for each in sorted(spans):
        if found and each.from_us <= found[-1].to_us:
            found[-1] = TimeSpan(found[-1].from_us, max(found[-1].to_us, each.to_us))
        else:
            found.append(each)
    return found


def span_bounds(span: str, ts_us: int) -> TimeSpan:
    """Return the day or month (`span`) of a time."""
    day = ts_us // DAY_US
    if span == DAY:
        return TimeSpan(day * DAY_US, (day + 1) * DAY_US)
    if span != MONTH:
        raise ValueError(f"there are no spans of {span!r}")
    year, month, _ = _date(day)
    after = (year + month // 12, month % 12 + 1)
    return TimeSpan(_day(year, month, 1) * DAY_US, _day(*after, 1) * DAY_US)


def spans_between(span: str, from_us: int, to_us: int) -> Iterator[TimeSpan]:
    """Yield the spans that touch the time from `from_us` until before `to_us`, in order."""
    while from_us < to_us:
        found = span_bounds(span, from_us)
        yield found
        from_us = found.to_us


def partition_name(table: str, span: str, from_us: int) -> str:
    """Return the name of a partition, such as readings_p20261127, or readings_p202611.

    A long name of the table is cut, so that the result fits PostgreSQL.
    """
    year, month, day = _date(from_us // DAY_US)
    date = f"{year:04d}{month:02d}" + (f"{day:02d}" if span == DAY else "")
    return shortened(table, f"_p{date}")


def literal(ts_us: int) -> str:
    """Return a time as SQL reads it in each time zone, such as '2026-11-27 00:00:00+00'."""
    if ts_us == BEGINNING_US:
        return "minvalue"
    if ts_us == END_US:
        return "maxvalue"
    day, rest_us = divmod(ts_us, DAY_US)
    year, month, date = _date(day)
    minutes, us = divmod(rest_us, 60_000_000)
    seconds = f"{us // 1_000_000:02d}" + (f".{us % 1_000_000:06d}" if us % 1_000_000 else "")
    time = f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds}+00"
    era = "" if year > 0 else " BC"
    return f"'{year if year > 0 else 1 - year:04d}-{month:02d}-{date:02d} {time}{era}'"


def _date(day: int) -> tuple[int, int, int]:
    """Return year, month and day of the day with this number; 0 is 1970-01-01.

    Years begin in March here, so that a leap day is the last day of its year.
    """
    day += 719_468  # since 0000-03-01
    era, day = divmod(day, 146_097)  # 400 years
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    date = day - (153 * month + 2) // 5 + 1
    return era * 400 + year + (month >= 10), month + 3 if month < 10 else month - 9, date


def _day(year: int, month: int, date: int) -> int:
    """Return the number of a day: the inverse of `_date`."""
    year -= month <= 2
    era, year = divmod(year, 400)
    in_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + date - 1
    return era * 146_097 + 365 * year + year // 4 - year // 100 + in_year - 719_468
