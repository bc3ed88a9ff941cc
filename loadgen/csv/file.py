"""Reads a CSV as batches of JSON readings, exactly and in bounded memory.

Promises: a value that is a JSON number goes into the JSON digit by digit; an invalid line is
reported with its number, and the other lines are read.
Does not: read fields that span lines, or decimal commas.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zoneinfo import ZoneInfo

LINE_BYTES_MAX = 64 * 1024
SEPARATORS = (",", ";", "\t")  # the one that the header has most often
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
ROLES = frozenset({"time", "device", "metric", "value"})
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


class _Layout(NamedTuple):
    """Where a line has what; a text in place of a column is what all lines have, as JSON.

    `values` has the columns with values, and the metric of each. In a wide file a line has several
    metrics, and a column without a value is left out.
    """

    time: int
    device: int | str
    values: dict[int, int | str]
    is_wide: bool

    def items(self, cells: list[str], zone: tzinfo) -> list[str]:
        """Return the readings of a line. Raises ValueError, and IndexError for too few columns."""
        found = []
        for at, metric in self.values.items():
            if cells[at] or not self.is_wide:
                device, name = (
                    each if isinstance(each, str) else json.dumps(cells[each])
                    for each in (self.device, metric)
                )
                ts, value = _ts_json(cells[self.time], zone), _value_json(cells[at])
                found.append(f'{{"device_id":{device},"metric":{name},"ts":{ts},"value":{value}}}')
        return found


@dataclass
class CsvFile:
    """A CSV, and where its readings are.

    `columns` has the column of `time`, `device`, `metric` and `value`. Without `value` the file is
    wide: each other word is a metric, with its column. If there is none, each column is a metric
    whose first line has a number or nothing; the others are `not_read`. `device_id` and `metric`
    are for files without such a column.
    After `batches` is exhausted, `rows` is the number of readings and `bad_rows` that of invalid
    lines; `bad` lists the first `bad_shown_max` of these as (line, why).
    """

    path: Path
    device_id: str | None
    metric: str | None
    zone: tzinfo
    columns: Mapping[str, str]
    bad_shown_max: int = 10
    rows: int = 0
    bad_rows: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)

    def batches(self, rows_max: int) -> Iterator[Batch]:
        """Yield the file in batches of `rows_max`, or of one line with more. Raises CsvError."""
        items: list[str] = []
        lines: list[int] = []
        try:
            with self.path.open("rb") as file:
                for number, found in self._lines_of(file):
                    if items and len(items) + len(found) > rows_max:
                        yield Batch(f"[{','.join(items)}]".encode(), lines)
                        items, lines = [], []
                    items += found
                    lines += [number] * len(found)
                    self.rows += len(found)
        except OSError as error:
            raise CsvError(f"cannot read {self.path}: {error.strerror}") from error
        if items:
            yield Batch(f"[{','.join(items)}]".encode(), lines)

    def _lines_of(self, file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of each valid line, and its readings."""
        header = list[str]()
        layout, separator = None, ","
        for number, raw in enumerate(_lines(file), 1):
            if not raw.strip():
                continue
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")  # a byte order mark
                separator = separator if header else max(SEPARATORS, key=text.count)
                (row,) = csv.reader([text], delimiter=separator, strict=True)
                cells = [each.strip() for each in row]
                if not header:
                    header = cells
                    self._layout(header, header)
                    continue
                if len(cells) > len(header):
                    raise ValueError("has more columns than the header: a decimal comma?")
                layout = layout or self._layout(header, cells)
                yield number, layout.items(cells, self.zone)
            except (ValueError, csv.Error, IndexError) as error:
                self._note(number, error)
        if not header:
            raise CsvError(f"{self.path} has no header: its first line must name the columns")

    def _layout(self, header: list[str], first: list[str]) -> _Layout:
        """Find the columns; `first` is the first line with values. Raises CsvError."""
        at = self._places(header)
        values: dict[int, int | str] = {at[each]: json.dumps(each) for each in at.keys() - ROLES}
        if (self.device_id is None) == ("device" not in at):
            raise CsvError("whose readings are these? --device NAME, or --columns device=COLUMN")
        if (self.metric is not None) + ("metric" in at) != ("value" in at) or (
            "value" in at and values
        ):
            raise CsvError("a column value needs --metric NAME or a column metric, and no other")
        if "value" in at:
            values = {at["value"]: at.get("metric", json.dumps(self.metric))}
        elif not values:
            others = [place for place in range(len(header)) if place not in at.values()]
            values = {
                place: json.dumps(name)
                for place, name in enumerate(header)
                if place in others and name and header.count(name) == 1
                if not first[place] or _NUMBER.fullmatch(first[place])
            }
            self.not_read = [header[place] for place in others if place not in values]
        return _Layout(
            time=at["time"],
            device=at.get("device", json.dumps(self.device_id)),
            values=values,
            is_wide="value" not in at,
        )

    def _places(self, header: list[str]) -> dict[str, int]:
        """Return the places of the columns that have a word."""
        names = [each.lower() for each in header]
        named = {"time": "timestamp", **self.columns}
        for role, column in named.items():
            if names.count(column.lower()) != 1:
                raise CsvError(
                    f"{self.path} must have one column {column!r}; its header is "
                    f"{', '.join(header)[:200]!r}. Name the right one: --columns {role}=COLUMN"
                )
        return {role: names.index(column.lower()) for role, column in named.items()}

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
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return repr(float(text))
    raise ValueError(f"{text[:60]!r} is not a number")


def columns_of(text: str) -> dict[str, str]:
    """Return `time=at,device=id` as words and columns. Raises ValueError."""
    pairs = [each.strip().partition("=") for each in text.split(",")]
    if not all(word and column for word, _, column in pairs):
        raise ValueError(f"{text!r}: write WORD=COLUMN, with commas between them")
    return {word: column for word, _, column in pairs}


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
