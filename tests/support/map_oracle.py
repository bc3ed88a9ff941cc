"""An oracle for mappings: it interprets a table for a parsed document, one step after another.

It shares no code with ingest/formats/map_*.py. It knows what a valid table says, and is slow. Its
times, numbers and names are in map_oracle_values.py, the documents of a body in
map_oracle_bodies.py.
"""

from __future__ import annotations

import datetime
import fnmatch
import math
import re
import unicodedata
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
    """Interprets one table. Times must be between `least_us` and `most_us`.

    The sender may not speak for the device `forbidden`.
    """

    def __init__(
        self,
        table: dict[str, Any],
        roots: dict[str, Any],
        received_us: int,
        least_us: int,
        most_us: int,
        *,
        forbidden: str = "",
    ) -> None:
        self.table, self.roots, self.received_us = table, roots, received_us
        self.forbidden = forbidden
        self.least_us, self.most_us = least_us, most_us

    def read(self, document: Any) -> Expected:
        """Read one document."""
        self.roots = {**self.roots, "form": document}
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
        fault = fault_of_name(device) or ("not_allowed" if device == self.forbidden else "")
        ts_us = fault or self.time(row, document, key)
        if isinstance(ts_us, str):
            return [], [*faults, ts_us], rounded, left_out, True
        readings = []
        tail = self.tail(row, document, key)
        for metric, value in values.items():
            fault = fault_of_name(metric + tail)
            if fault:
                faults.append(fault)
            else:
                readings.append((ts_us, device, metric + tail, value))
        return readings, faults, rounded, left_out, True

    def tail(self, row: Any, document: Any, key: str) -> str:
        """Return the tags of a row as they follow its metrics."""
        tags = self.first(self.table.get("tags", []), row, document, key)
        if not isinstance(tags, dict):
            return ""
        left_out = self.names_below(as_list(self.table["tags"]), self.paths("device"))
        return tags_of({name: each for name, each in tags.items() if name not in left_out})

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
                is_same(found, each) for each in (wanted if isinstance(wanted, list) else [wanted])
            ):
                return False
        return True

    def values(
        self, row: Any, document: Any, key: str
    ) -> tuple[dict[str, float], list[str], int, bool]:
        """Return the numbers of a row by metric."""
        pairs: list[tuple[str, Any]] = []
        faults: list[str] = []
        kinds = (dict, list) if self.table.get("lists") else (dict,)
        for text in as_list(self.table.get("values", ".")):
            many = text[-2:] in ("[]", "{}")
            at = self.follow(text[:-2] or "." if many else text, row, document, key)
            if at is NOTHING or (not many and "value" not in self.table and type(at) not in kinds):
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
                for name, value in leaves(at, kinds):
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

    def paths(self, *keys: str) -> list[str]:
        """Return the paths from the row in these keys."""
        texts = [text for key in keys for text in as_list(self.table.get(key, []))]
        paths = [path for text in texts for path in re.findall(r"{(.+?)}", text) or [text]]
        return [path for path in paths if path[0] not in ".^$="]

    def own_names(self) -> set[str]:
        """Return the names below the values that are the device or the time."""
        return self.names_below(
            as_list(self.table.get("values", ".")), self.paths("device", "time")
        )

    def names_below(self, tops: list[str], paths: list[str]) -> set[str]:
        """Return the rest of each path that begins with one of `tops`."""
        found = {path for path in paths if "." in tops}
        return found | {
            path.removeprefix(f"{top}.")
            for top in tops
            for path in paths
            if path.startswith(f"{top}.")
        }

    def number(self, value: Any) -> Any:
        """Return a value as an exact number, None if it is none."""
        return number_of(value, is_text=bool(self.table.get("numeric_strings")))

    def time(self, row: Any, document: Any, key: str) -> int | str:
        """Return the time in microseconds, or the code of a fault."""
        value = self.first(self.table.get("time", []), row, document, key)
        if value is NOTHING or value in ("", "now"):
            return self.received_us
        ts_us = time_of(value, self.table.get("time_unit"))
        if isinstance(ts_us, str):
            return ts_us
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


def as_list(texts: Any) -> list[str]:
    """Return a text or a list of texts as a list."""
    return [texts] if isinstance(texts, str) else list(texts)


UNITS = {"s": Fraction(10**6), "ms": Fraction(1000), "us": Fraction(1), "ns": Fraction(1, 1000)}
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII
)


def time_of(value: Any, unit: str | None) -> int | str:
    """Return a time in microseconds, or the code of a fault. `unit`: that of a number, or utc."""
    is_utc = unit == "utc"
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"-?[0-9]{1,20}", text):
            value = int(text)
        elif re.fullmatch(r"-?[0-9]{1,20}\.[0-9]{0,20}", text):
            value = float(text)
        else:
            return rfc3339(text, is_utc=is_utc)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "ts_unreadable"
    size = abs(value)
    if size > 10**21:
        return "ts_in_future" if value > 0 else "ts_too_old"
    if unit is None or is_utc:
        steps = (("s", 5e9), ("ms", 5e12), ("us", 5e15))
        unit = next((name for name, most in steps if size < most), "ns")
    return round(Fraction(value) * UNITS[unit])


def rfc3339(text: str, *, is_utc: bool) -> int | str:
    """Read the text of a time."""
    found = RFC3339.fullmatch(text)
    if found is None:
        return "ts_unreadable"
    *parts, fraction, zone = found.groups()
    numbers = [int(part) for part in parts]
    is_leap = numbers[5] == 60
    numbers[5] -= is_leap
    try:
        moment = datetime.datetime(*numbers, tzinfo=datetime.UTC)  # type: ignore[arg-type,misc]
    except ValueError:
        return "ts_unreadable"
    if zone is None and not is_utc:
        return "ts_without_offset"
    minutes = 0
    if zone is not None and zone not in "Zz":
        if int(zone[1:3]) > 23 or int(zone[4:]) > 59:
            return "ts_unreadable"
        minutes = int(zone[0] + "1") * (int(zone[1:3]) * 60 + int(zone[4:]))
    seconds = (moment - EPOCH) // datetime.timedelta(seconds=1) + is_leap - minutes * 60
    return round((seconds + Fraction(f"0{fraction or '.0'}")) * 10**6)


def number_of(value: Any, *, is_text: bool) -> Any:
    """Return a value as an exact number, None if it is none; with `is_text` also that in a text."""
    if value is True or value is False:
        return int(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isinf(value) else Fraction(value)
    if isinstance(value, str) and is_text:
        text = value.strip()
        if re.fullmatch(r"[+-]?[0-9]+", text):
            return int(text)
        if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
            return Fraction(float(text)) if math.isfinite(float(text)) else math.inf
    return None


def is_same(found: Any, wanted: Any) -> bool:
    """Whether a value is the one of `when`. A number or a boolean may stand in a text."""
    if isinstance(found, str):
        return found == (str(wanted).lower() if isinstance(wanted, bool) else str(wanted))
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    return bool(found == wanted)


def leaves(top: Any, kinds: tuple[type, ...], prefix: str = "") -> list[tuple[str, Any]]:
    """Return all that is of none of these kinds, with the names and places of what it is in."""
    found = []
    for name, value in top.items() if isinstance(top, dict) else enumerate(top):
        if isinstance(value, kinds):
            found += leaves(value, kinds, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def name_of(value: Any) -> str:
    """Return a text or a number as a name."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, int) and abs(value) >= 2**64:
        return ""
    return "" if value in (math.inf, -math.inf) else str(value)


def fault_of_name(name: str) -> str:
    """Return the code of what is wrong with the name of a device or a metric."""
    if not name:
        return "name_empty"
    if len(name) > 256 or len(name.encode()) > 512:
        return "name_too_long"
    is_control = any(unicodedata.category(each) == "Cc" for each in name)
    return "name_control_character" if is_control else ""


def tags_of(tags: dict[str, Any]) -> str:
    """Return tags as they follow a metric: sorted, with a backslash before what has a meaning."""
    texts = sorted((name, name_of(value)) for name, value in tags.items() if name_of(value))
    return "".join(f",{_marked(name)}={_marked(value)}" for name, value in texts)


def _marked(text: str) -> str:
    return "".join("\\" + each if each in ",=\\" else each for each in text)
