"""The careful path for JSON: one parsed item to its readings, with a code for every fault.

body.py calls it for the items of a slice that the fast path did not accept. This file alone
decides which item is invalid, and then says it in words, with a hint at what a client may have
meant.
Promises: the work is bounded by the bytes of the item, whatever is in them. Messages are made only
for the first errors of a post (`told`). The others have the first fault only, and its code's text.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ingest.formats.block_builder import ItemReadings
from ingest.formats.json.fast import FIELDS, may_be_inexact, may_repeat
from ingest.formats.json_slices import parsed_leniently, whole_number
from ingest.formats.post import EXACT_MAX, ItemError, Post, too_many
from ingest.formats.timestamp import number_us, plain_us, text_us
from ingest.model.codes import ITEM_CODES, NOT_ALLOWED
from ingest.model.reading import name_fault
from ingest.system.clock import rfc3339
from ingest.system.words import quoted

# The field, cut off if it is long (None: the item as a whole); the code; the whole name, if it is
# an unknown field or a metric in `values`.
Fault = tuple[str | None, str, str | None]

FIELD_CHARACTERS_MAX = 64  # of a field's name in an error
HINTED_CHARACTERS_MAX = 20  # of names that hints are made for
ALSO_MAX = 8  # faults of an item that are named besides the first one
LARGE_FLOAT = 2.0**63  # the parser gives an integer beyond 64 bits as a float

_KNOWN = frozenset(FIELDS)
_QUOTED = tuple(f'"{field}"'.encode() for field in FIELDS)
_LONG_VALUE = re.compile(rb'"value"[ \t\n\r]*:[ \t\n\r]*(-?[0-9]{16,})[ \t\n\r]*[,}]')
_MISSING = object()
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
    "value_out_of_range": "is NaN, or does not fit into a float64 (about 1.8e308 at most)",
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


PAIRS = json.JSONDecoder(object_pairs_hook=Pairs, parse_int=whole_number)


def read_item(
    value: Any,
    original: bytes,
    item: int,
    post: Post,
    told: bool = True,
    *,
    as_posted: Sequence[str] | None = None,
) -> tuple[ItemReadings | None, ItemError | None]:
    """Return the valid readings of one item, and its error; together at least one.

    `value` is the parsed `original`. With `as_posted`, the names of the item in order, nothing is
    hidden in it: integers are exact, and `values` is Pairs if a name stands twice. Raises
    RecursionError if it is nested too deeply to be read, Refused (`too_many_readings`).
    """
    faults: list[Fault] = []
    readings: ItemReadings | None = None
    if type(value) is dict:
        readings = _read(value, value if as_posted is None else as_posted, post, faults, told)
        if as_posted is not None:
            pass
        elif readings is not None and not (
            told or "values" in value or b"\\" in original or post.ignore_unknown
        ):
            if code := _hidden(value, original, post):
                readings, faults = None, [(None, code, None)]
        elif readings is not None or told:
            exact = _exactly(value, original, post)
            if exact is not None:
                value, names = exact
                faults.clear()
                readings = _read(value, names, post, faults, told)
        if not faults:
            return readings, None
    else:
        faults.append((None, "not_an_object", None))
    field, code, _ = faults[0]
    if not told:
        return readings, ItemError(item, field, code, ITEM_CODES[code], original)
    also = tuple((field, code) for field, code, _ in faults[1 : 1 + ALSO_MAX])
    message = _message_of(faults[0], value, post)
    return readings, ItemError(item, field, code, message, original, also)


def _hidden(fields: dict[str, Any], original: bytes, post: Post) -> str | None:
    """Return the code of a fault of a plain item that the parser has hidden."""
    if _may_repeat(fields, original, post):
        return "repeated_field"
    if _has_large(fields) and (found := _LONG_VALUE.search(original)):
        value = value_of(whole_number(found[1].decode()), post)
        return value if isinstance(value, str) else None
    return None


def _exactly(
    fields: dict[str, Any], original: bytes, post: Post
) -> tuple[dict[str, Any], Iterable[str]] | None:
    """Return the fields and their names in order if the parser may have hidden something of them.

    It hides names that stand twice in one object, and the last digits of long integers.
    """
    if _may_repeat(fields, original, post):
        pairs = PAIRS.decode(original.decode())
        return dict(pairs), [name for name, _ in pairs]
    if _has_large(fields) and may_be_inexact(original, post):
        exact = parsed_leniently(original)
        return exact, exact
    return None


def _may_repeat(fields: dict[str, Any], original: bytes, post: Post) -> bool:
    """Whether the parser may have hidden a name that stands twice in one object."""
    if post.ignore_unknown:
        counts = map(original.count, _QUOTED)
        return b"\\" in original or "values" in fields or any(count > 1 for count in counts)
    if "values" not in fields and original.count(b",") == len(fields) - 1:
        return False
    try:
        return may_repeat(fields, original)
    except TypeError:
        return True


def _has_large(fields: dict[str, Any]) -> bool:
    """Whether a value may be an integer whose last digits the parser has dropped."""
    value = fields.get("value")
    if type(value) is float and abs(value) >= LARGE_FLOAT:
        return True
    values = fields.get("values")
    return type(values) is dict and any(
        type(each) is float and abs(each) >= LARGE_FLOAT for each in values.values()
    )


def _read(
    fields: dict[str, Any], names: Iterable[str], post: Post, faults: list[Fault], told: bool
) -> ItemReadings | None:
    """Append the faults of an item, only the first ones if nobody is told; return what is valid.

    If nobody is told, the time comes last, because to read it costs most.
    """
    if names is not fields or not _KNOWN.issuperset(fields):
        _judge_names(names, post, faults)
        if faults and not told:
            return None
    device_id = _name(fields, "device_id", faults)
    if device_id and post.allows is not None and not post.allows(device_id):
        faults.append(("device_id", NOT_ALLOWED, None))
    if faults and not told:
        return None
    ts_us = _ts_us(fields, post, faults) if told else 0
    usable = not faults
    values = (_values if "values" in fields else _single)(fields, post, faults)
    if not (values or told):
        return None
    if not told:
        before = len(faults)
        ts_us = _ts_us(fields, post, faults)
        usable = len(faults) == before
    return (ts_us, device_id, values) if values and usable else None


def _judge_names(names: Iterable[str], post: Post, faults: list[Fault]) -> None:
    """Each name is known and stands there once."""
    seen: set[str] = set()
    for name in names:
        if name in _KNOWN:
            if name in seen:
                faults.append((name, "repeated_field", None))
        elif not post.ignore_unknown and name not in seen:
            faults.append((_cut(name), "unknown_field", name))
        seen.add(name)


def _name(fields: dict[str, Any], field: str, faults: list[Fault]) -> str:
    name = fields.get(field, _MISSING)
    if type(name) is str:
        fault = name_fault(name)
        if fault is None:
            return name
        faults.append((field, fault[0], None))
    else:
        faults.append((field, "missing_field" if name is _MISSING else "wrong_type", None))
    return ""


def _ts_us(fields: dict[str, Any], post: Post, faults: list[Fault]) -> int:
    ts = fields.get("ts", _MISSING)
    kind = type(ts)
    if kind is str:
        ts_us = plain_us(ts)
    elif kind is int or kind is float:
        ts_us = number_us(ts, post.precision)
    elif ts is _MISSING:
        return post.received_us
    else:
        faults.append(("ts", "wrong_type", None))
        return 0
    if not isinstance(ts_us, int):
        faults.append(("ts", ts_us[0], None))
        return 0
    if fault := post.ts_fault(ts_us):
        faults.append(("ts", fault[0], None))
    return ts_us


def _single(fields: dict[str, Any], post: Post, faults: list[Fault]) -> dict[str, float]:
    if "metric" not in fields and "value" not in fields:
        faults.append(("metric", "missing_field", None))
        return {}
    metric = _name(fields, "metric", faults)
    value = value_of(fields["value"], post) if "value" in fields else "missing_field"
    if isinstance(value, float):
        return {metric: value} if metric else {}
    faults.append(("value", value, None))
    return {}


def _values(fields: dict[str, Any], post: Post, faults: list[Fault]) -> dict[str, float]:
    """Return the valid entries of `values`. If a name is repeated, no value of it is kept."""
    both = [field for field in ("metric", "value") if field in fields]
    faults += [(field, "both_shapes", None) for field in both]
    values = fields["values"]
    if type(values) not in (dict, Pairs):
        faults.append(("values", "wrong_type", None))
        return {}
    if not values:
        faults.append(("values", "values_empty", None))
        return {}
    if len(values) > post.rules.post_rows_max:
        raise too_many(post.rules.post_rows_max)
    times = Counter(name for name, _ in values) if type(values) is Pairs else {}
    found = {}
    for metric, value in dict(values).items():
        fault = name_fault(metric)
        entry = fault[0] if fault else value_of(value, post)
        if times.get(metric, 1) > 1:
            entry = "repeated_field"
        if type(entry) is float:
            found[metric] = entry
        else:
            faults.append((f"values.{_cut(metric)}", str(entry), metric))
    return {} if both else found


def value_of(value: object, post: Post) -> float | str:
    """Return the value as a float64, or the code of its fault."""
    kind = type(value)
    if kind is not float and kind is not int and kind is not bool:
        return "wrong_type"
    try:
        number: float = value + 0.0  # type: ignore[operator]  # -0.0 becomes 0.0
    except OverflowError:
        return "value_out_of_range"
    if not math.isfinite(number):
        return "value_out_of_range"
    if kind is int and abs(number) >= EXACT_MAX and not post.rules.integers_rounded:
        return number if int(number) == value else "value_not_exact"
    return number


def _cut(name: str) -> str:
    return name if len(name) <= FIELD_CHARACTERS_MAX else name[:FIELD_CHARACTERS_MAX] + ".."


def _message_of(fault: Fault, item: Any, post: Post) -> str:
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
    if code == "wrong_type":
        return _is_kind(value, _RULES.get(field, _NUMBER) if name is None else _NUMBER)
    return _time(value, code, post) if code.startswith("ts_") else _inexact(value)


def _of_field(field: str, code: str, name: str | None, item: dict[str, Any]) -> str:
    if code == "missing_field":
        return _missing(field, item)
    if code == "unknown_field" and name is not None:
        return _unknown(name, item)
    return f"appears more than once in {'the item' if name is None else '`values`'}"


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
    if len(name) > HINTED_CHARACTERS_MAX:
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
    return (
        f'; flat numbers go into `values`, like "values": {{"{name}": 21.5}}; or post to a source'
    )


def _is_flat(name: str, value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and _is_short(name) and name not in FIELDS and _meant(name) is None


def _is_short(name: str) -> bool:
    return len(name) <= HINTED_CHARACTERS_MAX and name.isascii() and name.isidentifier()


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
