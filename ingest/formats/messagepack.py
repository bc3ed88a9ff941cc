"""MessagePack: from a body with items of our own to a block, and errors for the invalid ones.

The items have the shapes and the rules of JSON. The parser says where each item ends. An object
becomes a list of names and raw values, so names that stand twice are found, and what is within an
array is never made. json/careful.py then decides as for JSON.
Promises: a step is short, and the limits are those of a JSON array with the same items.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from typing import Any

import msgspec
from msgspec import Raw

from ingest.formats.block_builder import (
    CAREFUL_ITEMS,
    UNREADABLE,
    ItemReader,
    ItemReadings,
    require_possible,
)
from ingest.formats.json.careful import Pairs, read_item
from ingest.formats.json_slices import ITEM_BYTES_MAX
from ingest.formats.post import Decoded, ItemError, Post, Steps, finished, too_many
from ingest.formats.timestamp import NUMBER_MAX
from ingest.model.codes import ITEM_CODES
from ingest.model.errors import Refused
from ingest.system.clock import rfc3339_s

WHOLE_BYTES = 4 * 1024  # a body of this size is decoded in one step
LARGE_BYTES = 1024  # a step ends after an item of more
WINDOW_BYTES_MAX = ITEM_BYTES_MAX + 8  # an item may be so large
NAMES_MAX = 8_192  # of an item; more take too long
YEARS_S = (-62_135_596_800, 253_402_300_799)  # from year 1 to year 9999

_RAW = msgspec.msgpack.Decoder(Raw)
_RAWS = msgspec.msgpack.Decoder(list[Raw])
_NAME = msgspec.msgpack.Decoder(str)
_SCALAR = msgspec.msgpack.Decoder(bool | int | float | str | None)
_PLACE = re.compile(r"(?<=\(byte )\d+")
_BYTES_FOLLOW = re.compile(r"trailing characters \(byte (\d+)\)")


def begin(body: bytes, post: Post) -> Decoded | Steps:
    """Return one block of the valid readings and errors for the others, or the steps to it.

    `begin` and the steps raise Refused: `not_msgpack`, `empty`, `too_many_readings`,
    `item_too_large`, `invalid_items`.
    """
    if not body:
        raise Refused("not_msgpack", "the body is empty")
    size, at = _size(body, 0x90, 0xDC) or (1, 0)
    if at > len(body):
        raise Refused("not_msgpack", "the body is not complete")
    require_possible(size, post)
    reader = ItemReader(post, len(body))
    steps: Decoded | Steps = reader.finish(_read_all(reader, body, size, at))
    return finished(steps) if len(body) <= WHOLE_BYTES else steps


def decode_item(original: bytes, post: Post) -> Decoded:
    """Decode one item; one that is an array is no list of items."""
    return finished(begin(_array_head(1) + original, post))


def _read_all(reader: ItemReader, body: bytes, size: int, at: int) -> Generator[None, None, None]:
    """Read the items, a few in each step."""
    some: list[bytes] = []
    for original in _items(body, size, at):
        some.append(original)
        if len(some) == CAREFUL_ITEMS or len(original) > LARGE_BYTES:
            yield from reader.read_some(some, some, _read_item)
            yield
            some = []
    yield from reader.read_some(some, some, _read_item)


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


def _array_head(size: int) -> bytes:
    """Return the shortest head of an array."""
    if size < 16:
        return bytes((0x90 | size,))
    return b"\xdc%b" % size.to_bytes(2) if size < 1 << 16 else b"\xdd%b" % size.to_bytes(4)


def _size(text: bytes, short: int, long: int) -> tuple[int, int] | None:
    """Return the number of elements and where the first one begins; None if it is of another kind.

    `short` and `long` are the first bytes of an array, or of an object.
    """
    first = text[0]
    if first & 0xF0 == short:
        return first & 0x0F, 1
    if first == long:
        return int.from_bytes(text[1:3]), 3
    return (int.from_bytes(text[1:5]), 5) if first == long + 1 else None


def _read_item(
    _: bytes, original: bytes, item: int, post: Post, told: bool
) -> tuple[ItemReadings | None, ItemError | None]:
    """Return the valid readings of one item, and its error; together at least one.

    Raises Refused (`too_many_readings`).
    """
    try:
        pairs = _pairs(original, NAMES_MAX, lambda name, raw: _field(name, raw, post))
        if pairs is None:
            return read_item(_scalar(original), original, item, post, told, as_posted=())
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        why = f"the item cannot be read: {fault}"[:200] if told else ITEM_CODES[UNREADABLE]
        return None, ItemError(item, None, UNREADABLE, why, original)
    names = [name for name, _ in pairs]
    return read_item(dict(pairs), original, item, post, told, as_posted=names)


def _pairs(
    text: bytes, names_max: int, read: Callable[[str, bytes], Any]
) -> list[tuple[str, Any]] | None:
    """Return the names and values of an object, None if it is none. `read` reads a raw value.

    Raises Refused (`too_many_readings`), DecodeError if a name is no text, UnicodeDecodeError.
    """
    size = _size(text, 0x80, 0xDE)
    if size is None:
        return None
    count, start = size
    if count > names_max:
        raise too_many(names_max, "an item has too many names")
    raws = [bytes(raw) for raw in _RAWS.decode(_array_head(2 * count) + text[start:])]
    names = [*map(_NAME.decode, raws[::2])]
    return [(name, read(name, raw)) for name, raw in zip(names, raws[1::2], strict=True)]


def _field(name: str, raw: bytes, post: Post) -> Any:
    if name == "values":
        pairs = _pairs(raw, post.rules.post_rows_max, lambda _, each: _scalar(each))
        if pairs is not None:
            entries = Pairs(pairs)
            by_name = dict(entries)
            return entries if len(by_name) < len(entries) else by_name
    if name == "ts":
        moment = _moment(raw)
        if moment is not None:
            return moment
    return _scalar(raw)


def _scalar(raw: bytes) -> Any:
    """Return a value as JSON has it: what is within an array or object is left out."""
    first = raw[0]
    if first & 0xF0 == 0x80 or first in (0xDE, 0xDF):
        return {}
    if first & 0xF0 == 0x90 or 0xC4 <= first <= 0xC9 or 0xD4 <= first <= 0xD8 or first >= 0xDC:
        return _SCALAR.decode(raw) if first >= 0xE0 else []
    return _SCALAR.decode(raw)


def _moment(raw: bytes) -> str | float | None:
    """Return MessagePack's own kind of time as RFC 3339; None if the value is none.

    A time that RFC 3339 cannot write is a number beyond all times.
    """
    ns = 0
    if raw[:2] == b"\xd6\xff":
        seconds = int.from_bytes(raw[2:])
    elif raw[:2] == b"\xd7\xff":
        both = int.from_bytes(raw[2:])
        ns, seconds = both >> 34, both & (1 << 34) - 1
    elif raw[:3] == b"\xc7\x0c\xff":
        ns, seconds = int.from_bytes(raw[3:7]), int.from_bytes(raw[7:], signed=True)
    else:
        return None
    if ns >= 1_000_000_000:
        return None
    if not YEARS_S[0] <= seconds <= YEARS_S[1]:
        return 2 * NUMBER_MAX * (1 if seconds > 0 else -1)
    return f"{rfc3339_s(seconds * 1_000_000)[:-1]}.{ns:09d}Z"
