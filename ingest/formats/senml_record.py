"""A record of SenML: read exactly, written for the dead letters, its faults.

Does not: know the state of a pack, which the caller gives.
"""

from __future__ import annotations

import json
from typing import Any

from ingest.formats.json_item import PAIRS
from ingest.formats.json_messages import Pairs
from ingest.formats.json_slices import SPACE, not_json
from ingest.formats.post import ItemError
from ingest.formats.senml_state import BASE, Base
from ingest.model.codes import ITEM_CODES
from ingest.model.errors import Refused

_TEXTS = {
    "missing_field": "has none of v, vb, vs, vd and s",
    "both_shapes": "has more than one of v, vb, vs and vd",
    "unknown_field": "ends with _ and is unknown, so the record must not be used (RFC 8428)",
    "no_device": "has no device: a name is like urn:dev:mac:0123:temperature or room-1/temperature",
    "ts_in_future": "is beyond the newest accepted time",
    "ts_too_old": "is before the oldest accepted time",
}


class Bad(Exception):
    """A fault of a record: its field and its code."""

    def __init__(self, field: str | None, code: str) -> None:
        super().__init__(field, code)
        self.field = field
        self.code = code


def exactly(original: bytes) -> Any:
    """Return a record with exact integers. Raises Bad if a name stands in it twice.

    Raises Refused if that is a base field, or if it is nested too deeply.
    """
    try:
        pairs = PAIRS.decode(original.decode())
    except RecursionError as fault:
        raise not_json(fault) from None
    if type(pairs) is not Pairs:
        return pairs
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen and name in BASE:
                raise Refused("not_senml", f"the base field `{name}` appears twice in one record")
            if name in seen:
                raise Bad(name[:64], "repeated_field")
            seen.add(name)
    return record


def alone(original: bytes, record: Any, base: Base) -> bytes:
    """Return the bytes of a record with the base fields that it has from the records before."""
    if original[:1] != b"{":
        return original
    own = record if type(record) is dict else {}
    inherited = {name: each for name, each in base.fields().items() if name not in own}
    if not inherited:
        return original
    inner = original[1:].lstrip(SPACE)
    comma = b"" if inner == b"}" else b","
    return (
        json.dumps(inherited, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")[
            :-1
        ]
        + comma
        + inner
    )


def error_of(bad: Bad, item: int, original: bytes, *, told: bool) -> ItemError:
    """Return the error of a record; with a text of its own if somebody is told."""
    usual = ITEM_CODES[bad.code]
    return ItemError(
        item, bad.field, bad.code, _TEXTS.get(bad.code, usual) if told else usual, original
    )
