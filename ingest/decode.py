"""A JSON body into a block: decoded by msgspec in one pass, encoded at once. The hot path.

The fast path takes a whole body or, at the first doubt, nothing of it: it names no error and takes
nothing that decode_item.py would refuse. A body it leaves is tried again in chunks, and what it
leaves of those goes through decode_item.py, item by item.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ingest.block import PG_EPOCH_US, ROW_HEAD, Block, Pack, encode_reading, packer
from ingest.decode_item import ItemError, Post, Rules, read_item, too_many
from ingest.errors import Refused
from ingest.reading import name_fault
from ingest.timestamp import numbers_us, texts_us

__all__ = ["Decoded", "ItemError", "Rules", "decode"]

SERIES_CACHED_MAX = 32_768
CHUNK_ITEMS = 16
LARGE_BODY_BYTES = 65_536
COMMAS_PER_READING_MAX = 16  # a reading has 4; more than 65,536 in a post may be refused unread
JSON_SPACE = b" \t\n\r"

Stamp = str | int | float | UnsetType


class Decoded(NamedTuple):
    """What a body held. `block` is None if no reading is valid.

    Readings posted: `block.rows` and one for each error.
    """

    block: Block | None
    errors: list[ItemError]


class _Item(Struct, gc=False, forbid_unknown_fields=True):
    device_id: str
    metric: str | UnsetType = UNSET
    ts: Stamp = UNSET
    value: float | bool | UnsetType = UNSET
    values: dict[str, float | bool] | UnsetType = UNSET


class _OpenItem(_Item, gc=False, forbid_unknown_fields=False):
    """An item whose unknown fields are skipped."""


class _Rows(NamedTuple):
    """Rows encoded from some items, and whose each row is (None: row i is of item i)."""

    rows: list[bytes]
    times_us: list[int]
    items: list[int] | None


class _Series(dict[tuple[str, str | UnsetType], tuple[Pack, bytes]]):
    """Device and metric, names known to be good, with what packs a row of them."""

    def __missing__(self, names: tuple[str, str | UnsetType]) -> tuple[Pack, bytes]:
        device_id, metric = names
        if isinstance(metric, UnsetType) or name_fault(device_id) or name_fault(metric):
            raise KeyError(names)
        if len(self) >= SERIES_CACHED_MAX:
            self.clear()
        series = self[names] = packer(device_id, metric)
        return series


_series = _Series()

_ITEMS: msgspec.json.Decoder[list[_Item] | _Item] = msgspec.json.Decoder(list[_Item] | _Item)
_OPEN_ITEMS: msgspec.json.Decoder[list[_OpenItem] | _OpenItem] = msgspec.json.Decoder(
    list[_OpenItem] | _OpenItem
)
_RAWS = msgspec.json.Decoder(list[Raw])
_RAW = msgspec.json.Decoder(Raw)


def decode(
    body: bytes,
    *,
    precision: str | None,
    ignore_unknown: bool,
    received_us: int,
    received_s: float,
    rules: Rules,
) -> Decoded:
    """Turn a body into one block of its valid readings, and the errors of the others.

    `precision` is the unit of numeric `ts` (s, ms, us, ns; None: by magnitude). Readings without
    `ts` get `received_us`. Raises Refused: `not_json`, `empty`, `too_many_readings`.
    """
    post = Post(precision, ignore_unknown, received_us, rules)
    _refuse_crowd(body, rules.post_rows_max)
    errors: list[ItemError] = []
    try:
        fast = _fast(body, post)
        rows, times_us, items = fast if fast is not None else _careful(body, post, errors)
    except RecursionError:
        raise Refused("not_json", "the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise Refused("not_json", f"the body is not JSON: {fault}") from None
    if not rows:
        return Decoded(None, errors)
    block = Block(
        b"".join(rows),
        len(rows),
        received_s=received_s,
        received_us=received_us,
        newest_ts_us=max(times_us),
        items=items,
    )
    return Decoded(block, errors)


def _refuse_crowd(body: bytes, rows_max: int) -> None:
    """Refuse a body of very many small parts before anything is made of them.

    Every reading and every item but the first has a comma before it.
    """
    if len(body) <= LARGE_BODY_BYTES:
        return
    commas = body.count(b",")
    if commas > COMMAS_PER_READING_MAX * max(rows_max, 4_096):
        raise too_many(rows_max, f"the body has {commas} commas, too many to be looked at")


def _fast(body: bytes, post: Post) -> _Rows | None:
    """Encode all items of a body, or return None if anything needs a closer look."""
    try:
        decoded = (_OPEN_ITEMS if post.ignore_unknown else _ITEMS).decode(body)
    except msgspec.ValidationError:
        return None
    items = cast("list[_Item]", decoded) if isinstance(decoded, list) else [decoded]
    if not items:
        raise Refused("empty", "the array has no items")
    if len(items) > post.rules.post_rows_max:
        raise too_many(post.rules.post_rows_max, f"the post has {len(items)} items")
    stamps = [item.ts for item in items]
    kinds = list(map(type, stamps))
    if post.ignore_unknown:
        doubtful = _open_doubtful(body, len(items), len(items) - kinds.count(UnsetType))
    else:
        doubtful = body.count(b'"') != _quotes(items, kinds)
    times_us = None if doubtful else _times_us(stamps, kinds, post)
    if times_us is None:
        return None
    try:
        if [item.values for item in items].count(UNSET) == len(items):
            return _flat(items, times_us)
        return _spread(items, times_us, post.rules.post_rows_max)
    except (KeyError, TypeError):  # a bad or missing name, a missing value
        return None


def _quotes(items: list[_Item], kinds: list[type]) -> int:
    """Return the quotes in the shortest body that msgspec makes these items of.

    A body with more of them has a name twice in some object (msgspec keeps the last one and says
    nothing) or a quote in a text. Counting is the cheapest way to see that: 0.05 us a reading.
    """
    present = len(items) - kinds.count(UnsetType)
    entries = [2 * len(item.values) - 4 for item in items if not isinstance(item.values, UnsetType)]
    return 10 * len(items) + 2 * present + 2 * kinds.count(str) + sum(entries)


def _open_doubtful(body: bytes, items: int, stamps: int) -> bool:
    """Whether a field may stand twice in an item, or `values` may stand in one.

    Without escapes, a field's name in quotes is that field, or is within an unknown one.
    """
    body.decode()  # msgspec does not look into the text that it skips
    return (
        b"\\" in body
        or body.count(b'"device_id"') != items
        or body.count(b'"metric"') != items
        or body.count(b'"value"') != items
        or body.count(b'"ts"') != stamps
        or b'"values"' in body
    )


def _times_us(stamps: list[Stamp], kinds: list[type], post: Post) -> list[int] | None:
    """Return all times, or None if one cannot be read or is outside of the window."""
    times_us: list[int] | None
    texts, absent = kinds.count(str), kinds.count(UnsetType)
    if absent:
        return [post.received_us] * absent if absent == len(stamps) else None
    if texts == len(stamps):
        times_us = texts_us(cast("list[str]", stamps))
    elif texts == 0:
        times_us = numbers_us(cast("list[int | float]", stamps), post.precision)
    else:
        return None
    if times_us is None or min(times_us) < post.rules.ts_min_us:
        return None
    return times_us if max(times_us) <= post.received_us + post.rules.ts_ahead_us_max else None


def _flat(items: list[_Item], times_us: list[int]) -> _Rows:
    """Encode items of one reading each. Raises KeyError or TypeError if one is not good."""
    rows = [
        pack(ROW_HEAD, ts_us - PG_EPOCH_US, names, item.value + 0.0)  # type: ignore[operator]
        for item, ts_us, (pack, names) in zip(
            items, times_us, [_series[item.device_id, item.metric] for item in items], strict=True
        )
    ]
    return _Rows(rows, times_us, None)


def _spread(items: list[_Item], times_us: list[int], rows_max: int) -> _Rows:
    """Encode items of several readings each, or of both shapes. Raises as _flat does."""
    rows: list[bytes] = []
    row_times_us: list[int] = []
    owners: list[int] = []
    for place, item in enumerate(items):
        ts_us = times_us[place]
        ts_pg_us = ts_us - PG_EPOCH_US
        device_id = item.device_id
        values = item.values
        entries = {item.metric: item.value} if isinstance(values, UnsetType) else values
        if not entries:
            raise KeyError("values")
        if len(rows) + len(entries) > rows_max:
            raise too_many(rows_max, "the post has more")
        for metric, value in entries.items():
            pack, names = _series[device_id, metric]
            rows.append(pack(ROW_HEAD, ts_pg_us, names, value + 0.0))  # type: ignore[operator]
        row_times_us += [ts_us] * len(entries)
        owners += [place] * len(entries)
    return _Rows(rows, row_times_us, owners)


def _careful(body: bytes, post: Post, errors: list[ItemError]) -> _Rows:
    """Encode what is good in a body, chunk by chunk, item by item; append errors for the rest."""
    originals = _originals(body, post.rules.post_rows_max)
    rows: list[bytes] = []
    times_us: list[int] = []
    owners: list[int] = []
    for start in range(0, len(originals), CHUNK_ITEMS):
        chunk = originals[start : start + CHUNK_ITEMS]
        fast = _fast(b"[%b]" % b",".join(chunk), post) if len(originals) > 1 else None
        if fast is not None:
            rows += fast.rows
            times_us += fast.times_us
            owners += [start + i for i in fast.items or range(len(fast.rows))]
            chunk = []
        for item, original in enumerate(chunk, start):
            readings, faults = read_item(original, item, post)
            rows += [encode_reading(each) for each in readings]
            times_us += [each.ts_us for each in readings]
            owners += [item] * len(readings)
            errors += faults
        if len(rows) + len(errors) > post.rules.post_rows_max:
            raise too_many(post.rules.post_rows_max, "the post has more")
    return _Rows(rows, times_us, owners)


def _originals(body: bytes, rows_max: int) -> list[bytes]:
    """Return the bytes of each item, all of them JSON and UTF-8 (or raise what says otherwise)."""
    body.decode()  # msgspec does not look into the text that it skips
    if body.lstrip(JSON_SPACE)[:1] != b"[":
        _RAW.decode(body)
        return [body.strip(JSON_SPACE)]
    raws = _RAWS.decode(body)
    if len(raws) > rows_max:
        raise too_many(rows_max, f"the post has {len(raws)} items")
    return [bytes(raw) for raw in raws]
