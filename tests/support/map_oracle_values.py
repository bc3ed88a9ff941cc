"""Times, numbers and names for map_oracle.py, which share no code with the service."""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from fractions import Fraction
from typing import Any

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
