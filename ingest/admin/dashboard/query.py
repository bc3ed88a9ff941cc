"""The requests to the dashboard: reads and checks query parameters and bodies."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

import orjson

from ingest.dead_letters.format import ID_CHARACTERS
from ingest.dead_letters.store import Selection
from ingest.formats.timestamp import text_us
from ingest.model.errors import Refused
from ingest.model.reading import REASONS, name_fault
from ingest.system.words import quoted

IDS_MAX = 500
CONDITIONS = ("reason", "code", "device", "device_prefix")
_BODIES = ({"ids"}, {"ids", "code"}, {"where"}, {"where", "most"})
TS_MIN_US, TS_MAX_US = -62_135_596_800_000_000, 253_402_300_799_000_000  # the years 1 to 9999


def parameters(text: str, *known: str) -> dict[str, str]:
    """Parse a query string. Raises Refused for a name that is unknown or given twice."""
    given: dict[str, str] = {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as error:  # with replaced bytes it could be another device's name
        raise Refused("bad_parameter", "the query string is not UTF-8") from error
    for name, value in pairs:
        if name not in known:
            raise Refused(
                "unknown_parameter",
                f"there is no query parameter {quoted(name)}; known: {', '.join(known) or 'none'}",
            )
        if name in given:
            raise Refused("bad_parameter", f"{name} is given twice")
        given[name] = value
    return given


def number(given: dict[str, str], name: str, default: float, least: float, most: float) -> float:
    """Return a parameter that is a number. Raises Refused `bad_parameter`."""
    text = given.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise Refused("bad_parameter", f"{name} is a number from {least:g} to {most:g}")
    return value


def device(given: dict[str, str], name: str = "device_id") -> str:
    """Return a parameter that is the name of a device or metric. Raises Refused `bad_parameter`."""
    device_id = given.get(name, "")
    if fault := name_fault(device_id):
        raise Refused("bad_parameter", f"{name} {fault[1]}")
    return device_id


def time_us(given: dict[str, str], name: str) -> int | None:
    """Return a parameter that is a time (RFC 3339 or Unix seconds) as Unix microseconds.

    None if it is not given. Raises Refused `bad_parameter`.
    """
    text = given.get(name)
    if not text:
        return None
    if re.fullmatch(r"-?[0-9]{1,11}(\.[0-9]{1,6})?", text):
        us: Any = round(float(text) * 1e6)
    else:
        us = text_us(text)
    if not isinstance(us, int) or not TS_MIN_US <= us <= TS_MAX_US:
        raise Refused("bad_parameter", f"{name} is a time as RFC 3339 or Unix seconds")
    return us


def where(given: dict[str, Any]) -> Selection:
    """Return the wanted dead letters by the keys of CONDITIONS. Raises Refused `bad_parameter`."""
    texts: dict[str, str | None] = {}
    for name in CONDITIONS:
        value = given.get(name)
        # A wrong type such as false or [] must not mean "any": a discard would take everything.
        if value is not None and not isinstance(value, str):
            raise Refused("bad_parameter", f"{name} is a text")
        texts[name] = value or None
    reason = texts["reason"]
    if reason is not None and reason not in REASONS:
        raise Refused("bad_parameter", f"reason is one of {', '.join(REASONS)}")
    return Selection(
        (reason,) if reason else None,
        texts["code"],
        texts["device"],
        device_prefix=texts["device_prefix"],
    )


def wanted(body: bytes, most: int) -> tuple[Selection, int]:
    """Return the dead letters of `{"ids": [..]}` or `{"where": {..}, "most": n}`. Raises Refused.

    That is: which, and at most how many, oldest first. `most` is the bound if the body has none.
    Beside ids a `code` may stand, which all must have.
    """
    try:
        asked: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused("not_json", "the body is not JSON") from error
    if not isinstance(asked, dict) or asked.keys() not in _BODIES:
        raise Refused("bad_request", 'the body is {"ids": [..]} or {"where": {..}, "most": n}')
    if isinstance(conditions := asked.get("where"), dict):
        if not conditions.keys() <= set(CONDITIONS):
            raise Refused("bad_request", f"where takes {', '.join(CONDITIONS)}")
        return where(conditions), _most(asked, most)
    ids = asked.get("ids")
    if not isinstance(ids, list) or not 0 < len(ids) <= IDS_MAX or not all(map(_is_id, ids)):
        raise Refused("bad_request", f"ids is a list of 1 to {IDS_MAX} ids, in full")
    selected = frozenset(map(str.encode, ids))
    return where({"code": asked.get("code")})._replace(ids=selected), most


def _most(asked: dict[str, Any], most: int) -> int:
    given = asked.get("most", most)
    if type(given) is not int or given < 1:  # not true, which is an int in Python
        raise Refused("bad_request", "most is an integer of at least 1")
    return min(given, most)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and len(value) == ID_CHARACTERS and value.isalnum()
