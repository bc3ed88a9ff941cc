"""The fast path for JSON: parsed items to encoded rows, all of them together.

Promises: it accepts nothing that careful.py would refuse.
Does not: name an error. At the first doubt it returns None, and careful.py decides.

It works on columns (all times, all names, all values); each step is one pass in C. With a step of
Python for each reading it costs nearly twice as much.
"""

from __future__ import annotations

import math
import re
from operator import itemgetter
from typing import Any

import orjson

from ingest.formats.block_builder import SERIES, Rows
from ingest.formats.moments import Items, each_of, place_items, place_moment
from ingest.formats.post import EXACT_MAX, Post, too_many
from ingest.formats.timestamp import Times, integers_us, number_us, numbers_us, plain_us, texts_us
from ingest.model.block import PG_EPOCH_US, Block, encode_row, encode_rows

FIELDS = ("device_id", "metric", "ts", "value", "values")
Item = dict[str, Any]

_KNOWN = frozenset(FIELDS)
# A field is missing, or a name is invalid; a type is wrong; an integer is beyond float64.
_DOUBTS = (KeyError, TypeError, AttributeError, OverflowError)
_NO_TS = object()
_TS = itemgetter("ts")
# An integer that may be more than EXACT_MAX, as a member of an object.
_LONG_INTEGER = re.compile(rb":[ \t\n\r]*-?[0-9]{16,}[ \t\n\r]*[,}]")


def block_of(rows: Rows, post: Post) -> Block:
    """Return the block of all rows of a post."""
    return Block(
        rows.tuples,
        rows.rows,
        received_s=post.received_s,
        received_us=post.received_us,
        newest_ts_us=rows.newest_us,
        items=rows.items,
    )


def one(item: Item, body: bytes, post: Post) -> Rows | None:
    """Encode one item, or return None if it may be invalid. `body` is its text."""
    try:
        stamp: Any = item.get("ts", _NO_TS)
        kind = type(stamp)
        fields = 4
        ts_us: Any = None
        if kind is str:
            ts_us = plain_us(stamp)
        elif kind is int or kind is float:
            ts_us = number_us(stamp, post.precision)
        elif stamp is _NO_TS:
            ts_us, fields = post.received_us, 3
        rules = post.rules
        if (
            type(ts_us) is not int
            or not rules.ts_min_us <= ts_us <= post.received_us + rules.ts_ahead_us_max
        ):
            return None
        if "values" in item:
            return _one_of_values(item, ts_us, body, post)
        value = item["value"] + 0.0
        if (
            (not -EXACT_MAX < value < EXACT_MAX and _are_doubtful([value], body, post))
            or (body.count(b",") != fields - 1 and _has_more([item], fields, body, post))
            or (post.ignore_unknown and _open_doubtful(body, 1, fields - 3))
        ):
            return None
        metric, device_id = item["metric"], item["device_id"]
        if post.allows is not None and not post.allows(device_id):
            return None
        try:
            names = SERIES.devices[device_id] + SERIES.metrics[rules.tables][metric]
            row = encode_row(ts_us, names, value)
        except KeyError:
            row = _rows_of(ts_us, device_id, {metric: value}, post)
    except _DOUBTS:
        return None
    return Rows(row, 1, ts_us, None)


def _one_of_values(item: Item, ts_us: int, body: bytes, post: Post) -> Rows | None:
    """Encode one item with `values`. Raises _DOUBTS and as `many`."""
    if post.ignore_unknown or not item.keys() <= _KNOWN or may_repeat(item, body):
        return None
    values = {metric: value + 0.0 for metric, value in _values_of(item).items()}
    numbers = values.values()
    if not math.hypot(*numbers) < EXACT_MAX and _are_doubtful([*numbers], body, post):
        return None
    if len(values) > post.rules.post_rows_max:
        raise too_many(post.rules.post_rows_max)
    if not _are_allowed([item], post):
        return None
    tuples = _rows_of(ts_us, item["device_id"], values, post)
    return Rows(tuples, len(values), ts_us, [0] * len(values))


def _rows_of(ts_us: int, device_id: str, values: dict[str, float], post: Post) -> bytes:
    """Encode the values of one moment. Raises _DOUBTS."""
    tables, count, names = post.rules.tables, len(values), None
    if not SERIES.are_taken(values.keys(), tables):
        names = SERIES.plain_names([*values], [device_id] * count, tables)
    elif not tables.era(ts_us, ts_us):
        names = SERIES.all_names([*values], [device_id] * count)
    if names is None:
        return place_moment(ts_us, device_id, values, tables)[0]
    return encode_rows([ts_us - PG_EPOCH_US] * count, names, [*values.values()])


def many(items: list[Item], body: bytes | None, post: Post) -> Rows | None:
    """Encode all items, or return None if one of them may be invalid.

    `body` is the text of exactly these items; None: they were never text, so no parser has hidden
    anything of them. Raises Refused (`too_many_readings`).
    """
    count = len(items)
    try:
        try:
            values = [item["value"] + 0.0 for item in items]
        except KeyError:
            return _spread(items, body, post)
        present = count if "ts" in items[0] else 0
        times = _times(items, post)
        if (
            times is None
            or (not math.hypot(*values) < EXACT_MAX and _are_doubtful(values, body, post))
            or (
                (body is None or body.count(b",") != 3 * count + present - 1)
                and _has_more(items, 3 * count + present, body, post)
            )
            or (post.ignore_unknown and (not body or _open_doubtful(body, count, present)))
        ):
            return None
        if not _are_allowed(items, post):
            return None
        tables = post.rules.tables
        devices, metrics = SERIES.devices, SERIES.metrics[tables]
        try:
            names = [devices[item["device_id"]] + metrics[item["metric"]] for item in items]
        except KeyError:
            device_ids = [item["device_id"] for item in items]
            all_names = SERIES.plain_names([item["metric"] for item in items], device_ids, tables)
            if all_names is None:
                metrics_of: list[tuple[str, ...]] = [(item["metric"],) for item in items]
                placed = Items(times.pg_us, device_ids, metrics_of, values, [*range(count)])
                return _placed(placed, times.newest_us, post)
            names = all_names
    except _DOUBTS:
        return None
    return Rows(encode_rows(times.pg_us, names, values), count, times.newest_us, None)


def _spread(items: list[Item], body: bytes | None, post: Post) -> Rows | None:
    """Encode items with `values`, or with a mix of both shapes. Raises _DOUBTS and as `many`."""
    if post.ignore_unknown or not all(item.keys() <= _KNOWN for item in items):
        return None
    times = _times(items, post)
    if times is None or may_repeat(items, body) or not _are_allowed(items, post):
        return None
    tables = post.rules.tables
    if tables.all and SERIES.are_taken(_values_of(items[0]).keys(), tables):
        return _of_moments(items, times, body, post)
    row_times_pg_us: list[int] = []
    metrics: list[str] = []
    device_ids: list[str] = []
    row_values: list[float] = []
    owners: list[int] = []
    for place, item in enumerate(items):
        device_id = item["device_id"]
        if "values" not in item:
            values = {item["metric"]: item["value"]}
        else:
            values = item["values"]
            if type(values) is not dict or not values or "metric" in item or "value" in item:
                raise TypeError(values)
        if len(metrics) + len(values) > post.rules.post_rows_max:
            raise too_many(post.rules.post_rows_max)
        metrics += values
        device_ids += [device_id] * len(values)
        row_values += [value + 0.0 for value in values.values()]
        row_times_pg_us += [times.pg_us[place]] * len(values)
        owners += [place] * len(values)
    if not math.hypot(*row_values) < EXACT_MAX and _are_doubtful(row_values, body, post):
        return None
    names = SERIES.plain_names(metrics, device_ids, tables)
    if names is None:
        return _of_moments(items, times, body, post)
    tuples = encode_rows(row_times_pg_us, names, row_values)
    return Rows(tuples, len(names), times.newest_us, owners)


def _of_moments(items: list[Item], times: Times, body: bytes | None, post: Post) -> Rows | None:
    """Do what `_spread` does, if a declared table takes some of the values."""
    by_metric = [*map(_values_of, items)]
    counts = [*map(len, by_metric)]
    if sum(counts) > post.rules.post_rows_max:
        raise too_many(post.rules.post_rows_max)
    values = [value + 0.0 for each in by_metric for value in each.values()]
    if not math.hypot(*values) < EXACT_MAX and _are_doubtful(values, body, post):
        return None
    device_ids = [item["device_id"] for item in items]
    owners = [*each_of(range(len(items)), counts)]
    placed = Items(times.pg_us, device_ids, [*map(tuple, by_metric)], values, owners)
    return _placed(placed, times.newest_us, post)


def _placed(items: Items, newest_us: int, post: Post) -> Rows:
    """Encode values, of which a declared table may take some. Raises _DOUBTS."""
    tuples, owners = place_items(items, post.rules.tables)
    return Rows(tuples, len(owners), newest_us, owners)


def _values_of(item: Item) -> dict[str, Any]:
    """Return the values of an item by metric. Raises _DOUBTS if it has other fields than it may."""
    if "values" not in item:
        return {item["metric"]: item["value"]}
    values = item["values"]
    if type(values) is not dict or not values or "metric" in item or "value" in item:
        raise TypeError(values)
    return values


def _are_allowed(items: list[Item], post: Post) -> bool:
    """Whether the sender may speak for the devices of all these items. Raises _DOUBTS."""
    allows = post.allows
    return allows is None or all(map(allows, {item["device_id"] for item in items}))


def _has_more(items: list[Item], fields: int, body: bytes | None, post: Post) -> bool:
    """Whether the items may have more than these fields, which each of them must have.

    Each field but the first of the body has a comma before it. So a body with one comma less than
    fields has no other field, and none twice. With more commas, text may have them.
    """
    if post.ignore_unknown:
        return False  # _open_doubtful finds repeated names
    return sum(map(len, items)) != fields or may_repeat(items, body)


def may_repeat(parsed: Any, body: bytes | None) -> bool:
    """Whether a name may stand twice in one object: the parser silently keeps the last one.

    A lost name takes its two quotes with it. So the quotes are counted, in the body and in what was
    parsed. In text a quote is written alike in both, unless the body has it by its number.
    Raises TypeError if there is a number, or nesting, that cannot be written again.
    """
    if body is None:
        return False
    return b"\\u0022" in body or body.count(b'"') != orjson.dumps(parsed).count(b'"')


def _are_doubtful(values: list[float], body: bytes | None, post: Post) -> bool:
    """Whether one of these values, some of them large, may not be a float64."""
    return body is None or not all(map(math.isfinite, values)) or may_be_inexact(body, post)


def may_be_inexact(body: bytes, post: Post) -> bool:
    """Whether a value may be an integer that float64 cannot hold. Only for large values: slow."""
    return not post.rules.integers_rounded and _LONG_INTEGER.search(body) is not None


def _open_doubtful(body: bytes, count: int, stamps: int) -> bool:
    """Whether an item may have a field twice, or may have `values`.

    In a body without escapes, a field's name in quotes is that field, or is part of an unknown one.
    """
    return (
        b"\\" in body
        or body.count(b'"device_id"') != count
        or body.count(b'"metric"') != count
        or body.count(b'"value"') != count
        or body.count(b'"ts"') != stamps
        or b'"values"' in body
    )


def _times(items: list[Item], post: Post) -> Times | None:
    """Return all times, or None if one cannot be read or is outside the allowed window."""
    try:
        stamps: list[Any] = [*map(_TS, items)]
    except KeyError:
        return _times_of_receipt(items, post)
    kinds = set(map(type, stamps))
    if kinds == {int}:
        times = integers_us(stamps, post.precision)
    elif kinds == {str}:
        times = texts_us(stamps)
    elif kinds <= {int, float}:
        times = numbers_us(stamps, post.precision)
    else:
        return None
    is_sound = times is not None and _is_between(times.oldest_us, times.newest_us, post)
    return times if is_sound else None


def _times_of_receipt(items: list[Item], post: Post) -> Times | None:
    """Return the time of receipt for each item, or None if one has a time of its own."""
    if any("ts" in item for item in items):
        return None
    received_us = post.received_us
    return Times([received_us - PG_EPOCH_US] * len(items), received_us, received_us)


def _is_between(oldest_us: int, newest_us: int, post: Post) -> bool:
    rules = post.rules
    return oldest_us >= rules.ts_min_us and newest_us <= post.received_us + rules.ts_ahead_us_max
