"""MessagePack: from a body with items of our own to a block, and errors for the invalid ones.

The items have the shapes and the rules of JSON. A body is cut into slices of whole items, without
parsing it first: the slice gets the head of an array with as many items as it may have, and the
parser says where these end. json_whole.py encodes most slices as a whole. The items of the others
are read one by one (packed_item.py).
Promises: a step is short, and the limits are those of a JSON array with the same items.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from ingest.formats.item_reader import (
    CAREFUL_ITEMS,
    ItemReader,
    are_allowed,
    block_of,
    require_possible,
    whole,
)
from ingest.formats.json_slices import ITEM_BYTES_MAX, SLICE_BYTES
from ingest.formats.json_whole import Item, Rows, many, one
from ingest.formats.packed_item import array_head, read_packed, size_of_array
from ingest.formats.post import Decoded, Post, Steps, most_items
from ingest.model.errors import Refused

WHOLE_BYTES = 16 * 1024  # a body of this size is decoded in one step, if all its items are valid
WINDOW_BYTES_MAX = ITEM_BYTES_MAX + 8  # of an item; the head of an array comes before it
LARGE_BYTES = 64 * 1024  # a slice of this size has one large item, which is read with care

_Scalar = bool | int | float | str | None
_ITEMS = msgspec.msgpack.Decoder(list[dict[str, _Scalar | dict[str, bool | int | float | None]]])
_RAWS = msgspec.msgpack.Decoder(list[Raw])
_ENCODER = msgspec.msgpack.Encoder()
_BYTES_FOLLOW = re.compile(r"trailing characters \(byte (\d+)\)")
_LONG_TS = (b"\xd9\x02ts", b"\xda\x00\x02ts", b"\xdb\x00\x00\x00\x02ts")


def decode(body: bytes, post: Post) -> Decoded:
    """Do what `begin` does, in one go."""
    return whole(begin, body, post)


def begin(body: bytes, post: Post) -> Decoded | Steps:
    """Return one block of the valid readings and errors for the others, or the steps to it.

    `begin` and the steps raise Refused: `not_msgpack`, `empty`, `too_many_readings`,
    `item_too_large`, `invalid_items`.
    """
    size, at = _size_and_start(body)
    require_possible(size, post)
    if len(body) <= WHOLE_BYTES and size <= most_items(len(body)):
        text = array_head(size) + body[at:]
        found = _rows_of(text, post)
        if found is not None:
            return Decoded(block_of(found[0], post), [])
    reader = ItemReader(post, len(body))
    return reader.finish(_read_all(reader, body, size, at))


def decode_item(original: bytes, post: Post) -> Decoded:
    """Decode one item; one that is an array is no list of items."""
    return decode(array_head(1) + original, post)


def _size_and_start(body: bytes) -> tuple[int, int]:
    """Return how many items a body says it has, and where the first one begins."""
    if not body:
        raise Refused("not_msgpack", "the body is empty")
    size, at = size_of_array(body) or (1, 0)
    if at > len(body):
        raise Refused("not_msgpack", "the body is not complete")
    return size, at


def _rows_of(text: bytes, post: Post) -> tuple[Rows, int] | None:
    """Return the rows of a whole array, and the number of its items; None if there is a doubt."""
    try:
        items = _ITEMS.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if _may_repeat(items, text):
        return None
    rows = one(items[0], None, post) if len(items) == 1 else many(items, None, post)
    return (rows, len(items)) if rows is not None and are_allowed(items, post) else None


def _may_repeat(items: list[Item], text: bytes) -> bool:
    """Whether a name may stand twice in one object: the parser silently keeps the last one.

    Nearly all clients write the shortest form of each value. Then the same bytes come out again.
    Some write float32, or longer forms. Then the names of the fields are counted.
    """
    if _ENCODER.encode(items) == text:
        return False
    count = len(items)
    return (
        text.count(b"device_id") != count
        or text.count(b"metric") != count
        or text.count(b"value") != count
        or text.count(b"\xa2ts") != sum("ts" in item for item in items)
        or any(long in text for long in _LONG_TS)
        or sum(map(len, items)) > 4 * count  # unknown names may stand twice
    )


def _read_all(reader: ItemReader, body: bytes, size: int, at: int) -> Generator[None, None, None]:
    """Read a body in slices."""
    post = reader.post
    for text in _slices(body, size, at):
        yield
        if text is None:
            continue  # the parser tried a slice that was too short or too long
        count, _ = size_of_array(text) or (0, 0)
        is_bad = reader.is_all_bad or reader.is_crowd(count) or len(text) > LARGE_BYTES
        found = None if is_bad else _rows_of(text, post)
        if found is not None:
            reader.keep(found[0], count)
            continue
        yield
        originals = [bytes(raw) for raw in _RAWS.decode(text)]
        yield
        if reader.is_crowd(count):
            some = originals[:CAREFUL_ITEMS]
            reader.read_few(some, some, _read_with(post))
            raise reader.too_many_invalid()
        yield from reader.read_some(originals, originals, _read_with(post))


def _read_with(post: Post) -> Any:
    def read(_: Sequence[bytes], original: bytes, item: int, told: bool) -> Any:
        return read_packed(original, item, post, told=told)

    return read


def _slices(body: bytes, size: int, at: int) -> Iterator[bytes | None]:
    """Yield arrays that are together the items of a body, and None after a try that failed.

    Raises Refused: `not_msgpack`, `item_too_large`.
    """
    left, end = size, len(body)
    window = SLICE_BYTES
    count = min(left, max(1, left * SLICE_BYTES // max(1, end - at)))
    while left:
        head = array_head(count)
        text = head + body[at : at + window]
        try:
            _RAWS.decode(text)
        except RecursionError:
            raise Refused("not_msgpack", "the body is nested too deeply") from None
        except msgspec.DecodeError as fault:
            follows = _BYTES_FOLLOW.search(str(fault))
            if follows is None:
                if "truncated" not in str(fault):
                    raise Refused("not_msgpack", f"the body is not MessagePack: {fault}") from None
                if at + window >= end:
                    raise Refused("not_msgpack", "the body is not complete") from None
                if window >= WINDOW_BYTES_MAX:
                    raise Refused(
                        "item_too_large",
                        f"an item may have at most {ITEM_BYTES_MAX} bytes",
                        item_bytes_max=ITEM_BYTES_MAX,
                    ) from None
                if count > 1:
                    count //= 2
                else:
                    window = min(2 * window, WINDOW_BYTES_MAX)
                yield None
                continue
            text = text[: int(follows[1])]
        yield text
        at += len(text) - len(head)
        left -= count
        window = SLICE_BYTES
        count = min(left, max(1, left * SLICE_BYTES // max(1, end - at)))
    if at < end:
        raise Refused("not_msgpack", f"{end - at} bytes follow the items of the body")
