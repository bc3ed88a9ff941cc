"""A JSON body into a block: decoded by msgspec in one pass, encoded at once. The hot path.

The fast path takes whole arrays and gives up at the first doubt (a name, a time, a shape that it
has not seen to be good); then chunks are tried, and what is left goes through decode_item.py, which
names the errors. The fast path never reports an error and never takes what the slow one refuses.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ingest.block import PG_EPOCH_US, Block, Pack, encode_reading, packer
from ingest.decode_item import ItemError, Post, Rules, read_item
from ingest.errors import Refused
from ingest.reading import name_fault
from ingest.timestamp import number_us, text_us

__all__ = ["Decoded", "ItemError", "Rules", "decode"]

SERIES_CACHED_MAX = 32_768
CHUNK_ITEMS = 8  # measured: one bad item of 100 then costs as much as 60 good ones
LARGE_BODY_BYTES = 65_536
COMMAS_PER_READING_MAX = 16  # a reading has 4; more than 65,536 in a post may be refused unread
JSON_SPACE = b" \t\n\r"


class Decoded(NamedTuple):
    """What a body held. `block` is None if no reading is valid.

    Readings posted: `block.rows` and one for each error.
    """

    block: Block | None
    errors: list[ItemError]


class _Item(Struct, gc=False, forbid_unknown_fields=True):
    device_id: str
    metric: str | UnsetType = UNSET
    ts: str | int | float | UnsetType = UNSET
    value: float | bool | UnsetType = UNSET
    values: dict[str, float | bool] | UnsetType = UNSET


class _Rows(NamedTuple):
    """Rows encoded from some items, and whose each row is (None: row i is of item i)."""

    rows: list[bytes]
    times_us: list[int]
    items: list[int] | None


_ITEMS: msgspec.json.Decoder[list[_Item] | _Item] = msgspec.json.Decoder(list[_Item] | _Item)
_RAWS = msgspec.json.Decoder(list[Raw])
_RAW = msgspec.json.Decoder(Raw)

# Series whose names are known to be good, with their packer.
_series: dict[tuple[str, object], tuple[Pack, bytes]] = {}


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
    fast = _fast(body, post)
    rows, times_us, items = fast if fast is not None else _careful(body, post, errors)
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
        raise _too_many(rows_max, f"the body has {commas} commas, too many to be looked at")


def _too_many(rows_max: int, found: str) -> Refused:
    return Refused(
        "too_many_readings",
        f"{found}; a post may have {rows_max} readings",
        readings_max=rows_max,
    )


def _fast(body: bytes, post: Post) -> _Rows | None:
    """Encode all items of a body, or return None if anything needs a closer look."""
    try:
        decoded = _ITEMS.decode(body)
    except msgspec.ValidationError:
        return None
    except RecursionError:
        raise Refused("not_json", "the body is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as fault:  # ValueError: UnicodeDecodeError
        raise Refused("not_json", f"the body is not JSON: {fault}") from None
    items = decoded if isinstance(decoded, list) else [decoded]
    if not items:
        raise Refused("empty", "the array has no items")
    if len(items) > post.rules.post_rows_max:
        raise _too_many(post.rules.post_rows_max, f"the post has {len(items)} items")
    return _encode(items, body.count(b'"'), post)


def _encode(items: list[_Item], quotes: int, post: Post) -> _Rows | None:
    rows: list[bytes] = []
    times_us: list[int] = []
    owners: list[int] | None = None
    for place, item in enumerate(items):
        ts = item.ts
        if isinstance(ts, str):
            ts_us = text_us(ts)
            quotes -= 4
        elif ts is UNSET:
            ts_us = post.received_us
        else:
            ts_us = number_us(ts, post.precision)
            quotes -= 2
        if not isinstance(ts_us, int):
            return None
        values = item.values
        if values is UNSET:
            if item.metric is UNSET or item.value is UNSET:
                return None
            entries = {item.metric: item.value}
            quotes -= 10
        else:
            entries = values
            quotes -= 6 + 2 * len(values)
            if owners is None:
                owners = list(range(place))
        for metric, value in entries.items():
            series = _series.get((item.device_id, metric)) or _new_series(item.device_id, metric)
            if series is None:
                return None
            pack, names = series
            rows.append(pack(4, 8, ts_us - PG_EPOCH_US, names, 8, value + 0.0))
            times_us.append(ts_us)
            if owners is not None:
                owners.append(place)
        if len(rows) > post.rules.post_rows_max:
            raise _too_many(post.rules.post_rows_max, "the post has more readings")
    newest_us = post.received_us + post.rules.ts_ahead_us_max
    if quotes or not rows or min(times_us) < post.rules.ts_min_us or max(times_us) > newest_us:
        return None
    return _Rows(rows, times_us, owners)


def _new_series(device_id: str, metric: str) -> tuple[Pack, bytes] | None:
    if name_fault(device_id) or name_fault(metric):
        return None
    if len(_series) >= SERIES_CACHED_MAX:
        _series.clear()
    series = _series[device_id, metric] = packer(device_id, metric)
    return series


def _careful(body: bytes, post: Post, errors: list[ItemError]) -> _Rows:
    """Encode what is good in a body, chunk by chunk, item by item; append errors for the rest."""
    originals = _originals(body, post.rules.post_rows_max)
    gathered = _Rows([], [], [])
    rows, times_us, owners = gathered
    assert owners is not None
    for start in range(0, len(originals), CHUNK_ITEMS):
        chunk = originals[start : start + CHUNK_ITEMS]
        fast = None
        if len(originals) > 1:
            fast = _fast(b"[" + b",".join(chunk) + b"]", post)
        if fast is not None:
            rows += fast.rows
            times_us += fast.times_us
            owners += [start + i for i in fast.items or range(len(fast.rows))]
            continue
        for item, original in enumerate(chunk, start):
            try:
                readings, faults = read_item(original, item, post)
            except RecursionError:
                raise Refused("not_json", "the body is nested too deeply") from None
            rows += [encode_reading(each) for each in readings]
            times_us += [each.ts_us for each in readings]
            owners += [item] * len(readings)
            errors += faults
        if len(rows) + len(errors) > post.rules.post_rows_max:
            raise _too_many(post.rules.post_rows_max, "the post has more readings")
    return gathered


def _originals(body: bytes, rows_max: int) -> list[bytes]:
    """Return the bytes of each item. Raises Refused if the body is not JSON, UTF-8 included."""
    try:
        body.decode()  # msgspec does not look into text that it skips
        if body.lstrip(JSON_SPACE)[:1] != b"[":
            _RAW.decode(body)
            return [body.strip(JSON_SPACE)]
        raws = _RAWS.decode(body)
    except RecursionError:
        raise Refused("not_json", "the body is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as fault:
        raise Refused("not_json", f"the body is not JSON: {fault}") from None
    if not raws:
        raise Refused("empty", "the array has no items")
    if len(raws) > rows_max:
        raise _too_many(rows_max, f"the post has {len(raws)} items")
    return [bytes(raw) for raw in raws]
