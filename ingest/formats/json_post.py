"""The JSON format: from a body to a block of its valid readings, and errors for the others.

A small body is decoded at once. A large one is cut into slices (json_slices.py). json_whole.py
encodes most slices as a whole. Where it returns None, the items of the slice go through
json_item.py one by one, a few in each step. No item is parsed a third time.
Promises: a step is short (a millisecond), whatever the body has. What is kept besides the body is
not larger than the body and its rows.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import msgspec
import orjson
from msgspec import Raw

from ingest.formats.item_reader import (
    CAREFUL_ITEMS,
    ItemReader,
    require_possible,
)
from ingest.formats.json_item import read_item
from ingest.formats.json_slices import SPACE, not_json, slices
from ingest.formats.json_whole import block_of, many, one
from ingest.formats.post import Decoded, Post, Steps, finished, most_items

WHOLE_BYTES = 16 * 1024  # a body of this size is decoded in one step, if all its items are valid

_RAWS = msgspec.json.Decoder(list[Raw])


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
        return [bytes(raw) for raw in _RAWS.decode(text)]
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
    for each in slices(body, post.rules.post_rows_max, lambda: reader.is_all_bad):
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
