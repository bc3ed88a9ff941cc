"""A reading: one fact that a sensor reported, and the rules for its names.

A fact is (ts, device_id, metric, value) after normalisation: `ts_us` is Unix microseconds in UTC,
`-0.0` becomes `0.0`. Two readings are the same reading if all four are equal.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

NAME_CHARACTERS_MAX = 256
NAME_BYTES_MAX = 512  # two names of this size fit into one index row (2,704 bytes)


class Reading(NamedTuple):
    """One row of the table, in the order of its key."""

    ts_us: int
    device_id: str
    metric: str
    value: float


def name_fault(name: str) -> tuple[str, str] | None:
    """Return (code, message) if `name` cannot be a device_id or a metric, else None.

    The codes are keys of `codes.ITEM_CODES`.
    """
    if not name:
        return "name_empty", "must not be empty"
    if len(name) > NAME_CHARACTERS_MAX:
        return "name_too_long", f"has {len(name)} characters, at most {NAME_CHARACTERS_MAX}"
    if not name.isascii():
        try:
            size_bytes = len(name.encode())
        except UnicodeEncodeError:
            return "name_control_character", "contains half of a surrogate pair"
        if size_bytes > NAME_BYTES_MAX:
            return "name_too_long", f"has {size_bytes} bytes in UTF-8, at most {NAME_BYTES_MAX}"
    if not name.isprintable():  # also false for spaces other than U+0020 and for unassigned ones
        for place, character in enumerate(name):
            if unicodedata.category(character) == "Cc":
                return (
                    "name_control_character",
                    f"contains the control character U+{ord(character):04X} at position {place}",
                )
    return None
