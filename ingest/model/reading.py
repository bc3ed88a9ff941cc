"""A reading: one fact that a sensor reported, and the rules for its names. A dead letter.

A fact is (ts, device_id, metric, value) after normalisation: `ts_us` is Unix microseconds in UTC,
`-0.0` becomes `0.0`. Two readings are the same reading if all four are equal.
A dead letter is a reading that could not be written, or an invalid item, with the reason.
Does not: know its form on disk (dead_letters/format.py), or whether it is replayed later.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

NAME_CHARACTERS_MAX = 256
NAME_BYTES_MAX = 512  # two names of this size fit into one index row (2,704 bytes)

# The formats of an item, and where most of them come in.
JSON = "json"
NDJSON = "ndjson"
MSGPACK = "msgpack"
SENML = "senml"
LINE = "line_protocol"
MAPPED = "mapped"
READINGS = "/v1/readings"

# Reasons of dead letters.
INVALID = "invalid"
REFUSED = "refused_by_database"
EXHAUSTED = "retries_exhausted"
DRAINED = "drained"
NOT_OURS = "not_ours"  # a message of the stream that is no block of readings
REASONS = (INVALID, REFUSED, EXHAUSTED, DRAINED, NOT_OURS)
# Of a forwarder, which has its own dead letters.
REFUSED_BY_TARGET = "refused_by_target"
# Of `ingest mqtt`, which has its own, too: its messages as they came.
REFUSED_BY_SERVICE = "refused_by_service"


class Reading(NamedTuple):
    """One row of the table, in the order of its key."""

    ts_us: int
    device_id: str
    metric: str
    value: float


class Letter(NamedTuple):
    """One dead letter: a reading, or the original bytes of an invalid item.

    `reason` is one of REASONS, `code` an item code or a SQLSTATE. `field` and `item` (the index in
    the array) come from the post. So does what is needed to decode the original bytes again:
    `format`, `source` (where it came in), `precision`, `ignore_unknown`, for lines and SenML the
    `device` of those that name none, for lines the `prefix` of their metrics, and for mapped
    documents the `context`: a JSON object of what came beside the body. `received_us` is in Unix
    microseconds. `sender` is the name of the post's token ("" where nobody needs one: no address is
    kept), and `devices` are globs of the devices that it may speak for; none: all.
    """

    reason: str
    code: str
    message: str
    received_us: int
    reading: Reading | None = None
    original: bytes | None = None
    precision: str | None = None
    field: str | None = None
    item: int | None = None
    attempts: int = 0
    format: str = JSON
    source: str = READINGS
    ignore_unknown: bool = False
    device: str = ""
    prefix: str = ""
    context: str = ""
    sender: str = ""
    devices: tuple[str, ...] = ()


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
