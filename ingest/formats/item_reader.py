"""Collects what is read of one post: the rows of its valid readings, and its errors.

The formats with items share it. JSON and NDJSON give it the rows of whole slices. It reads the
items of their other slices, and those of MessagePack and SenML, one by one, a few in each step.
Promises: a post with too many readings, or with too many invalid items, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from ingest.formats.json_whole import Rows, block_of
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
from ingest.model.errors import Refused
from ingest.model.rows import PG_EPOCH_US, encode_rows

CAREFUL_ITEMS = 32  # read one by one in one step

# What is valid in an item: the time, the device, the values by metric.
ItemReadings = tuple[int, str, dict[str, float]]
# Reads an item, given its bytes, its index in the post, the post, and whether its error gets a
# message.
ReadItem = Callable[[Any, bytes, int, Post, bool], tuple[ItemReadings | None, ItemError | None]]


def require_possible(items: int, post: Post) -> None:
    """Raise Refused if there are no items, or too many."""
    if not items:
        raise Refused("empty", "the array has no items")
    if items > post.rules.post_rows_max:
        raise too_many(post.rules.post_rows_max)


class ItemReader:
    """What has been read of one post. `items` counts them, `errors` has those that are invalid."""

    def __init__(self, post: Post, body_bytes: int) -> None:
        self.post = post
        self.items = 0
        self.errors: list[ItemError] = []
        self.is_all_bad = False  # the last items: the next ones are likely to be invalid too
        self.texts = 0  # values that are no numbers, and are left out
        self._body_bytes = body_bytes
        self._tuples: list[bytes] = []
        self.rows = 0  # the number of valid readings
        self._newest_us = 0
        self._owners: list[int] | None = None  # the item of each row; None: row i is of item i

    def finish(self, steps: Generator[None, None, None]) -> Steps:
        """Do the steps; return everything that was read."""
        yield from steps
        if not self.rows:
            return Decoded(None, self.errors, self.texts)
        rows = Rows(b"".join(self._tuples), self.rows, self._newest_us, self._owners)
        return Decoded(block_of(rows, self.post), self.errors, self.texts)

    def read_some(
        self, items: Sequence[Any], originals: Sequence[bytes], read: ReadItem
    ) -> Generator[None, None, None]:
        """Read items one by one, CAREFUL_ITEMS in a step."""
        for start in range(0, len(items), CAREFUL_ITEMS):
            if start:
                yield
            self.read_few(items[start : start + CAREFUL_ITEMS], originals[start:], read)
            if len(self.errors) > most_invalid(self._body_bytes):
                raise self.too_many_invalid()

    def too_many_invalid(self) -> Refused:
        """Return the refusal of a post with more invalid items than are kept."""
        return too_many_invalid(self.errors, self._body_bytes)

    def is_crowd(self, items: int) -> bool:
        """Whether the post has very many items, if it has so many more: most are too short."""
        return self.items + items > most_items(self._body_bytes)

    def read_few(self, items: Sequence[Any], originals: Sequence[bytes], read: ReadItem) -> None:
        """Read a few items one by one."""
        times_pg_us: list[int] = []
        newest_us = 0
        names: list[bytes] = []
        values: list[float] = []
        owners: list[int] = []
        for place, (item, original) in enumerate(zip(items, originals, strict=False)):
            told = len(self.errors) < ERRORS_TOLD_MAX
            readings, error = read(item, original, self.items + place, self.post, told)
            if error is not None:
                self.errors.append(error)
            if readings is not None:
                ts_us, device_id, by_metric = readings
                names += [SERIES.names(metric, device_id) for metric in by_metric]
                values += by_metric.values()
                times_pg_us += [ts_us - PG_EPOCH_US] * len(by_metric)
                newest_us = max(newest_us, ts_us)
                owners += [place] * len(by_metric)
        self.is_all_bad = not names
        tuples = encode_rows(times_pg_us, names, values) if names else b""
        self.keep(Rows(tuples, len(names), newest_us, owners), len(items))

    def keep(self, rows: Rows, items: int) -> None:
        """Add the rows of the next items. Raises Refused (`too_many_readings`)."""
        if rows.items is not None or self._owners is not None:
            if self._owners is None:
                self._owners = list(range(self.rows))
            self._owners += [
                self.items + i for i in (range(rows.rows) if rows.items is None else rows.items)
            ]
        self.items += items
        self._tuples.append(rows.tuples)
        self.rows += rows.rows
        self._newest_us = max(self._newest_us, rows.newest_us)
        if self.rows + len(self.errors) > self.post.rules.post_rows_max:
            raise too_many(self.post.rules.post_rows_max)
