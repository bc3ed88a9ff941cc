"""Declared tables: several values of one device and time become one row, with a column for each.

A table takes metrics by their names (`climate`: `temperature`, `humidity`), or the fields of a
measurement of line protocol (`cpu`: `usage_idle`, `usage_user`); then the other tags are its column
`series`. The home of a reading depends on its metric and its time alone, never on how it was
posted: so a repeated reading is always found. What no table takes is a row of `readings`.
Does not: know the bytes of a row (moments.py), or where the declarations come from.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from ingest.model.reading import NAME_CHARACTERS_MAX

VALUE = "value"  # a field of this name is not in the metric, see formats/lines/keys.py
ALL_READINGS = "all_readings"  # the view of `readings` and of all declared tables
HOMES_KEPT_MAX = 10_000  # metrics; a home is found again in some 2 us
# Measurement and field, and then the other tags: up to the first comma that no `\` stands before.
_STEM = re.compile(r"((?:[^\\,]|\\.)+)(?:,(.+))?", re.DOTALL)
_FIELD = re.compile(r"((?:[^\\]|\\.)+)\.((?:[^\\.]|\\.)+)", re.DOTALL)  # behind the last such point


class ColumnTable(NamedTuple):
    """One declared table. With an empty `measurement` its columns are metrics, else fields.

    `since_us[i]`: column i takes readings from this time on (Unix microseconds). Older ones stay in
    `readings` for ever: an earlier try may have stored them there.
    """

    name: str
    measurement: str
    columns: tuple[str, ...]
    since_us: tuple[int, ...]

    def stem(self, column: str) -> str:
        """Return the metric of a column, without the tags of its series."""
        return stem_of(self.measurement, column)


def stem_of(measurement: str, column: str) -> str:
    """Return the metric of a column, without tags."""
    if not measurement:
        return column
    return measurement if column == VALUE else f"{measurement}.{column}"


def metric_of(measurement: str, column: str, series: str) -> str:
    """Return the metric of a value in a row of such a table."""
    stem = stem_of(measurement, column)
    return f"{stem},{series}" if series else stem


def measurement_of(metric: str) -> tuple[str, str, str]:
    """Return measurement, column and series that a metric's name tells; "" for what it lacks."""
    parts = _STEM.fullmatch(metric)
    if parts is None:
        return "", metric, ""
    field = _FIELD.fullmatch(parts[1])
    if field is not None and field[2] != VALUE:  # its metric would be the measurement alone
        return field[1], field[2], parts[2] or ""
    return (parts[1], VALUE, parts[2]) if parts[2] else ("", metric, "")


class ColumnHome(NamedTuple):
    """Where a metric is stored from `since_us` on: table, index of the column, series."""

    table: ColumnTable
    column: int
    since_us: int
    series: str


class Homes:
    """Where metrics are stored in one era. `kept` has those that were asked for before.

    It is false if no table takes anything then.
    """

    def __init__(self, tables: Iterable[ColumnTable], until_us: float) -> None:
        self._by_stem = {
            table.stem(column): (table, place)
            for table in tables
            for place, column in enumerate(table.columns)
            if table.since_us[place] <= until_us
        }
        self._kept: dict[str, ColumnHome | None] = {}

    def __bool__(self) -> bool:
        return bool(self._by_stem)

    def home(self, metric: str) -> ColumnHome | None:
        """Return where a metric is stored, or None: in `readings`."""
        try:
            return self._kept[metric]
        except KeyError:
            if len(metric) > NAME_CHARACTERS_MAX:
                return None  # it is no metric
            if len(self._kept) >= HOMES_KEPT_MAX:
                self._kept.clear()
            home = self._kept[metric] = self._find(metric)
            return home

    def _find(self, metric: str) -> ColumnHome | None:
        found, series = self._by_stem.get(metric), ""
        if found is None:
            parts = _STEM.fullmatch(metric) if "," in metric else None
            if parts is None or not parts[2]:
                return None
            found, series = self._by_stem.get(parts[1]), parts[2]
            if found is None or not found[0].measurement:
                return None
        table, place = found
        return ColumnHome(table, place, table.since_us[place], series)


class Tables:
    """All declared tables of a process.

    Two columns never take the same metric: who reads the declarations has made sure of it. An era
    is a time in which no column begins to take readings: so in one era a metric has one home.
    """

    def __init__(self, tables: Iterable[ColumnTable] = ()) -> None:
        self.all = tuple(tables)
        self._begins_us = sorted({*chain.from_iterable(table.since_us for table in self.all)})
        self._eras = [Homes(self.all, begin_us) for begin_us in (-math.inf, *self._begins_us)]

    def __bool__(self) -> bool:
        return bool(self.all)

    def home(self, metric: str) -> ColumnHome | None:
        """Return where a metric is stored from `since_us` on, or None: always in `readings`."""
        return self._eras[-1].home(metric)

    def era(self, oldest_us: int, newest_us: int) -> Homes | None:
        """Return the homes of all readings between two times, or None: they are of several eras."""
        era = bisect_right(self._begins_us, oldest_us)
        is_one = era == bisect_right(self._begins_us, newest_us)
        return self._eras[era] if is_one else None


NO_TABLES = Tables()
