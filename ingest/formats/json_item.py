"""One JSON item of a post into readings, with every error named. The slow path, some 6 us an item.

json_post.py takes posts as a whole, and comes here with items that it could not take as they are.
This file alone decides what is an error: what it finds without fault is a reading.
The item must be JSON that msgspec has accepted, and UTF-8.
"""

from __future__ import annotations

import json
import math
from collections import Counter

from ingest.formats.post import ItemError, Post, too_many
from ingest.formats.timestamp import Fault, number_us, shown, text_us
from ingest.model.reading import Reading, name_fault
from ingest.system.clock import rfc3339

FIELDS = ("device_id", "metric", "ts", "value", "values")
FIELD_CHARACTERS_MAX = 64  # of a field's name in an error
INT_DIGITS_MAX = 400  # a float64 has at most 309; int() takes time that grows with the square


class _Invalid(Exception):
    """The item as a whole is no reading."""

    def __init__(self, field: str | None, code: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.code = code
        self.message = message


class _Object(list[tuple[str, object]]):
    """A JSON object as its pairs: a dict would hide repeated names."""


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) <= INT_DIGITS_MAX else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_Object, parse_int=_int)


def read_item(original: bytes, item: int, post: Post) -> tuple[list[Reading], list[ItemError]]:
    """Return the readings and the errors of one item; at least one of either.

    Raises RecursionError if it is nested too deeply to be read, Refused `too_many_readings`.
    """
    errors: list[ItemError] = []
    try:
        fields = _fields(_DECODER.decode(original.decode()), post.ignore_unknown)
        device_id = _name(fields, "device_id")
        ts_us = _ts_us(fields, post)
        if "values" not in fields:
            reading = _single(fields, ts_us, device_id)
            return [reading], errors
        readings: list[Reading] = []
        entries = _entries(fields)
        if len(entries) > post.rules.post_rows_max:
            raise too_many(post.rules.post_rows_max, f"`values` has {len(entries)} entries")
        times = Counter(metric for metric, _ in entries)
        for metric, value in dict(entries).items():
            entry = _entry(metric, value, times[metric])
            if isinstance(entry, float):
                readings.append(Reading(ts_us, device_id, metric, entry))
            else:
                errors.append(ItemError(item, f"values.{_cut(metric)}", *entry, original))
    except _Invalid as fault:
        return [], [ItemError(item, fault.field, fault.code, fault.message, original)]
    return readings, errors


def _fields(value: object, ignore_unknown: bool) -> dict[str, object]:
    """Return the fields of the item by name, every one known and there once."""
    if not isinstance(value, _Object):
        raise _Invalid(None, "not_an_object", f"is {_kind(value)}; an item is a JSON object")
    fields: dict[str, object] = {}
    for name, content in value:
        if name in fields:
            raise _Invalid(_cut(name), "repeated_field", "appears twice in the item")
        if name in FIELDS:
            fields[name] = content
        elif not ignore_unknown:
            message = f"is not a field of a reading; those are {', '.join(FIELDS)}"
            raise _Invalid(_cut(name), "unknown_field", message)
    return fields


def _name(fields: dict[str, object], field: str) -> str:
    name = fields.get(field)
    if field not in fields:
        raise _Invalid(field, "missing_field", "is missing")
    if not isinstance(name, str):
        raise _Invalid(field, "wrong_type", f"is {_kind(name)}; must be a string")
    fault = name_fault(name)
    if fault is not None:
        raise _Invalid(field, *fault)
    return name


def _ts_us(fields: dict[str, object], post: Post) -> int:
    if "ts" not in fields:
        return post.received_us
    ts = fields["ts"]
    if isinstance(ts, str):
        ts_us = text_us(ts)
    elif isinstance(ts, int | float) and not isinstance(ts, bool):
        ts_us = number_us(ts, post.precision)
    else:
        message = f"is {_kind(ts)}; must be RFC 3339 text or a number; leave it out for `now`"
        raise _Invalid("ts", "wrong_type", message)
    if isinstance(ts_us, int):
        fault = _window_fault(ts_us, post)
        if fault is None:
            return ts_us
        ts_us = fault
    raise _Invalid("ts", *ts_us)


def _window_fault(ts_us: int, post: Post) -> Fault | None:
    oldest_us = post.rules.ts_min_us
    newest_us = post.received_us + post.rules.ts_ahead_us_max
    if ts_us < oldest_us:
        return "ts_too_old", f"is {_when(ts_us)}; the oldest accepted is {_when(oldest_us)}"
    if ts_us > newest_us:
        return "ts_in_future", f"is {_when(ts_us)}; the newest accepted is {_when(newest_us)}"
    return None


def _single(fields: dict[str, object], ts_us: int, device_id: str) -> Reading:
    if "metric" not in fields and "value" not in fields:
        message = "is missing (`metric` and `value`, or `values`)"
        raise _Invalid("metric", "missing_field", message)
    metric = _name(fields, "metric")
    if "value" not in fields:
        raise _Invalid("value", "missing_field", "is missing")
    value = _value(fields["value"])
    if not isinstance(value, float):
        raise _Invalid("value", *value)
    return Reading(ts_us, device_id, metric, value)


def _entries(fields: dict[str, object]) -> _Object:
    for field in ("metric", "value"):
        if field in fields:
            raise _Invalid(field, "both_shapes", "cannot stand beside `values`")
    values = fields["values"]
    if not isinstance(values, _Object):
        message = f"is {_kind(values)}; must be an object of metric and value"
        raise _Invalid("values", "wrong_type", message)
    if not values:
        raise _Invalid("values", "values_empty", "has no entry")
    return values


def _entry(metric: str, value: object, times: int) -> float | Fault:
    """Judge one entry of `values`. Of a repeated one nobody knows which is meant: none is kept."""
    if times > 1:
        return "repeated_field", f"appears {times} times in `values`"
    return name_fault(metric) or _value(value)


def _value(value: object) -> float | Fault:
    if not isinstance(value, int | float):
        return "wrong_type", f"is {_kind(value)}; must be a number, true or false"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        return "value_out_of_range", "does not fit into a float64 (about 1.8e308 at most)"
    return number + 0.0  # -0.0 becomes 0.0


def _when(ts_us: int) -> str:
    try:
        return rfc3339(ts_us)
    except OverflowError:
        return "after the year 9999" if ts_us > 0 else "before the year 1"


def _cut(name: str) -> str:
    return name if len(name) <= FIELD_CHARACTERS_MAX else name[:FIELD_CHARACTERS_MAX] + ".."


def _kind(value: object) -> str:
    """Name the JSON type of a value, and show it if it is short text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the string {shown(value)}"
    if isinstance(value, int | float):
        return "a number"
    return "an object" if isinstance(value, _Object) else "an array"
