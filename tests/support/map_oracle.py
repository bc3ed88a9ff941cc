"""An oracle for mappings: it interprets a table for a parsed document, one step after another.

It shares no code with ingest/formats/map_*.py. It knows what a valid table says, and is slow.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from fractions import Fraction
from typing import Any, NamedTuple

NOTHING = object()
Reading = tuple[int, str, str, float]


class Expected(NamedTuple):
    """What one document becomes: readings in any order, codes of faults, rows left out."""

    readings: list[Reading]
    faults: list[str]
    ignored: int
    rounded: int


class Oracle:
    """Interprets one table. Times must be between `least_us` and `most_us`."""

    def __init__(
        self,
        table: dict[str, Any],
        roots: dict[str, Any],
        received_us: int,
        least_us: int,
        most_us: int,
    ) -> None:
        self.table, self.roots, self.received_us = table, roots, received_us
        self.least_us, self.most_us = least_us, most_us

    def read(self, document: Any) -> Expected:
        """Read one document."""
        rows = [("", document)]
        if "rows" in self.table:
            rows = self.entries(self.table["rows"], document, document, "")
        readings: list[Reading] = []
        faults: list[str] = []
        ignored = rounded = 0
        is_meant, has_device = False, True
        for key, row in rows:
            if not self.is_asked_for(row, document, key):
                ignored += 1
                continue
            found, bad, inexact, left_out, named = self.row(row, document, key)
            readings += found
            faults += bad
            rounded += inexact
            is_meant = is_meant or left_out
            has_device = has_device and named
        if not readings and not faults and not is_meant and not 0 < ignored == len(rows):
            faults.append("no_value" if has_device else "no_device")
        return Expected(readings, faults, ignored, rounded)

    def row(
        self, row: Any, document: Any, key: str
    ) -> tuple[list[Reading], list[str], int, bool, bool]:
        """Read one row: readings, faults, rounded, whether one was left out, has a device."""
        device = self.device(row, document, key)
        values, faults, rounded, left_out = self.values(row, document, key)
        if not values:
            return [], faults, rounded, left_out, bool(device)
        if not device:
            return [], [*faults, "no_device"], rounded, left_out, True
        ts_us = self.time(row, document, key)
        if isinstance(ts_us, str):
            return [], [*faults, ts_us], rounded, left_out, True
        readings = []
        for metric, value in values.items():
            if metric:
                readings.append((ts_us, device, metric, value))
            else:
                faults.append("name_empty")
        return readings, faults, rounded, left_out, True

    def device(self, row: Any, document: Any, key: str) -> str:
        """Return the device, "" without one."""
        device = self.first(self.table.get("device", "$token.device"), row, document, key)
        return name_of(device) or name_of(self.roots.get("token", {}).get("device", ""))

    def is_asked_for(self, row: Any, document: Any, key: str) -> bool:
        """Whether `when` asks for a row."""
        for path, wanted in self.table.get("when", {}).items():
            found = self.follow(path, row, document, key)
            if found is NOTHING:
                return False
            if wanted != "*" and not any(
                type(found) is type(each) and found == each
                for each in (wanted if isinstance(wanted, list) else [wanted])
            ):
                return False
        return True

    def values(
        self, row: Any, document: Any, key: str
    ) -> tuple[dict[str, float], list[str], int, bool]:
        """Return the numbers of a row by metric."""
        pairs: list[tuple[str, Any]] = []
        faults: list[str] = []
        for text in as_list(self.table.get("values", ".")):
            many = text[-2:] in ("[]", "{}")
            at = self.follow(text[:-2] or "." if many else text, row, document, key)
            if at is NOTHING or (not many and "value" not in self.table and type(at) is not dict):
                continue
            if "value" in self.table:
                entries = self.each(text, at, key) if many else [(key, at)]
                for name, entry in entries:
                    value = self.first(self.table["value"], entry, document, name)
                    metric = name_of(self.first(self.table["metric"], entry, document, name))
                    if self.number(value) is None:
                        continue
                    if metric:
                        pairs.append((metric, value))
                    else:
                        faults.append("name_empty")
            else:
                for name, value in leaves(at):
                    if name in self.own_names() or self.number(value) is None:
                        continue
                    pattern = self.table.get("metric")
                    metric = (
                        name
                        if pattern is None
                        else name_of(self.first(pattern, row, document, name))
                    )
                    if metric or pattern is None:
                        pairs.append((metric, value))
                    else:
                        faults.append("name_empty")
            break
        return self.judged(pairs, faults)

    def judged(
        self, pairs: list[tuple[str, Any]], faults: list[str]
    ) -> tuple[dict[str, float], list[str], int, bool]:
        """Leave out what is not wanted, does not fit, or has a metric that stands twice."""
        values: dict[str, float] = {}
        twice: set[str] = set()
        rounded, left_out = 0, False
        for metric, value in pairs:
            globs = as_list(self.table.get("only", []))
            if (globs and not any(fnmatch.fnmatchcase(metric, each) for each in globs)) or any(
                fnmatch.fnmatchcase(metric, each) for each in as_list(self.table.get("except", []))
            ):
                left_out = True
                continue
            exact = self.number(value)
            assert exact is not None
            if exact == math.inf or abs(exact) >= Fraction(2) ** 1024:
                faults.append("value_out_of_range")
                continue
            number = float(exact) + 0.0
            rounded += isinstance(exact, int) and number != exact
            if metric in values:
                twice.add(metric)
            values[metric] = number
        for metric in twice:
            del values[metric]
            faults.append("repeated_field")
        return values, faults, rounded, left_out

    def own_names(self) -> set[str]:
        """Return the names below the values that are the device or the time."""
        texts = [*as_list(self.table.get("device", [])), *as_list(self.table.get("time", []))]
        paths = [path for text in texts for path in re.findall(r"{(.+?)}", text) or [text]]
        found: set[str] = set()
        for top in as_list(self.table.get("values", ".")):
            for path in paths:
                if top == ".":
                    found.add(path)
                elif path.startswith(f"{top}."):
                    found.add(path.removeprefix(f"{top}."))
        return found

    def number(self, value: Any) -> Any:
        """Return a value as an exact number, None if it is none."""
        if value is True or value is False:
            return int(value)
        if isinstance(value, int):
            return value
        if isinstance(value, float):
            return value if math.isinf(value) else Fraction(value)
        if isinstance(value, str) and self.table.get("numeric_strings"):
            text = value.strip(" \t\n\r\v\f")
            if re.fullmatch(r"[+-]?[0-9]+", text):
                return int(text)
            if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
                return Fraction(float(text)) if math.isfinite(float(text)) else math.inf
        return None

    def time(self, row: Any, document: Any, key: str) -> int | str:
        """Return the time in microseconds, or the code of a fault. Texts are digits or RFC 3339."""
        value = self.first(self.table.get("time", []), row, document, key)
        if value is NOTHING or value in ("", "now"):
            return self.received_us
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value):
            value = int(value)
        if isinstance(value, str) and value in TIMES:
            ts_us = TIMES[value]
        elif isinstance(value, bool) or not isinstance(value, int | float):
            return "ts_unreadable"
        else:
            parts: dict[str, Fraction | int] = {
                "s": 10**6,
                "ms": 1000,
                "us": 1,
                "ns": Fraction(1, 1000),
            }
            unit = self.table.get("time_unit") or "utc"
            if unit == "utc":
                size = abs(value)
                unit = next(
                    (u for u, most in (("s", 1e11), ("ms", 1e14), ("us", 1e17)) if size < most),
                    "ns",
                )
            ts_us = round(Fraction(value) * parts[unit])
        if ts_us < self.least_us:
            return "ts_too_old"
        return "ts_in_future" if ts_us > self.most_us else ts_us

    def first(self, texts: Any, row: Any, document: Any, key: str) -> Any:
        """Return what the first of these paths or texts leads to."""
        for text in as_list(texts):
            found = self.text(text, row, document, key)
            if found is not NOTHING:
                return found
        return NOTHING

    def text(self, text: str, row: Any, document: Any, key: str) -> Any:
        """Follow a path, or put a text together."""
        if text.startswith("="):
            return text[1:] or NOTHING
        if "{" not in text:
            return self.follow(text, row, document, key)
        names = [
            name_of(self.follow(each, row, document, key)) for each in re.findall("{(.+?)}", text)
        ]
        if not all(names):
            return NOTHING
        given = iter(names)
        return re.sub("{.+?}", lambda _found: next(given), text)

    def follow(self, path: str, row: Any, document: Any, key: str) -> Any:
        """Follow a path without quotes."""
        if path == "$key":
            return key or NOTHING
        at = row
        if path.startswith("^"):
            at, path = document, path[1:] or "."
        elif path.startswith("$"):
            at, path = self.roots, path[1:]
            if path.startswith("topic."):
                levels = ["", *self.roots.get("topic", "").split("/")]
                return (levels[int(path[6:])] if int(path[6:]) < len(levels) else "") or NOTHING
        for name in [] if path == "." else path.split("."):
            if isinstance(at, dict) and name in at:
                at = at[name]
            elif isinstance(at, list) and name.isdigit() and int(name) < len(at):
                at = at[int(name)]
            else:
                return NOTHING
        return NOTHING if at is None else at

    def entries(self, text: str, row: Any, document: Any, key: str) -> list[tuple[str, Any]]:
        """Return the rows at a path that ends in [] or {}."""
        return self.each(text, self.follow(text[:-2] or ".", row, document, key), key, rows=True)

    def each(self, text: str, at: Any, key: str, *, rows: bool = False) -> list[tuple[str, Any]]:
        """Return the members of a list or an object, each with its name."""
        if text.endswith("[]") and isinstance(at, list):
            return [("" if rows else key, each) for each in at]
        if text.endswith("{}") and isinstance(at, dict):
            return [(name if rows else name or key, each) for name, each in at.items()]
        return []


# Texts of times that the oracle knows.
TIMES = {"2026-05-01T12:00:00Z": 1777636800000000, "2026-05-01T14:00:00.5+02:00": 1777636800500000}


def leaves(top: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return all that is no object, with the names of its objects before it."""
    found = []
    for name, value in top.items():
        if isinstance(value, dict):
            found += leaves(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def name_of(value: Any) -> str:
    """Return a text or a number as a name."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, int) and abs(value) >= 2**64:
        return ""
    return "" if value in (math.inf, -math.inf) else str(value)


def as_list(texts: Any) -> list[str]:
    """Return a text or a list of texts as a list."""
    return [texts] if isinstance(texts, str) else list(texts)


def parsed(body: bytes) -> Any:
    """Parse JSON with exact integers; beyond 64 bits our parser makes a float of them."""
    return json.loads(body, parse_int=lambda text: _whole(int(text)))


def _whole(number: int) -> int | float:
    return number if -(2**63) <= number < 2**64 else float(number)
