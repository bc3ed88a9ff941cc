"""From the valid readings of a post to blocks: its names, encoded once, and its rows, collected.

The names of a row are what it has of the device and then what it has of the metric. So nothing is
kept for each series. JSON and the other formats with items find their names here; lines/keys.py
keeps the keys of lines. All formats tell which devices post, but only those that were not kept. So
a registry learns it at no cost for the others. It calls `look` to be told of all devices again.
Lines and mapped documents collect in a BlockBuilder: a post may have several blocks, each with at
most `post.rules.post_rows_max` rows. The formats with items collect in an ItemReader: JSON gives it
the rows of whole slices. It reads the items of other slices, and those of MessagePack and SenML,
one by one, a few in each step. What is read one by one gets its homes some readings later.
Promises: of faults no more are kept than the body may have at full length. Of lines and documents
the others are counted; a post with more items that are invalid, or with too many readings, is
refused.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Generator, KeysView, Sequence
from operator import add
from typing import Any

from msgspec import Struct

from ingest.formats.post import (
    ERRORS_TOLD_MAX,
    Decoded,
    ItemError,
    Points,
    Post,
    Steps,
    most_invalid,
    most_items,
    too_many,
    too_many_invalid,
)
from ingest.model.block import PG_EPOCH_US, Block, device_needles, encode_rows, metric_after
from ingest.model.errors import Refused
from ingest.model.placed_rows import Unplaced
from ingest.model.reading import NAME_CHARACTERS_MAX, name_fault
from ingest.model.tables import NO_TABLES, Tables

KEPT_BYTES_MAX = 8 * 1024 * 1024  # of all names: 30,000 devices
TOLD_AT_ONCE = 1_000  # devices: some 0.1 ms of work for a registry
_ENTRY_BYTES = 230  # of a name in its dict, besides its characters: at most 4 bytes for each
CAREFUL_ITEMS = 32  # read one by one in one step
UNREADABLE = "item_unreadable"  # of an item that is not JSON, or not MessagePack

# What is valid in an item: the time, the device, the values by metric.
ItemReadings = tuple[int, str, dict[str, float]]
# Reads an item, given its bytes, its index in the post, the post, and whether its error gets a
# message.
ReadItem = Callable[[Any, bytes, int, Post, bool], tuple[ItemReadings | None, ItemError | None]]


class SeriesCache:
    """Valid names. `devices` and `metrics` are for the hot path, which only reads them.

    They have what `names_between` returns for the device, and for the metric. `metrics[tables]` has
    only metrics that none of these tables takes: so the hot path asks for no home. Each device that
    is in `devices` was told to `listener` since the last `look`.
    """

    def __init__(self) -> None:
        self.devices: dict[str, bytes] = {}
        self.metrics = defaultdict[Tables, dict[str, bytes]](dict)
        self.listener: Callable[[list[str]], None] | None = None
        self.looks = 0
        self.found = 0  # names and keys that were not kept, since the last look
        self._size_bytes = 0
        self._posted: list[str] = []  # devices that are not told yet

    def names(self, metric: str, device_id: str) -> bytes:
        """Return the bytes between ts and value. Raises KeyError for an invalid or missing name.

        The device has then posted.
        """
        return self.all_names([metric], [device_id])[0]

    def all_names(self, metrics: list[str], device_ids: list[str]) -> list[bytes]:
        """Do what `names` does, for many readings. No device has posted if a metric is invalid."""
        afters = self.afters(metrics)
        return [*map(add, self.needles(device_ids), afters)]

    def are_taken(self, metrics: KeysView[str], tables: Tables) -> bool:
        """Whether one of these tables takes one of these metrics."""
        return not self.metrics[tables].keys() >= metrics and any(map(tables.home, metrics))

    def plain_names(
        self, metrics: list[str], device_ids: list[str], tables: Tables
    ) -> list[bytes] | None:
        """Do what `all_names` does; return None if one of these tables takes such a metric."""
        try:
            afters = [*map(self.metrics[tables].__getitem__, metrics)]
        except KeyError:
            if any(map(tables.home, {*metrics})):
                return None
            afters = self.afters(metrics)
            kept = self.metrics[tables]
            before = len(kept)
            kept.update(zip(metrics, afters, strict=True))
            self._size_bytes += (len(kept) - before) * _ENTRY_BYTES
        return [*map(add, self.needles(device_ids), afters)]

    def afters(self, metrics: Sequence[str]) -> list[bytes]:
        """Return what `metric_after` does for each of these. Raises KeyError if one is invalid."""
        try:
            return [*map(self.metrics[NO_TABLES].__getitem__, metrics)]
        except KeyError:
            self._make_room()
            kept = self.metrics[NO_TABLES]
            for metric in [each for each in {*metrics} if each not in kept]:
                if name_fault(metric):
                    raise KeyError(metric) from None
                kept[metric] = metric_after(metric)
                self._size_bytes += 4 * len(metric) + _ENTRY_BYTES
            return [*map(kept.__getitem__, metrics)]

    def needles(self, device_ids: list[str]) -> list[bytes]:
        """Return what rows have of each of these devices. Raises KeyError if one is invalid.

        They have then posted.
        """
        try:
            return [*map(self.devices.__getitem__, device_ids)]
        except KeyError:
            self._make_room()
            self._keep_devices([each for each in {*device_ids} if each not in self.devices])
            return [*map(self.devices.__getitem__, device_ids)]

    def posted(self, device_ids: list[str]) -> None:
        """Tell the listener of these devices, now or soon."""
        self.found += len(device_ids)
        self._posted += device_ids
        if len(self._posted) >= TOLD_AT_ONCE:
            self._tell()

    def look(self) -> None:
        """Tell the listener of all devices that have posted. Each is told again if it posts again.

        The next posts then pay a miss for each name, some 1 us. Other posts pay nothing.
        """
        self._tell()
        self._forget()
        self.looks += 1
        self.found = 0

    def _tell(self) -> None:
        posted, self._posted = self._posted, []
        if self.listener is not None:
            self.listener(posted)

    def _make_room(self) -> None:
        if self._size_bytes > KEPT_BYTES_MAX:
            self._forget()

    def _forget(self) -> None:
        self.devices.clear()
        self.metrics.clear()
        self._size_bytes = 0

    def _keep_devices(self, device_ids: list[str]) -> None:
        self.devices.update(zip(device_ids, valid_needles(device_ids), strict=True))
        self._size_bytes += 4 * sum(map(len, device_ids)) + len(device_ids) * _ENTRY_BYTES
        self.posted(device_ids)


def valid_needles(device_ids: list[str]) -> list[bytes]:
    """Return `device_needles` of some devices. Raises KeyError if one is invalid."""
    joined, sizes = "".join(device_ids), [*map(len, device_ids)]
    are_plain = joined.isascii() and joined.isprintable()
    if not (are_plain and min(sizes) and max(sizes) <= NAME_CHARACTERS_MAX):
        for device_id in device_ids:
            if name_fault(device_id):
                raise KeyError(device_id)
    return device_needles(device_ids)


SERIES = SeriesCache()


class Rows(Struct, frozen=True, gc=False):
    """Encoded rows of some items. `items[i]` is the item of row i; None: row i is of item i."""

    tuples: bytes
    rows: int
    newest_us: int
    items: Sequence[int] | None


class BlockBuilder:
    """What has been read of one post. `rows` counts its readings, `faults` its faulty items."""

    def __init__(self, post: Post, body_bytes: int) -> None:
        self.rows = 0
        self.errors: list[ItemError] = []
        self.not_kept = 0  # items with a fault that are not in `errors`
        self._post = post
        self._errors_max = most_invalid(body_bytes)
        self._blocks: list[Block] = []
        self._bytes = 0  # of them, of `_parts`, and of the items in `errors`
        self._unplaced: Unplaced | None = None  # once there are some: few posts have them
        # Of the next block:
        self._parts: list[bytes] = []
        self._block_rows = 0
        self._newest_us = 0
        self._owners = array("L")  # the item of each row

    @property
    def faults(self) -> int:
        """So many items have a fault."""
        return len(self.errors) + self.not_kept

    @property
    def is_full_of_errors(self) -> bool:
        """Whether the next fault is only counted."""
        return len(self.errors) >= self._errors_max

    def fault(self, error: ItemError) -> None:
        """Keep a fault, if it is not one too many."""
        if self.is_full_of_errors:
            self.not_kept += 1
            return
        self.errors.append(error)
        self._bytes += len(error.original)

    def add(
        self,
        times_pg_us: Sequence[int],
        names: list[bytes],
        values: list[float],
        owners: Sequence[int],
        newest_us: int,
    ) -> None:
        """Add readings to the last block; begin a new one when it is full.

        If tables are declared, they are encoded later, some with each call.
        """
        if not self._post.rules.tables:
            self.add_plain(times_pg_us, names, values, owners, newest_us)
            return
        if self._unplaced is None:
            self._unplaced = Unplaced()
        self._unplaced.add(times_pg_us, names, values, owners)
        self.rows += len(names)
        if self._unplaced.are_many:
            self._place(self._unplaced)

    def add_plain(
        self,
        times_pg_us: Sequence[int],
        names: list[bytes],
        values: list[float],
        owners: Sequence[int],
        newest_us: int,
    ) -> None:
        """Add readings that no table takes."""
        at, rows = 0, len(names)
        while at < rows:
            end = min(rows, at + self._room)
            part = encode_rows(times_pg_us[at:end], names[at:end], values[at:end])
            self._add(part, owners[at:end], newest_us)
            at = end
        self.rows += rows

    def add_placed(self, tuples: bytes, owners: Sequence[int], newest_us: int) -> None:
        """Add encoded readings to the last block or a new one. They are not too many for it."""
        if len(owners) > self._room:
            self._end_block()
        self._add(tuples, owners, newest_us)
        self.rows += len(owners)

    def place(self) -> Generator[None, None, None]:
        """Encode what is not encoded yet, but for some readings. A step has some of them."""
        while self._unplaced is not None and self._unplaced.are_many:
            yield
            self._place(self._unplaced)

    @property
    def is_behind(self) -> bool:
        """Whether some readings are not encoded yet that `place` would encode."""
        return self._unplaced is not None and self._unplaced.are_many

    @property
    def _room(self) -> int:
        """So many readings fit in the last block."""
        return self._post.rules.post_rows_max - self._block_rows

    def _place(self, unplaced: Unplaced) -> None:
        tuples, owners, newest_us = unplaced.encode(self._room, self._post.rules.tables)
        self._add(tuples, owners, newest_us)

    def _add(self, tuples: bytes, owners: Sequence[int], newest_us: int) -> None:
        self._parts.append(tuples)
        self._bytes += len(tuples)
        self._owners.extend(owners)
        self._block_rows += len(owners)
        self._newest_us = max(self._newest_us, newest_us)
        if self._block_rows == self._post.rules.post_rows_max:
            self._end_block()

    def points(self) -> Points:
        """Return all that was added."""
        while self._unplaced is not None and self._unplaced.names:
            self._place(self._unplaced)
        self._end_block()
        return Points(self._blocks, self.errors, not_kept=self.not_kept)

    def _end_block(self) -> None:
        if not self._block_rows:
            return
        post, owners = self._post, self._owners
        rows = self._block_rows
        is_alike = owners[-1] == rows - 1 and owners == array("L", range(rows))
        block = Block(
            b"".join(self._parts),
            self._block_rows,
            received_s=post.received_s,
            received_us=post.received_us,
            newest_ts_us=self._newest_us,
            items=None if is_alike else owners,
        )
        self._blocks.append(block)
        self._parts, self._owners = [], array("L")
        self._block_rows = self._newest_us = 0

    def check_bytes(self, bytes_max: int) -> None:
        """Raise Refused if rows and kept faults take more."""
        if self._bytes > bytes_max:
            raise Refused(
                "body_too_large",
                f"its readings take more than {bytes_max} bytes; split the post",
                body_bytes_max=bytes_max,
            )


class ItemReader:
    """What has been read of one post. `items` counts them, `errors` has those that are invalid."""

    def __init__(self, post: Post, body_bytes: int) -> None:
        self.post = post
        self.items = 0
        self.errors: list[ItemError] = []
        self.is_all_bad = False  # the last items: the next ones are likely to be invalid too
        self.texts = 0  # values that are no numbers, and are left out
        self._body_bytes = body_bytes
        self.rows = 0  # the number of valid readings
        self._newest_us = 0
        self._tuples: list[bytes] = []
        self._owners: list[int] | None = None  # the item of each row; None: row i is of item i
        self._encoded = 0  # so many rows
        self._unplaced = Unplaced()  # of items that were read one by one

    def finish(self, steps: Generator[None, None, None]) -> Steps:
        """Do the steps; return everything that was read."""
        yield from steps
        self._place_all()
        block = None
        if self.rows:
            block = Block(
                b"".join(self._tuples),
                self.rows,
                received_s=self.post.received_s,
                received_us=self.post.received_us,
                newest_ts_us=self._newest_us,
                items=self._owners,
            )
        return Decoded(block, self.errors, self.texts)

    def read_some(
        self, items: Sequence[Any], originals: Sequence[bytes], read: ReadItem
    ) -> Generator[None, None, None]:
        """Read items one by one, CAREFUL_ITEMS in a step."""
        for start in range(0, len(items), CAREFUL_ITEMS):
            if start:
                yield
            self.read_few(items[start : start + CAREFUL_ITEMS], originals[start:], read)
            while self._unplaced.are_many:
                yield
                self._place()
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
        before = self.rows
        for item, (value, original) in enumerate(zip(items, originals, strict=False), self.items):
            told = len(self.errors) < ERRORS_TOLD_MAX
            readings, error = read(value, original, item, self.post, told)
            if error is not None:
                self.errors.append(error)
            if readings is not None:
                ts_us, device_id, by_metric = readings
                names = [SERIES.names(metric, device_id) for metric in by_metric]
                count = len(names)
                times_pg_us = [ts_us - PG_EPOCH_US] * count
                self._unplaced.add(times_pg_us, names, by_metric.values(), [item] * count)
                self._newest_us = max(self._newest_us, ts_us)
                self.rows += count
        self.items += len(items)
        self.is_all_bad = self.rows == before
        self._check()

    def keep(self, rows: Rows, items: int) -> None:
        """Add the rows of the next items. Raises Refused (`too_many_readings`)."""
        self._place_all()
        owners = range(rows.rows) if rows.items is None else rows.items
        is_alike = rows.items is None and self._owners is None
        self._add(rows.tuples, None if is_alike else [self.items + i for i in owners], rows.rows)
        self.items += items
        self.rows += rows.rows
        self._newest_us = max(self._newest_us, rows.newest_us)
        self._check()

    def _place_all(self) -> None:
        while self._unplaced.names:
            self._place()

    def _place(self) -> None:
        """Encode some of what was read one by one."""
        rules = self.post.rules
        tuples, owners, _ = self._unplaced.encode(rules.post_rows_max, rules.tables)
        self._add(tuples, owners, len(owners))

    def _add(self, tuples: bytes, owners: Sequence[int] | None, rows: int) -> None:
        """Add encoded rows; without owners row i is of item i."""
        self._tuples.append(tuples)
        if owners is not None:
            if self._owners is None:
                self._owners = list(range(self._encoded))
            self._owners += owners
        self._encoded += rows

    def _check(self) -> None:
        if self.rows + len(self.errors) > self.post.rules.post_rows_max:
            raise too_many(self.post.rules.post_rows_max)


def require_possible(items: int, post: Post) -> None:
    """Raise Refused if there are no items, or too many."""
    if not items:
        raise Refused("empty", "the array has no items")
    if items > post.rules.post_rows_max:
        raise too_many(post.rules.post_rows_max)
