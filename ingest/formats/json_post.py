"""The JSON format: from a body to a block of its valid readings, and errors for the others.

A small body is decoded at once. A large one is cut into slices (json_slices.py). json_whole.py
encodes most slices as a whole. Where it returns None, the items of the slice go through
json_item.py one by one, a few in each step. No item is parsed a third time.
Promises: a step is short (a millisecond), whatever the body has. What is kept besides the body is
not larger than the body and its rows.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, cast

import msgspec
import orjson
from msgspec import Raw

from ingest.formats.json_item import read_item
from ingest.formats.json_slices import SPACE, not_json, slices
from ingest.formats.json_whole import Rows, many, one
from ingest.formats.post import (
    ERRORS_TOLD_MAX,
    Decoded,
    ItemError,
    Post,
    Steps,
    most_invalid,
    most_items,
    too_many,
    too_many_invalid,
)
from ingest.formats.series import SERIES
from ingest.model.block import Block
from ingest.model.errors import Refused
from ingest.model.rows import PG_EPOCH_US, encode_rows

WHOLE_BYTES = 16 * 1024  # a body of this size is decoded in one step, if all its items are valid
CAREFUL_ITEMS = 32  # read one by one in one step

_RAWS = msgspec.json.Decoder(list[Raw])


def decode(body: bytes, post: Post) -> Decoded:
    """Do what `begin` does, in one go."""
    decoded = begin(body, post)
    while not isinstance(decoded, Decoded):
        try:
            next(decoded)
        except StopIteration as end:
            decoded = cast("Decoded", end.value)
    return decoded


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
        _require_possible(value, post)
        rows = None if len(value) > most_items(size) else many(value, body, post)
    else:
        rows = None
    items = value if kind is list else [value]
    if rows is not None and _are_allowed(items, post):
        return Decoded(_block(rows, post), [])
    reader = _Reader(post, size)
    return reader.finish(reader.read_again(items, body))


def _in_slices(body: bytes, post: Post) -> Steps:
    reader = _Reader(post, len(body))
    return reader.finish(reader.read_all(body))


def _require_possible(items: Sequence[Any], post: Post) -> None:
    """Raise Refused if there are no items, or too many."""
    if not items:
        raise Refused("empty", "the array has no items")
    if len(items) > post.rules.post_rows_max:
        raise too_many(post.rules.post_rows_max)


def _are_allowed(items: Sequence[Any], post: Post) -> bool:
    """Whether the sender may speak for the devices of these items, which are all valid."""
    allows = post.allows
    return allows is None or all(allows(item["device_id"]) for item in items)


def _originals(text: bytes) -> list[bytes]:
    """Return the bytes of each item of an array, or of one item. Raises Refused (`not_json`)."""
    stripped = text.strip(SPACE)
    if stripped[:1] != b"[":
        return [stripped]
    try:
        return [bytes(raw) for raw in _RAWS.decode(text)]
    except RecursionError as fault:
        raise not_json(fault) from None


def _block(rows: Rows, post: Post) -> Block:
    return Block(
        rows.tuples,
        rows.rows,
        received_s=post.received_s,
        received_us=post.received_us,
        newest_ts_us=rows.newest_us,
        items=rows.items,
    )


class _Reader:
    """What has been read of one post."""

    def __init__(self, post: Post, body_bytes: int) -> None:
        self._post = post
        self._body_bytes = body_bytes
        self._items = 0
        self._tuples: list[bytes] = []
        self._rows = 0
        self._newest_us = 0
        self._owners: list[int] | None = None  # the item of each row; None: row i is of item i
        self._errors: list[ItemError] = []
        self._is_all_bad = False  # the last items: the next ones are likely to be invalid too

    def finish(self, steps: Generator[None, None, None]) -> Steps:
        """Do the steps; return everything that was read."""
        try:
            yield from steps
        except RecursionError as fault:
            raise not_json(fault) from None
        if not self._rows:
            return Decoded(None, self._errors)
        rows = Rows(b"".join(self._tuples), self._rows, self._newest_us, self._owners)
        return Decoded(_block(rows, self._post), self._errors)

    def read_all(self, body: bytes) -> Generator[None, None, None]:
        """Read a body in slices."""
        for each in slices(body, self._post.rules.post_rows_max, lambda: self._is_all_bad):
            yield
            if each is None:
                continue  # the parser tried a slice that was too short
            items, text = each
            if not self._items:
                _require_possible(items, self._post)
            is_bad = self._is_all_bad or self._is_crowd(items)
            rows = None if is_bad else many(items, text, self._post)
            if rows is not None and _are_allowed(items, self._post):
                self._keep(rows, len(items))
            else:
                yield
                yield from self.read_again(items, text)

    def read_again(self, items: Sequence[Any], text: bytes) -> Generator[None, None, None]:
        """Read the items of a text one by one, CAREFUL_ITEMS in a step."""
        if self._is_crowd(items):
            self._name_some(items)
            raise too_many_invalid(self._errors, self._body_bytes)
        originals = _originals(text)
        for start in range(0, len(items), CAREFUL_ITEMS):
            if start:
                yield
            self._read_some(items[start : start + CAREFUL_ITEMS], originals[start:])
            if len(self._errors) > most_invalid(self._body_bytes):
                raise too_many_invalid(self._errors, self._body_bytes)

    def _is_crowd(self, items: Sequence[Any]) -> bool:
        return self._items + len(items) > most_items(self._body_bytes)

    def _name_some(self, items: Sequence[Any]) -> None:
        """Note the errors of the first items, for the answer. Most of the items are too short."""
        some = items[:CAREFUL_ITEMS]
        self._read_some(some, [*map(orjson.dumps, some)])

    def _read_some(self, items: Sequence[Any], originals: Sequence[bytes]) -> None:
        times_pg_us: list[int] = []
        newest_us = 0
        names: list[bytes] = []
        values: list[float] = []
        owners: list[int] = []
        for place, (item, original) in enumerate(zip(items, originals, strict=False)):
            told = len(self._errors) < ERRORS_TOLD_MAX
            readings, error = read_item(item, original, self._items + place, self._post, told=told)
            if error is not None:
                self._errors.append(error)
            if readings is not None:
                ts_us, device_id, by_metric = readings
                names += [SERIES.names(metric, device_id) for metric in by_metric]
                values += by_metric.values()
                times_pg_us += [ts_us - PG_EPOCH_US] * len(by_metric)
                newest_us = max(newest_us, ts_us)
                owners += [place] * len(by_metric)
        self._is_all_bad = not names
        tuples = encode_rows(times_pg_us, names, values) if names else b""
        self._keep(Rows(tuples, len(names), newest_us, owners), len(items))

    def _keep(self, rows: Rows, items: int) -> None:
        """Add the rows of the next items. Raises Refused (`too_many_readings`)."""
        if rows.items is not None or self._owners is not None:
            if self._owners is None:
                self._owners = list(range(self._rows))
            self._owners += [self._items + i for i in rows.items or range(rows.rows)]
        self._items += items
        self._tuples.append(rows.tuples)
        self._rows += rows.rows
        self._newest_us = max(self._newest_us, rows.newest_us)
        if self._rows + len(self._errors) > self._post.rules.post_rows_max:
            raise too_many(self._post.rules.post_rows_max)
