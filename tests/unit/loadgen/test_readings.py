"""Numbered readings: the same plan gives the same posts, and a value names its reading."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from itertools import islice

import pytest

from ingest.formats.json.body import decode
from ingest.formats.post import Post, Rules
from ingest.model.block import decode_rows
from loadgen.proof.readings import INVALID, REFUSED, VALID, WINDOW, Item, Names, Plan

FIRST_US = 1_764_000_000_000_000
PLAN = Plan(
    run="1a2b3c4d",
    seed=3,
    first_us=FIRST_US,
    sizes=((1, 5.0), (7, 1.0), (100, 1.0)),
    duplicates=0.1,
    invalid=0.1,
    refused=0.05,
)


def _bits(value: float) -> int:
    bits: int = struct.unpack("<Q", struct.pack("<d", value))[0]
    return bits


def test_values_are_all_different_and_say_which_reading_they_are() -> None:
    """A value gives the number of its reading; with one bit changed it gives none."""
    names = Names(PLAN)
    values = [names.value(number) for number in range(50_000)]
    assert len({_bits(value) for value in values}) == len(values)
    for number, value in enumerate(values):
        assert math.isfinite(value)
        assert value != 0
        assert names.number(value) == number
        assert names.number(math.nextafter(value, math.inf)) != number
    assert names.number(values[1] * 1.5) is None


def test_values_are_of_all_kinds_that_a_float64_has() -> None:
    """Values are of each kind: negative, subnormal, huge, whole, with 17 digits."""
    names = Names(PLAN)
    values = [names.value(number) for number in range(5_000)]
    assert sum(value < 0 for value in values) > 1_000
    assert sum(abs(value) < 2.3e-308 for value in values) > 100
    assert sum(abs(value) > 1e100 for value in values) > 50
    assert sum(value.is_integer() and 2**52 <= abs(value) < 2**53 for value in values) > 100
    assert sum(len(repr(abs(value))) >= 18 for value in values) > 1_000


def test_posts_hold_the_shares_that_the_plan_says() -> None:
    """All kinds of invalid, refused and repeated items occur; repeats are of recent items."""
    kinds: Counter[int] = Counter()
    fresh: list[Item] = []
    repeats = several = 0
    sizes: Counter[int] = Counter()
    for items in islice(PLAN.posts(), 2_000):
        sizes[sum(item.count for item in items)] += 1
        for item in items:
            if not fresh or item.first > fresh[-1].first:
                assert item.first == (fresh[-1].first + fresh[-1].count if fresh else 0)
                fresh.append(item)
                kinds[item.kind] += 1
                several += item.count > 1
            else:
                repeats += 1
                assert item.kind < 0
                assert any(item is each for each in fresh[-WINDOW:])
    total = kinds.total() + repeats
    assert set(kinds) == {VALID, REFUSED, *range(len(INVALID))}
    assert repeats / total == pytest.approx(0.1, abs=0.02)
    assert sum(kinds[kind] for kind in range(len(INVALID))) / total == pytest.approx(0.1, abs=0.02)
    assert kinds[REFUSED] / total == pytest.approx(0.05, abs=0.01)
    assert several
    assert sizes[1] > sizes[7] > 100


def test_service_decodes_each_post_to_the_readings_of_the_plan() -> None:
    """Valid items become exactly their readings, invalid ones exactly their code."""
    names = Names(PLAN)
    rules = Rules(5_000, 946_684_800_000_000, 86_400_000_000)
    for post, items in zip(range(300), PLAN.posts(), strict=False):
        decoded = decode(
            names.body(items, post), Post(None, False, FIRST_US + 1_000_000, 0.0, rules)
        )
        expected = []
        errors = []
        for index, item in enumerate(items):
            if item.kind >= 0:
                errors.append((index, INVALID[item.kind].code, names.invalid_text(item)))
                continue
            metrics = names.metrics(item)
            assert len(metrics) == item.count
            expected += [
                (FIRST_US + item.first, names.device(item), metric, _bits(names.value(number)))
                for number, metric in enumerate(metrics, item.first)
            ]
        rows = list(decode_rows(decoded.block.tuples)) if decoded.block is not None else []
        assert [(row[0], row[1], row[2], _bits(row[3])) for row in rows] == expected
        assert [(each.item, each.code, each.original.decode()) for each in decoded.errors] == errors


def test_values_are_posted_digit_for_digit() -> None:
    """The text of each value has all its digits; whole values are JSON integers."""
    names = Names(PLAN)
    kinds: set[type] = set()
    for post, items in zip(range(200), PLAN.posts(), strict=False):
        posted = json.loads(names.body(items, post))
        for item, each in zip(items, posted if len(items) > 1 else [posted], strict=True):
            if item.kind < 0:
                values = list(each["values"].values()) if item.count > 1 else [each["value"]]
                kinds |= set(map(type, values))
                assert values == [names.value(item.first + n) for n in range(item.count)]
    assert kinds == {int, float}
