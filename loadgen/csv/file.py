"""Reads a CSV of `timestamp,value` as batches of JSON readings, exactly and in bounded memory.

Promises: a value that is a JSON number goes into the JSON digit by digit; an invalid line is
reported with its number, and the other lines are read.
Does not: read fields that span lines, or guess another separator.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zoneinfo import ZoneInfo

LINE_BYTES_MAX = 64 * 1024
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_OTHER_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DATE_AND_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2})(:[0-9]{2}(?:\.[0-9]+)?)?"
    r"\s*([Zz]|[+-][0-9]{2}:[0-9]{2})?"
)
_OFFSET = re.compile(r"[+-][0-9]{2}:[0-9]{2}")


class CsvError(Exception):
    """The file as a whole cannot be read as readings; the text says why."""


class Batch(NamedTuple):
    """One post: its body, and the line number of each item."""

    body: bytes
    lines: list[int]


@dataclass
class CsvFile:
    """A CSV whose header names `timestamp` and `value`; other columns are ignored.

    After `batches` is exhausted, `rows` is the number of readings and `bad_rows` that of invalid
    lines; `bad` lists the first `bad_shown_max` of these as (line, why). `has_header`: a header
    was found.
    """

    path: Path
    device_id: str
    metric: str
    zone: tzinfo
    bad_shown_max: int = 10
    has_header: bool = False
    rows: int = 0
    bad_rows: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)

    def batches(self, rows_max: int) -> Iterator[Batch]:
        """Yield the file in batches of `rows_max`. Raises CsvError."""
        try:
            with self.path.open("rb") as file:
                yield from self._batches(file, rows_max)
        except OSError as error:
            raise CsvError(f"cannot read {self.path}: {error.strerror}") from error

    def _batches(self, file: BinaryIO, rows_max: int) -> Iterator[Batch]:
        items: list[str] = []
        lines: list[int] = []
        names = f'{{"device_id":{json.dumps(self.device_id)},"metric":{json.dumps(self.metric)}'
        columns: tuple[int, int] | None = None
        for number, raw in enumerate(_lines(file), 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901  a byte order mark
            if not raw.strip():
                continue
            try:
                cells = next(csv.reader([raw.decode()], strict=True), [])
                if columns is None:
                    columns = self._columns(cells, number)
                    self.has_header = True
                    continue
                ts, value = (cells[each].strip() for each in columns)
                items.append(
                    f'{names},"ts":{_ts_json(ts, self.zone)},"value":{_value_json(value)}}}'
                )
            except (ValueError, csv.Error, IndexError) as error:
                self._note(number, error)
                continue
            lines.append(number)
            self.rows += 1
            if len(items) >= rows_max:
                yield Batch(f"[{','.join(items)}]".encode(), lines)
                items, lines = [], []
        if columns is None:
            raise CsvError(f"{self.path} has no header: its first line must be timestamp,value")
        if items:
            yield Batch(f"[{','.join(items)}]".encode(), lines)

    def _columns(self, header: list[str], number: int) -> tuple[int, int]:
        names = [each.strip().lower() for each in header]
        if "timestamp" not in names or "value" not in names:
            raise CsvError(
                f"{self.path}, line {number}: the header must name the columns `timestamp` and "
                f"`value`, separated by commas; it is {','.join(header)[:80]!r}"
            )
        return names.index("timestamp"), names.index("value")

    def _note(self, number: int, error: Exception) -> None:
        self.bad_rows += 1
        if len(self.bad) < self.bad_shown_max:
            why = {
                UnicodeDecodeError: "is not UTF-8",
                IndexError: "has too few columns",
                csv.Error: f"is not CSV: {error}",
            }
            self.bad.append((number, why.get(type(error), str(error))))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines. Raises CsvError for a line of more than LINE_BYTES_MAX: memory is bounded."""
    while line := file.readline(LINE_BYTES_MAX):
        if len(line) == LINE_BYTES_MAX and not line.endswith(b"\n"):
            raise CsvError(f"{file.name} has a line of more than {LINE_BYTES_MAX} bytes")
        yield line


def _ts_json(text: str, zone: tzinfo) -> str:
    """Return a timestamp as JSON: Unix time stays a number, the rest becomes RFC 3339.

    A time without an offset is taken to be in `zone` (the earlier one where clocks went back).
    Its digits are kept; the service rounds a fraction finer than a microsecond.
    """
    if _JSON_NUMBER.fullmatch(text):
        return text
    match = _DATE_AND_TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:60]!r} is not a timestamp")
    date, minute, second, offset = match.groups()
    moment = f"{date}T{minute}{second or ':00'}"
    try:
        naive = datetime.fromisoformat(moment[:19])
    except ValueError as error:
        raise ValueError(f"{text[:60]!r} is not a timestamp: {error}") from None
    return f'"{moment}{offset.upper() if offset else _offset(naive, zone)}"'


def _offset(naive: datetime, zone: tzinfo) -> str:
    offset = naive.replace(tzinfo=zone).isoformat(timespec="seconds")[19:25]  # without seconds
    return "Z" if offset == "+00:00" else offset


def _value_json(text: str) -> str:
    """Return a number as JSON: unchanged if it is a JSON number, else its shortest exact form."""
    if _JSON_NUMBER.fullmatch(text):
        return text
    if _OTHER_NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return repr(float(text))
    raise ValueError(f"{text[:60]!r} is not a number")


def zone_named(name: str) -> tzinfo:
    """Return the time zone `UTC`, `+02:00` or `Europe/Vienna`. Raises ValueError."""
    if name.upper() in {"UTC", "Z"}:
        return UTC  # works where the system has no time zone data
    if _OFFSET.fullmatch(name):
        zone = datetime.fromisoformat(f"2000-01-01T00:00:00{name}").tzinfo
        assert zone is not None, "an offset was matched"
        return zone
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"there is no time zone {name!r}; use UTC, +02:00 or a name such as Europe/Vienna"
        ) from error
