"""NDJSON: from a body with an item of JSON in each line to a block, and errors for the other lines.

Each line is parsed alone. So a line that is not JSON is an invalid item, and spoils no other one.
Empty lines are skipped. A body is read in slices of whole lines; json_whole.py encodes most of them
as a whole, and json_item.py reads the lines of the others one by one.
Promises: a step is short, and the limits are those of a JSON array with the same items.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import orjson

from ingest.formats.item_reader import (
    CAREFUL_ITEMS,
    ItemReader,
    ItemReadings,
    require_possible,
)
from ingest.formats.json_item import read_item
from ingest.formats.json_slices import SLICE_BYTES, SLICE_BYTES_MAX, SPACE, check_slice, parsed
from ingest.formats.json_whole import block_of, many, one
from ingest.formats.post import Decoded, ItemError, Post, Steps, most_items
from ingest.model.codes import ITEM_CODES
from ingest.model.errors import Refused

UNREADABLE = "item_unreadable"
WHOLE_BYTES = 16 * 1024  # a body of this size is decoded in one step, if all its items are valid
BYTES_PER_BRACKET_MIN = 24  # a slice with more arrays has items that are no readings


def begin(body: bytes, post: Post) -> Decoded | Steps:
    """Return one block of the valid readings and errors for the others, or the steps to it.

    `begin` and the steps raise Refused: `not_json` if no line is JSON, `empty`,
    `too_many_readings`, `item_too_large`, `invalid_items`.
    """
    if len(body) <= WHOLE_BYTES:
        lines = _lines(body)
        require_possible(len(lines), post)
        items = None if len(lines) > most_items(len(body)) else _parsed(lines, body)
        if items is not None:
            rows = (
                one(items[0], lines[0], post)
                if len(items) == 1 and type(items[0]) is dict
                else many(items, b",".join(lines), post)
            )
            if rows is not None:
                return Decoded(block_of(rows, post), [])
    reader = ItemReader(post, len(body))
    return reader.finish(_read_all(reader, body))


def _lines(text: bytes) -> list[bytes]:
    """Return the lines that are not empty."""
    return [*filter(bytes.strip, text.split(b"\n"))]


def _parsed(lines: Sequence[bytes], text: bytes) -> list[Any] | None:
    """Return the items of lines; None if one of them is no plain JSON, or has many arrays."""
    if text.count(b"[") > len(text) // BYTES_PER_BRACKET_MIN:
        return None
    try:
        return [*map(orjson.loads, lines)]
    except ValueError:
        return None


def _slices(body: bytes, rows_max: int) -> Iterator[bytes]:
    """Yield slices of whole lines. Raises Refused (`item_too_large`, `too_many_readings`)."""
    at = 0
    while at < len(body):
        stop = at + SLICE_BYTES
        if stop < len(body):
            stop = body.find(b"\n", stop, at + SLICE_BYTES_MAX + 2) + 1
            stop = stop or min(len(body), at + SLICE_BYTES_MAX + 2)
        check_slice(body, at, min(stop, len(body)), rows_max)
        yield body[at:stop]
        at = stop


def _read_all(reader: ItemReader, body: bytes) -> Generator[None, None, None]:
    """Read a body in slices."""
    post = reader.post
    for text in _slices(body, post.rules.post_rows_max):
        yield
        lines = _lines(text)
        is_bad = reader.is_all_bad or reader.is_crowd(len(lines))
        items = None if is_bad else _parsed(lines, text)
        rows = None if not items else many(items, b",".join(lines), post)
        if items and rows is not None:
            reader.keep(rows, len(items))
        elif lines:
            yield
            yield from _read_again(reader, lines)
    if not reader.items:
        raise Refused("empty", "the body has no line with an item")
    _require_some_json(reader)


def _read_again(reader: ItemReader, lines: Sequence[bytes]) -> Generator[None, None, None]:
    """Read lines one by one."""
    if reader.is_crowd(len(lines)):
        reader.read_few(lines[:CAREFUL_ITEMS], lines, _read_line)
        _require_some_json(reader)
        raise reader.too_many_invalid()
    try:
        yield from reader.read_some(lines, [line.strip(SPACE) for line in lines], _read_line)
    except Refused as refused:
        if refused.code == "invalid_items":
            _require_some_json(reader)
        raise


def _read_line(
    line: bytes, original: bytes, item: int, post: Post, told: bool
) -> tuple[ItemReadings | None, ItemError | None]:
    try:
        return read_item(parsed(line), original, item, post, told)
    except (ValueError, RecursionError) as fault:
        why = f"the line is not valid JSON: {fault}" if told else ITEM_CODES[UNREADABLE]
        return None, ItemError(item, None, UNREADABLE, why, original)


def _require_some_json(reader: ItemReader) -> None:
    """Raise Refused if no line at all was JSON: then the body is of another format."""
    errors = reader.errors
    if not reader.rows and all(error.code == UNREADABLE for error in errors):
        raise Refused("not_json", f"no line of the body is JSON; line 1: {errors[0].message}")
