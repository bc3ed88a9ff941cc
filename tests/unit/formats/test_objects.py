"""Readings as objects of Python: they are read as the same items of JSON, and some kinds more."""

from __future__ import annotations

import math
from collections import UserDict
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.formats import objects
from ingest.formats.json import body
from ingest.formats.post import Decoded, Post, Rules, finished
from ingest.model.block import decode_rows
from ingest.model.errors import Refused
from ingest.model.reading import Reading

NOW_US = 1_764_000_000_000_000
RULES = Rules(post_rows_max=2_000, ts_min_us=0, ts_ahead_us_max=86_400_000_000)
POST = Post(None, False, NOW_US, 0.0, RULES)

names = st.sampled_from(["a", "é", "", "x" * 257, "b\n", "temperature"])
values = st.one_of(
    *(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**60), 2**60)),
    *(st.booleans(), st.none(), st.text(max_size=3)),
)
times = st.sampled_from([1_764_000_000, 1_764_000_000.5, "2025-11-24T16:00:00Z", "now", None, -1])
items = st.one_of(
    st.fixed_dictionaries({"device_id": names, "metric": names, "ts": times, "value": values}),
    st.fixed_dictionaries({"device_id": names, "metric": names, "value": values}),
    st.fixed_dictionaries({"device_id": names, "values": st.dictionaries(names, values)}),
    st.fixed_dictionaries({"device_id": names, "value": values, "unit": names}),
    st.one_of(st.none(), st.text(max_size=3), st.lists(st.booleans(), max_size=2)),
)


def _seen(found: Decoded) -> Any:
    rows = [] if found.block is None else [*decode_rows(found.block.tuples)]
    owners = None if found.block is None else [*(found.block.items or range(len(rows)))]
    return rows, owners, [(each.item, each.field, each.code, each.also) for each in found.errors]


@given(st.lists(items, min_size=1, max_size=40))
def test_objects_are_read_as_the_same_items_of_json(some: list[Any]) -> None:
    """The same rows, and the same faults."""
    as_json = body.decode(orjson.dumps(some) + b" " * 10_000, POST)  # room for faults
    assert _seen(finished(objects.begin(some, POST))) == _seen(as_json)


MOMENT = datetime(2025, 11, 24, 16, 0, 0, 7, tzinfo=UTC)
EAST = timezone(timedelta(hours=2))
CIRCLE: dict[str, Any] = {}
CIRCLE |= {"a": CIRCLE, "b": CIRCLE}


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"ts": MOMENT}, (7, 1.0)),
        ({"ts": MOMENT.astimezone(EAST)}, (7, 1.0)),
        ({"ts": MOMENT.replace(tzinfo=None)}, "ts_without_offset"),
        ({"ts": MOMENT.date()}, "wrong_type"),
        ({"value": Decimal("21.5")}, (0, 21.5)),
        ({"value": Decimal("NaN")}, "value_out_of_range"),
        ({"value": Decimal("sNaN")}, "wrong_type"),
        ({"value": Fraction(10**400)}, "wrong_type"),
        ({"value": 10**5_000}, "item_unreadable"),
        ({"value": [{(1, 2): 3}]}, "item_unreadable"),
        ({"value": CIRCLE}, "item_unreadable"),
        ({"value": Fraction(1, 2)}, (0, 0.5)),
        ({"value": math.nan}, "value_out_of_range"),
        ({"value": -math.inf}, "value_out_of_range"),
        ({"value": 2**53}, (0, 2.0**53)),
        ({"value": 2**53 + 1}, "value_not_exact"),
        ({"value": 10**400}, "value_out_of_range"),
        ({"value": True}, (0, 1.0)),
        ({"value": "1"}, "wrong_type"),
        ({"value": None}, "wrong_type"),
        ({"value": b"1"}, "wrong_type"),
        ({"device_id": b"d"}, "wrong_type"),
        ({7: 1}, "unknown_field"),
    ],
)
def test_kinds_that_json_has_not(fields: dict[Any, Any], result: Any) -> None:
    """Numbers become float64, a datetime with an offset a time; all else is a named fault."""
    good = {"device_id": "d", "metric": "m", "ts": NOW_US, "value": 1.0}
    item = {**good, **fields}
    found = finished(objects.begin([item], POST))
    if isinstance(result, str):
        assert found.errors[0].code == result
        assert found.block is None
        block = finished(objects.begin([good, item, good], POST)).block
        assert block is not None
        assert block.rows == 2  # it costs the others nothing
        return
    assert found.block is not None
    assert [*decode_rows(found.block.tuples)] == [Reading(NOW_US + result[0], "d", "m", result[1])]


def test_any_mapping_is_an_item_and_its_dead_letter_is_text() -> None:
    """Also such as are no dict; a NaN stands in the text as itself."""
    some: list[Any] = [
        UserDict({"device_id": "d", "metric": "m", "value": 1}),
        UserDict({"device_id": "d", "values": UserDict({"a": 1, "b": math.nan})}),
        object(),
    ]
    found = finished(objects.begin(some, POST))
    assert found.block is not None
    assert [each.metric for each in decode_rows(found.block.tuples)] == ["m", "a"]
    assert [(each.item, each.code) for each in found.errors] == [
        (1, "value_out_of_range"),
        (2, "not_an_object"),
    ]
    assert found.errors[0].original == b'{"device_id": "d", "values": {"a": 1, "b": NaN}}'


@pytest.mark.parametrize(("count", "code"), [(0, "empty"), (2_001, "too_many_readings")])
def test_number_of_items_is_bounded(count: int, code: str) -> None:
    """As in a post; entries of `values` count."""
    item = {"device_id": "d", "values": {"a": 1, "b": 2}}
    with pytest.raises(Refused) as refused:
        finished(objects.begin([item] * count, POST))
    assert refused.value.code == code
    if count:
        with pytest.raises(Refused):
            finished(objects.begin([item] * (count // 2 + 1), POST))
    assert len(_seen(finished(objects.begin([item] * 1_000, POST)))[0]) == 2_000
