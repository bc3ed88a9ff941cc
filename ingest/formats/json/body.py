"""JSON and NDJSON: from a body to a block of its valid readings, and errors for the others.

A small body is decoded at once. A large one is cut into slices: of whole items (json_slices.py), or
of whole lines. fast.py encodes most slices as a whole. Where it returns None, the items of the
slice go through careful.py one by one, a few in each step. No item is parsed a third time.
Each line of NDJSON is parsed alone: one that is not JSON is an invalid item, and spoils no other
one. Empty lines are skipped. The limits are those of an array with the same items.
Promises: a step is short (a millisecond), whatever the body has. What is kept besides the body is
not larger than the body and its rows.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import orjson

from ingest.formats.block_builder import (
    CAREFUL_ITEMS,
    UNREADABLE,
    ItemReader,
    ItemReadings,
    require_possible,
)
from ingest.formats.json.careful import read_item
from ingest.formats.json.fast import block_of, many, one
from ingest.formats.json_slices import (
    BYTES_PER_BRACKET_MIN,
    RAWS,
    SLICE_BYTES,
    SLICE_BYTES_MAX,
    SPACE,
    after_moment,
    check_slice,
    not_json,
    parsed,
    slices,
)
from ingest.formats.post import Decoded, ItemError, Post, Rules, Steps, finished, most_items
from ingest.model.codes import ITEM_CODES
from ingest.model.errors import Refused

WHOLE_BYTES = 16 * 1024  # a body of this size is decoded in one step, if all its items are valid

_LINE_END = re.compile(rb"\n")


def decode(body: bytes, post: Post) -> Decoded:
    """Do what `begin` does, in one go."""
    return finished(begin(body, post))


def begin(body: bytes, post: Post) -> Decoded | Steps:
    """Return one block of the valid readings and errors for the others, or the steps to it.

    `begin` and the steps raise Refused: `not_json`, `empty`, `too_many_readings`, `item_too_large`,
    `invalid_items`.
    """
    size = len(body)
    if size > WHOLE_BYTES:
        return _in_slices(body, post)
    try:
        value = orjson.loads(body)
    except ValueError:
        return _in_slices(body, post)  # a number beyond float64, or no JSON
    kind = type(value)
    if kind is dict:
        rows = one(value, body, post)
    elif kind is list:
        require_possible(len(value), post)
        if len(value) == 1:
            rows = one(value[0], body, post)
        else:
            rows = None if len(value) > most_items(size) else many(value, body, post)
    else:
        rows = None
    if rows is not None:
        return Decoded(block_of(rows, post), [])
    items = value if kind is list else [value]
    reader = ItemReader(post, size)
    return reader.finish(_checked(_read_again(reader, items, body)))


def _in_slices(body: bytes, post: Post) -> Steps:
    reader = ItemReader(post, len(body))
    return reader.finish(_checked(_read_all(reader, body)))


def originals_of(text: bytes) -> list[bytes]:
    """Return the bytes of each item of an array, or of one item. Raises Refused (`not_json`)."""
    stripped = text.strip(SPACE)
    if stripped[:1] != b"[":
        return [stripped]
    try:
        return [bytes(raw) for raw in RAWS.decode(text)]
    except RecursionError as fault:
        raise not_json(fault) from None


def _checked(steps: Generator[None, None, None]) -> Generator[None, None, None]:
    try:
        yield from steps
    except RecursionError as fault:
        raise not_json(fault) from None


def _read_all(reader: ItemReader, body: bytes) -> Generator[None, None, None]:
    """Read a body in slices."""
    post = reader.post
    for each in slices(
        body,
        post.rules.post_rows_max,
        lambda text: parsed(text, is_suspect=reader.is_all_bad),
        keeps_moments=bool(post.rules.tables),
    ):
        yield
        if each is None:
            continue  # the parser tried a slice that was too short
        items, text = each
        if not reader.items:
            require_possible(len(items), post)
        is_bad = reader.is_all_bad or reader.is_crowd(len(items))
        rows = None if is_bad else many(items, text, post)
        if rows is not None:
            reader.keep(rows, len(items))
        else:
            yield
            yield from _read_again(reader, items, text)


def _read_again(
    reader: ItemReader, items: Sequence[Any], text: bytes
) -> Generator[None, None, None]:
    """Read the items of a text one by one."""
    if reader.is_crowd(len(items)):
        # Name the errors of the first items, for the answer. Most of the items are too short.
        some = items[:CAREFUL_ITEMS]
        reader.read_few(some, [*map(orjson.dumps, some)], read_item)
        raise reader.too_many_invalid()
    yield from reader.read_some(items, originals_of(text), read_item)


def begin_lines(body: bytes, post: Post) -> Decoded | Steps:
    """Return one block of the valid readings and errors for the others, or the steps to it.

    A body of NDJSON. This and the steps raise Refused: `not_json` if no line is JSON, `empty`,
    `too_many_readings`, `item_too_large`, `invalid_items`.
    """
    if len(body) <= WHOLE_BYTES:
        lines = _lines(body)
        require_possible(len(lines), post)
        items = None if len(lines) > most_items(len(body)) else _parsed_lines(lines, body)
        if items is not None:
            rows = (
                one(items[0], lines[0], post)
                if len(items) == 1 and type(items[0]) is dict
                else many(items, b",".join(lines), post)
            )
            if rows is not None:
                return Decoded(block_of(rows, post), [])
    reader = ItemReader(post, len(body))
    return reader.finish(_read_all_lines(reader, body))


def _lines(text: bytes) -> list[bytes]:
    """Return the lines that are not empty."""
    return [*filter(bytes.strip, text.split(b"\n"))]


def _parsed_lines(lines: Sequence[bytes], text: bytes) -> list[Any] | None:
    """Return the items of lines; None if one of them is no plain JSON, or has many arrays."""
    if text.count(b"[") > len(text) // BYTES_PER_BRACKET_MIN:
        return None
    try:
        return [*map(orjson.loads, lines)]
    except ValueError:
        return None


def _slices_of_lines(body: bytes, rules: Rules) -> Iterator[bytes]:
    """Yield slices of whole lines. Raises Refused (`item_too_large`, `too_many_readings`)."""
    at = 0
    while at < len(body):
        stop = at + SLICE_BYTES
        if stop < len(body):
            stop = body.find(b"\n", stop, at + SLICE_BYTES_MAX + 2) + 1
            stop = stop or min(len(body), at + SLICE_BYTES_MAX + 2)
            if rules.tables:
                stop = after_moment(body, stop, _LINE_END)
        check_slice(body, at, min(stop, len(body)), rules.post_rows_max)
        yield body[at:stop]
        at = stop


def _read_all_lines(reader: ItemReader, body: bytes) -> Generator[None, None, None]:
    """Read a body in slices."""
    post = reader.post
    for text in _slices_of_lines(body, post.rules):
        yield
        lines = _lines(text)
        is_bad = reader.is_all_bad or reader.is_crowd(len(lines))
        items = None if is_bad else _parsed_lines(lines, text)
        rows = None if not items else many(items, b",".join(lines), post)
        if items and rows is not None:
            reader.keep(rows, len(items))
        elif lines:
            yield
            yield from _read_lines_again(reader, lines)
    if not reader.items:
        raise Refused("empty", "the body has no line with an item")
    _require_some_json(reader)


def _read_lines_again(reader: ItemReader, lines: Sequence[bytes]) -> Generator[None, None, None]:
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
