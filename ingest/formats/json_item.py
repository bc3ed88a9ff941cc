"""The careful path for JSON: one item to its readings, with a name for every error.

It costs some 6 us an item. json_post.py calls it for items that the fast path did not accept. This
file alone decides which item is invalid. Before the call, msgspec has accepted the item as JSON,
and it is UTF-8.
"""

from __future__ import annotations

import json
import math
from collections import Counter

from ingest.formats.post import ItemError, Post, too_many
from ingest.formats.timestamp import Fault, number_us, text_us
from ingest.model.reading import Reading, name_fault
from ingest.system.clock import rfc3339
from ingest.system.words import quoted

FIELDS = ("device_id", "metric", "ts", "value", "values")
FIELD_CHARACTERS_MAX = 64  # of a field's name in an error
INT_DIGITS_MAX = 400  # a float64 has at most 309; the time of int() grows with their square


class _Invalid(Exception):
    """The item as a whole is invalid. Arguments: field or None, code, message."""


class _Object(list[tuple[str, object]]):
    """A JSON object as a list of pairs; a dict would hide repeated names."""


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) <= INT_DIGITS_MAX else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_Object, parse_int=_int)


def read_item(original: bytes, item: int, post: Post) -> tuple[list[Reading], list[ItemError]]:
    """Return the readings and the errors of one item; together at least one.

    Raises RecursionError if it is nested too deeply to be read, Refused (`too_many_readings`).
    """
    try:
        fields = _fields(_DECODER.decode(original.decode()), post.ignore_unknown)
        device_id = _name(fields, "device_id")
        ts_us = _ts_us(fields, post)
        if "values" not in fields:
            return [_single(fields, ts_us, device_id)], []
        entries = _entries(fields)
    except _Invalid as fault:
        field, code, message = fault.args
        return [], [ItemError(item, field, code, message, original)]
    if len(entries) > post.rules.post_rows_max:
        raise too_many(post.rules.post_rows_max, f"`values` has {len(entries)} entries")
    readings: list[Reading] = []
    errors: list[ItemError] = []
    times = Counter(metric for metric, _ in entries)
    for metric, value in dict(entries).items():
        entry = _entry(metric, value, times[metric])
        if isinstance(entry, float):
            readings.append(Reading(ts_us, device_id, metric, entry))
        else:
            errors.append(ItemError(item, f"values.{_cut(metric)}", *entry, original))
    return readings, errors


def _fields(value: object, ignore_unknown: bool) -> dict[str, object]:
    """Return the fields of the item by name. Each is known and stands there once."""
    if not isinstance(value, _Object):
        raise _Invalid(None, "not_an_object", f"is {_kind(value)}; an item is a JSON object")
    fields: dict[str, object] = {}
    for name, content in value:
        if name in fields:
            raise _Invalid(_cut(name), "repeated_field", "appears twice in the item")
        if name in FIELDS:
            fields[name] = content
        elif not ignore_unknown:
            message = f"is not a field of a reading; the fields are {', '.join(FIELDS)}"
            raise _Invalid(_cut(name), "unknown_field", message)
    return fields


def _name(fields: dict[str, object], field: str) -> str:
    name = _required(fields, field)
    if not isinstance(name, str):
        raise _Invalid(field, "wrong_type", f"is {_kind(name)}; must be a string")
    fault = name_fault(name)
    if fault is not None:
        raise _Invalid(field, *fault)
    return name


def _required(fields: dict[str, object], field: str) -> object:
    if field not in fields:
        raise _Invalid(field, "missing_field", "is missing")
    return fields[field]


def _ts_us(fields: dict[str, object], post: Post) -> int:
    if "ts" not in fields:
        return post.received_us
    ts = fields["ts"]
    if isinstance(ts, str):
        ts_us = text_us(ts)
    elif isinstance(ts, int | float) and not isinstance(ts, bool):
        ts_us = number_us(ts, post.precision)
    else:
        message = (
            f"is {_kind(ts)}; must be an RFC 3339 string or a number; without `ts`, the reading "
            "gets the time of receipt"
        )
        raise _Invalid("ts", "wrong_type", message)
    if not isinstance(ts_us, int):
        raise _Invalid("ts", *ts_us)
    oldest_us = post.rules.ts_min_us
    newest_us = post.received_us + post.rules.ts_ahead_us_max
    if ts_us < oldest_us:
        message = f"is {_when(ts_us)}; the oldest accepted time is {_when(oldest_us)}"
        raise _Invalid("ts", "ts_too_old", message)
    if ts_us > newest_us:
        message = f"is {_when(ts_us)}; the newest accepted time is {_when(newest_us)}"
        raise _Invalid("ts", "ts_in_future", message)
    return ts_us


def _single(fields: dict[str, object], ts_us: int, device_id: str) -> Reading:
    if "metric" not in fields and "value" not in fields:
        message = "is missing; an item has `metric` and `value`, or `values`"
        raise _Invalid("metric", "missing_field", message)
    metric = _name(fields, "metric")
    value = _value(_required(fields, "value"))
    if not isinstance(value, float):
        raise _Invalid("value", *value)
    return Reading(ts_us, device_id, metric, value)


def _entries(fields: dict[str, object]) -> _Object:
    for field in ("metric", "value"):
        if field in fields:
            raise _Invalid(field, "both_shapes", "is not allowed together with `values`")
    values = fields["values"]
    if not isinstance(values, _Object):
        message = f"is {_kind(values)}; must be an object with a number for each metric"
        raise _Invalid("values", "wrong_type", message)
    if not values:
        raise _Invalid("values", "values_empty", "has no entry")
    return values


def _entry(metric: str, value: object, times: int) -> float | Fault:
    """Check one entry of `values`. If a name is repeated, no value of it is kept."""
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
        return f"the string {quoted(value)}"
    if isinstance(value, int | float):
        return "a number"
    return "an object" if isinstance(value, _Object) else "an array"
