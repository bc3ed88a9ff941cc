"""Decoding of all possible bodies: exact, without exceptions, and the same on both paths."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.formats import json_slices
from ingest.formats.json import body as json_body
from ingest.formats.json.careful import read_item
from ingest.formats.post import ERRORS_TOLD_MAX, Decoded, ItemError, Post
from ingest.model.block import encode_reading
from ingest.model.codes import ITEM_CODES
from ingest.model.errors import Refused
from ingest.model.reading import Reading, name_fault
from ingest.system.clock import rfc3339
from tests.support.examples import examples
from tests.support.posts import GOOD, NOW_US, RULES, array, decoded, readings_of

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
TIMES_US = st.integers(RULES.ts_min_us, NOW_US + RULES.ts_ahead_us_max)
VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**53), 2**53),
    st.integers(-(2**20), 2**20).map(lambda each: each * 2**50),
)
WRITERS: list[Callable[[int], object]] = [rfc3339, lambda ts_us: ts_us]

# Bodies that are nearly right: known names with what may and may not stand under them.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "a", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5+01:00", "x\0"]),
    st.text(max_size=5),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def pairs_text(pairs: list[tuple[str, str]]) -> str:
    """Write a JSON object from names and JSON texts, repeated names included."""
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in pairs) + "}"


def as_json(content: st.SearchStrategy[object]) -> st.SearchStrategy[str]:
    """Draw JSON texts, with and without escapes."""
    return st.builds(
        lambda each, plain: json.dumps(each, ensure_ascii=plain), content, st.booleans()
    )


VALUES_OBJECTS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "ts", "value"]), as_json(VALUES | SCALARS)), max_size=4
).map(pairs_text)
LIKELY: dict[str, st.SearchStrategy[str]] = {
    "device_id": as_json(NAMES),
    "metric": as_json(NAMES),
    "ts": as_json(TIMES_US.map(rfc3339) | TIMES_US),
    "value": as_json(VALUES),
    "values": VALUES_OBJECTS,
    "unit": as_json(ANYTHING),
}
FIELDS = st.sampled_from([*LIKELY]).flatmap(
    lambda name: st.tuples(st.just(name), LIKELY[name] | as_json(ANYTHING))
)
FLAT = st.tuples(
    *[st.tuples(st.just(n), LIKELY[n]) for n in ("device_id", "metric", "ts", "value")]
).map(list)
MULTI = st.tuples(*[st.tuples(st.just(n), LIKELY[n]) for n in ("device_id", "ts", "values")]).map(
    list
)
ITEMS = st.one_of(
    FLAT.map(pairs_text),
    MULTI.map(pairs_text),
    st.builds(lambda a, b: pairs_text(a + b), FLAT | MULTI, st.lists(FIELDS, max_size=2)),
    st.lists(FIELDS, max_size=6).map(pairs_text),
    as_json(ANYTHING),
)


def kept(result: Decoded) -> tuple[object, ...]:
    """Return everything that a result promises, comparable."""
    block = result.block
    if block is None:
        return None, result.errors
    items = block.items if block.items is not None else list(range(block.rows))
    return block.tuples, block.rows, block.newest_ts_us, items, result.errors


def in_small_slices(
    body: bytes, *, ignore_unknown: bool = False, precision: str | None = None
) -> Decoded:
    """Decode a body as a large one is decoded, in slices of an item or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "WHOLE_BYTES", 0)
        patch.setattr(json_slices, "SLICE_BYTES", 64)
        return decoded(body, ignore_unknown=ignore_unknown, precision=precision)


@given(
    st.lists(st.tuples(TIMES_US, NAMES, NAMES, VALUES), min_size=1, max_size=40),
    st.sampled_from(WRITERS),
    st.booleans(),
)
def test_valid_readings_come_through_bit_exact(
    facts: list[tuple[int, str, str, float]], write: Callable[[int], object], plain: bool
) -> None:
    """What a client wrote is what the block holds, whatever the names and numbers."""
    body = json.dumps(
        [
            {"device_id": device_id, "metric": metric, "ts": write(ts_us), "value": value}
            for ts_us, device_id, metric, value in facts
        ],
        ensure_ascii=plain,
    ).encode()
    result = decoded(body, precision="us")
    assert result.errors == []
    assert result.block is not None
    expected = [
        Reading(ts_us, device_id, metric, float(value) + 0.0)
        for ts_us, device_id, metric, value in facts
    ]
    assert result.block.tuples == b"".join(map(encode_reading, expected))
    assert result.block.rows == len(expected)


@given(st.lists(ITEMS, min_size=1, max_size=40), st.booleans(), st.sampled_from([None, "us"]))
@examples(150)
def test_post_is_what_its_items_are_one_by_one(
    items: list[str], ignore_unknown: bool, precision: str | None
) -> None:
    """The fast path, the slices and the slow path agree about every body."""
    originals = [each.encode() for each in items]
    post = Post(precision, ignore_unknown, NOW_US, 7.0, RULES)
    readings: list[Reading] = []
    owners: list[int] = []
    errors: list[ItemError] = []
    for place, original in enumerate(originals):
        told = len(errors) < ERRORS_TOLD_MAX
        good, bad = read_item(json_slices.parsed(original), original, place, post, told=told)
        assert good or bad
        if good:
            ts_us, device_id, values = good
            readings += [Reading(ts_us, device_id, *each) for each in values.items()]
            owners += [place] * len(values)
        errors += [bad] if bad else []
    body = array(*originals)
    result = decoded(body, ignore_unknown=ignore_unknown, precision=precision)
    sliced = in_small_slices(body, ignore_unknown=ignore_unknown, precision=precision)
    assert kept(sliced) == kept(result)
    assert result.errors == errors
    assert {each.code for each in errors} <= set(ITEM_CODES)
    assert all(len(each.message) <= 200 for each in errors)
    if not readings:
        assert result.block is None
        return
    newest_us = max(each.ts_us for each in readings)
    tuples = b"".join(map(encode_reading, readings))
    assert kept(result) == (tuples, len(readings), newest_us, owners, errors)


@given(
    st.lists(st.text('a},{"\\\\[]: ', min_size=1, max_size=60), min_size=1, max_size=30),
    st.sampled_from([",", " , ", ",\n"]),
    st.booleans(),
)
def test_body_is_never_cut_within_a_name(names: list[str], comma: str, nested: bool) -> None:
    """Names that look like the end of an item and the beginning of the next one are only names."""
    items = [
        {"device_id": name, "ts": 1_795_600_000, "values": {name: 1}}
        if nested
        else {"device_id": name, "metric": name, "ts": 1_795_600_000, "value": 1}
        for name in names
    ]
    body = f"[{comma.join(map(json.dumps, items))}]".encode()
    result = in_small_slices(body)
    assert [each.device_id for each in readings_of(result)] == names
    assert [each.metric for each in readings_of(result)] == names
    assert result.errors == []


@given(ITEMS, st.booleans())
def test_single_object_is_an_array_of_one(item: str, ignore_unknown: bool) -> None:
    """Both shapes of a post mean the same."""
    if item.startswith("["):
        item = "5"
    alone = decoded(item.encode(), ignore_unknown=ignore_unknown)
    assert kept(alone) == kept(decoded(array(item.encode()), ignore_unknown=ignore_unknown))


def outcome(body: bytes, ignore_unknown: bool) -> Decoded | str:
    """Return the result of a body, or the code it is refused with; in slices it is the same."""
    try:
        result: Decoded | str = decoded(body, ignore_unknown=ignore_unknown)
    except Refused as refused:
        result = refused.code
    try:
        sliced: Decoded | str = in_small_slices(body, ignore_unknown=ignore_unknown)
    except Refused as refused:
        sliced = refused.code
    if isinstance(result, str) or isinstance(sliced, str):
        assert sliced == result
    else:
        assert kept(sliced) == kept(result)
    return result


def strict_json(body: bytes) -> bool:
    """Whether a body is JSON and nothing but JSON, by the standard library."""

    def refuse(_: str) -> object:
        raise ValueError("JSON has no NaN")

    try:
        value = json.loads(body.decode(), parse_constant=refuse, object_pairs_hook=list)
        json.dumps(value, ensure_ascii=False).encode()  # fails on half of a surrogate pair
    except ValueError:
        return False
    return True


@given(st.binary(max_size=200) | st.text('[]{}",:0.e-tr\\ u\n', max_size=60).map(str.encode))
@example(b"[" * 2_000)
@example(b'{"":' * 2_000)
@example(b"\x00")
def test_any_bytes_are_decoded_or_refused(body: bytes) -> None:
    """No body raises anything but Refused."""
    for ignore_unknown in (False, True):
        result = outcome(body, ignore_unknown)
        if isinstance(result, str):
            assert result in ("not_json", "empty")
        else:
            assert result.errors or result.block


@given(
    st.lists(ITEMS, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=2)), min_size=1, max_size=3),
    st.booleans(),
)
@examples(150)
def test_mutated_body_is_refused_if_and_only_if_it_is_not_json(
    items: list[str], mutations: list[tuple[int, bytes]], ignore_unknown: bool
) -> None:
    """A body with bytes altered is judged as a strict parser does; what is kept keeps the rules."""
    body = array(GOOD, *[each.encode() for each in items])
    for place, new in mutations:
        at = place % len(body)
        body = body[:at] + new + body[at + 1 :]
    result = outcome(body, ignore_unknown)
    assert (result == "not_json") == (not strict_json(body))
    if isinstance(result, str):
        return
    for error in result.errors:
        assert error.original in body
        assert strict_json(error.original)
    for reading in readings_of(result):
        assert name_fault(reading.device_id) is None
        assert name_fault(reading.metric) is None
        assert RULES.ts_min_us <= reading.ts_us <= NOW_US + RULES.ts_ahead_us_max
