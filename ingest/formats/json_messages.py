"""The words for the faults of an item, and hints at what a client may have meant.

Does not: decide what is a fault. A message is made from the item once its fault is known.
"""

from __future__ import annotations

from typing import Any

from ingest.formats.json_whole import FIELDS
from ingest.formats.post import Post
from ingest.formats.timestamp import number_us, text_us
from ingest.model.codes import NOT_ALLOWED
from ingest.model.reading import name_fault
from ingest.system.clock import rfc3339
from ingest.system.words import quoted

# The field, cut off if it is long (None: the item as a whole); the code; the whole name, if it is
# an unknown field or a metric in `values`.
Fault = tuple[str | None, str, str | None]

NAME_CHARACTERS_MAX = 20  # of names that hints are made for

_OTHER_NAMES = {
    "device_id": "deviceid id device dev deviceuid deviceeui deveui sensor sensorid node nodeid "
    "station stationid machine host hostname serial mac uid uuid",
    "ts": "time timestamp datetime date t at when epoch measuredat recordedat createdat",
    "metric": "name key type kind measurement parameter quantity channel field measure",
    "value": "val v reading number result",
    "values": "fields metrics measurements readings sensors data",
}
_MEANT = {other: field for field, others in _OTHER_NAMES.items() for other in others.split()}
_TEXTS = {
    NOT_ALLOWED: "is not a device that the token of this post may speak for",
    "both_shapes": "is not allowed together with `values`",
    "values_empty": "has no entry",
    "value_out_of_range": "does not fit into a float64 (about 1.8e308 at most)",
}
_RULES = {
    None: "an item is a JSON object",
    "ts": "must be an RFC 3339 string or a number; without `ts`, the reading gets the time of "
    "receipt",
    "values": "must be an object with a number for each metric",
    "device_id": "must be a string",
    "metric": "must be a string",
}
_NUMBER = "must be a number, true or false"


class Pairs(list[tuple[str, Any]]):
    """A JSON object as a list of pairs; a dict would hide repeated names."""


def message_of(fault: Fault, item: Any, post: Post) -> str:
    """Return the message for a fault of a parsed item."""
    field, code, name = fault
    if code in _TEXTS:
        return _TEXTS[code]
    if field is None:
        return _is_kind(item, _RULES[None])
    if code.endswith("_field"):
        return _of_field(field, code, name, item)
    if code.startswith("name_"):
        found = name_fault(item[field] if name is None else name)
        return found[1] if found else ""
    value = item[field] if name is None else dict(item["values"])[name]
    return _of_value(value, code, _RULES.get(field, _NUMBER) if name is None else _NUMBER, post)


def _of_field(field: str, code: str, name: str | None, item: dict[str, Any]) -> str:
    if code == "missing_field":
        return _missing(field, item)
    if code == "unknown_field" and name is not None:
        return _unknown(name, item)
    return f"appears more than once in {'the item' if name is None else '`values`'}"


def _of_value(value: Any, code: str, rule: str, post: Post) -> str:
    if code == "wrong_type":
        return _is_kind(value, rule)
    return _time(value, code, post) if code.startswith("ts_") else _inexact(value)


def _unknown(name: str, item: dict[str, Any]) -> str:
    field = _meant(name)
    hint = f" (did you mean `{field}`?)" if field and field not in item else ""
    flat = _flat_hint(item)
    known = "" if hint or flat else f"; the fields are {', '.join(FIELDS)}"
    return f"is not a field of a reading{hint}{flat}{known}"


def _missing(field: str, item: dict[str, Any]) -> str:
    others = (name for name in item if _is_short(name) and name not in FIELDS)
    other = next((name for name in others if _meant(name) == field), None)
    hint = f" (is it `{other}`?)" if other else ""
    if field == "metric" and "value" not in item:
        return f"is missing{hint}; an item has `metric` and `value`, or `values`{_flat_hint(item)}"
    return f"is missing{hint}"


def _meant(name: str) -> str | None:
    """Return the field of a reading that a client may call `name`, or None."""
    if len(name) > NAME_CHARACTERS_MAX:
        return None
    plain = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    return _MEANT.get(plain) or next((each for each in FIELDS if _is_near(plain, each)), None)


def _is_near(name: str, field: str) -> bool:
    """Whether one letter is wrong, missing or too many, or two are exchanged."""
    if name == field or abs(len(name) - len(field)) > 1:
        return name == field
    at = next((i for i, (a, b) in enumerate(zip(name, field, strict=False)) if a != b), len(name))
    rests = (name[at + 1 :], field[at + 1 :]), (name[at:], field[at + 1 :])
    is_one_letter = any(a == b for a, b in (*rests, (name[at + 1 :], field[at:])))
    return is_one_letter or sorted(name) == sorted(field)


def _flat_hint(item: dict[str, Any]) -> str:
    """Return a hint if the item has numbers under names of its own, or nothing."""
    if "values" in item or "metric" in item:
        return ""
    name = next((name for name, value in item.items() if _is_flat(name, value)), None)
    if name is None:
        return ""
    return f'; flat numbers go into `values`, like "values": {{"{name}": 21.5}}'


def _is_flat(name: str, value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and _is_short(name) and name not in FIELDS and _meant(name) is None


def _is_short(name: str) -> bool:
    return len(name) <= NAME_CHARACTERS_MAX and name.isascii() and name.isidentifier()


def _time(ts: str | int | float, code: str, post: Post) -> str:
    ts_us = text_us(ts) if isinstance(ts, str) else number_us(ts, post.precision)
    if not isinstance(ts_us, int):
        return ts_us[1]
    if code == "ts_too_old":
        return f"is {_when(ts_us)}; the oldest accepted time is {_when(post.rules.ts_min_us)}"
    newest_us = post.received_us + post.rules.ts_ahead_us_max
    return f"is {_when(ts_us)}; the newest accepted time is {_when(newest_us)}"


def _when(ts_us: int) -> str:
    try:
        return rfc3339(ts_us)
    except OverflowError:
        return "after the year 9999" if ts_us > 0 else "before the year 1"


def _inexact(value: int) -> str:
    nearest = f"; the nearest that it can hold is {int(float(value))}" if value < 1e40 else ""
    shown = f" {value}" if abs(value) < 1e40 else ""
    return f"float64 cannot hold the integer{shown} exactly{nearest if shown else ''}"


def _is_kind(value: object, rule: str) -> str:
    """Name the JSON type of a value, and show it if it is short text."""
    if value is None or isinstance(value, bool):
        kind = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, str):
        kind = f"the string {quoted(value)}"
    elif isinstance(value, int | float):
        kind = "a number"
    else:
        kind = "an object" if isinstance(value, dict | Pairs) else "an array"
    return f"is {kind}; {rule}"
