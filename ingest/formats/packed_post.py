"""MessagePack: from a body with items of our own to a block, and errors for the invalid ones.

The items have the shapes and the rules of JSON. The parser says where each item ends, and
packed_item.py reads it.
Promises: a step is short, and the limits are those of a JSON array with the same items.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator

import msgspec
from msgspec import Raw

from ingest.formats.item_reader import (
    CAREFUL_ITEMS,
    ItemReader,
    require_possible,
)
from ingest.formats.json_slices import ITEM_BYTES_MAX
from ingest.formats.packed_item import array_head, read_packed, size_of_array
from ingest.formats.post import Decoded, Post, Steps, finished
from ingest.model.errors import Refused

WHOLE_BYTES = 4 * 1024  # a body of this size is decoded in one step
LARGE_BYTES = 1024  # a step ends after an item of more
WINDOW_BYTES_MAX = ITEM_BYTES_MAX + 8  # an item may be so large

_RAW = msgspec.msgpack.Decoder(Raw)
_PLACE = re.compile(r"(?<=\(byte )\d+")
_BYTES_FOLLOW = re.compile(r"trailing characters \(byte (\d+)\)")


def begin(body: bytes, post: Post) -> Decoded | Steps:
    """Return one block of the valid readings and errors for the others, or the steps to it.

    `begin` and the steps raise Refused: `not_msgpack`, `empty`, `too_many_readings`,
    `item_too_large`, `invalid_items`.
    """
    if not body:
        raise Refused("not_msgpack", "the body is empty")
    size, at = size_of_array(body) or (1, 0)
    if at > len(body):
        raise Refused("not_msgpack", "the body is not complete")
    require_possible(size, post)
    reader = ItemReader(post, len(body))
    steps: Decoded | Steps = reader.finish(_read_all(reader, body, size, at))
    return finished(steps) if len(body) <= WHOLE_BYTES else steps


def decode_item(original: bytes, post: Post) -> Decoded:
    """Decode one item; one that is an array is no list of items."""
    return finished(begin(array_head(1) + original, post))


def _read_all(reader: ItemReader, body: bytes, size: int, at: int) -> Generator[None, None, None]:
    """Read the items, a few in each step."""
    some: list[bytes] = []
    for original in _items(body, size, at):
        some.append(original)
        if len(some) == CAREFUL_ITEMS or len(original) > LARGE_BYTES:
            yield from reader.read_some(some, some, read_packed)
            yield
            some = []
    yield from reader.read_some(some, some, read_packed)


def _items(body: bytes, size: int, at: int) -> Iterator[bytes]:
    """Yield the bytes of each item. Raises Refused: `not_msgpack`, `item_too_large`."""
    view = memoryview(body)
    for _ in range(size):
        end = min(at + WINDOW_BYTES_MAX, len(body))
        try:
            _RAW.decode(view[at:end])
        except RecursionError:
            raise Refused("not_msgpack", "the body is nested too deeply") from None
        except msgspec.DecodeError as fault:
            why = _PLACE.sub(lambda place: str(at + int(place[0])), str(fault))  # noqa: B023
            follows = _BYTES_FOLLOW.search(why)
            if follows is not None:
                end = int(follows[1])
            elif "truncated" not in why:
                raise Refused("not_msgpack", f"the body is not MessagePack: {why}") from None
            elif end == len(body):
                raise Refused("not_msgpack", "the body is not complete") from None
            else:
                raise Refused(
                    "item_too_large",
                    f"an item may have at most {ITEM_BYTES_MAX} bytes",
                    item_bytes_max=ITEM_BYTES_MAX,
                ) from None
        yield body[at:end]
        at = end
    if at < len(body):
        raise Refused("not_msgpack", f"{len(body) - at} bytes follow the items of the body")
