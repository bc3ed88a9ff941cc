"""Readings as objects of Python: from mappings to a block, by the rules of items of JSON.

A mapping has the fields of an item. Besides what JSON has, `ts` may be a datetime with an offset,
and a value any real number, such as one of numpy, or a Decimal: it becomes a float64, as its text
would. json/fast.py encodes most slices as they are. Of others each item is made plain first, and
json/careful.py decides about what is invalid. Its original in the dead letters is JSON, but for NaN
and infinity, which no JSON has. An item that no text can say (nested without end, a tuple as a
name) is `item_unreadable`, and has no original.
Promises: a faulty item costs the others nothing, whatever it is. A step is short (a millisecond),
if an item has at most some hundred readings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from ingest.formats.block_builder import (
    CAREFUL_ITEMS,
    UNREADABLE,
    ItemReader,
    ItemReadings,
    require_possible,
)
from ingest.formats.json.careful import read_item
from ingest.formats.json.fast import block_of, many
from ingest.formats.json_slices import ITEM_BYTES_MAX
from ingest.formats.post import Decoded, ItemError, Post, Steps
from ingest.model.codes import ITEM_CODES

SLICE_ITEMS = 250  # encoded in one step: some 0.3 ms


def begin(items: Sequence[Any], post: Post) -> Decoded | Steps:
    """Return one block of the valid readings and errors for the others, or the steps to it.

    This and the steps raise Refused: `empty`, `too_many_readings`.
    """
    require_possible(len(items), post)
    if len(items) <= SLICE_ITEMS and (rows := many([*items], None, post)) is not None:
        return Decoded(block_of(rows, post), [])
    reader = ItemReader(post, sys.maxsize)  # they are in memory already: all may be invalid
    return reader.finish(_read_all(reader, items))


def _read_all(reader: ItemReader, items: Sequence[Any]) -> Generator[None, None, None]:
    for at in range(0, len(items), SLICE_ITEMS):
        yield
        some = [*items[at : at + SLICE_ITEMS]]
        rows = many(some, None, reader.post)
        if rows is None:
            some = [*map(_plain_item, some)]
            rows = many(some, None, reader.post)
        if rows is not None:
            reader.keep(rows, len(some))
            continue
        for start in range(0, len(some), CAREFUL_ITEMS):
            yield
            few = some[start : start + CAREFUL_ITEMS]
            reader.read_few(few, [b""] * len(few), _read_item)


def _read_item(
    value: Any, _original: bytes, item: int, post: Post, told: bool
) -> tuple[ItemReadings | None, ItemError | None]:
    names = [*value] if type(value) is dict else ()
    try:
        original = json.dumps(value, default=str).encode()[:ITEM_BYTES_MAX]
        return read_item(value, original, item, post, told, as_posted=names)
    except (TypeError, ValueError, ArithmeticError, RecursionError):
        return None, ItemError(item, None, UNREADABLE, ITEM_CODES[UNREADABLE], b"")


def _plain_item(value: Any) -> Any:
    try:
        return _plain(value)
    except Exception:  # it stays as it is; json/careful.py refuses it
        return value


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, if it is one of those that this file takes."""
    if type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real | Decimal) else value
