"""Posts that are refused as a whole: no JSON, no reading in it, or too many."""

from __future__ import annotations

from functools import partial
from math import inf
from time import thread_time as thread_s
from typing import Any

import pytest

from ingest.formats.json.body import begin
from ingest.formats.json_slices import ITEM_BYTES_MAX, SLICE_BYTES_MAX
from ingest.formats.post import Post, most_invalid
from ingest.model.errors import Refused
from tests.support.decode_cost import NONE, Cost, least_cost
from tests.support.posts import GOOD, NOW_US, RULES, array, decoded, item

NOT_JSON = [
    b"",
    b" \n",
    b"{",
    b"[",
    b"[5",
    GOOD[:-1],
    GOOD + b"x",
    GOOD + GOOD,
    array(GOOD) + b"]",
    array(GOOD) + b"\0",
    b"[" + GOOD + b",]",
    b"[," + GOOD + b"]",
    b"\xef\xbb\xbf" + GOOD,
    GOOD.decode().encode("utf-16"),
    GOOD.replace(b'"', b"'"),
    GOOD.replace(b"21.5", b"NaN"),
    GOOD.replace(b"21.5", b"Infinity"),
    GOOD.replace(b"21.5", b"-Infinity"),
    GOOD.replace(b"21.5", b"01"),
    GOOD.replace(b"21.5", b"1."),
    GOOD.replace(b"21.5", b".5"),
    GOOD.replace(b"21.5", b"+1"),
    GOOD.replace(b"21.5", b"0x10"),
    GOOD.replace(b"rpm", b"\xff"),
    GOOD.replace(b"rpm", b"\xed\xa0\x80"),
    GOOD.replace(b"rpm", b"\xc0\x80"),
    GOOD.replace(b"rpm", b"\\ud800"),
    GOOD.replace(b"rpm", b"\\udc00\\ud800"),
    GOOD.replace(b"rpm", b"\\x41"),
    GOOD.replace(b"rpm", b"a\nb"),
    GOOD[:-1] + b',"x":"\xff"}',
    GOOD[:-1] + b',"x":"\\ud800"}',
    GOOD[:-1] + b',"\xff":1}',
    GOOD[:-1] + b',"x":NaN}',
    GOOD + b"// a comment",
    b"[" * 1_000_000,
    b'{"a":' * 200_000,
    b'[{"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}]",
]


@pytest.mark.parametrize("ignore_unknown", [False, True])
@pytest.mark.parametrize("body", NOT_JSON, ids=range(len(NOT_JSON)))
def test_body_that_is_not_json_is_refused_whole(body: bytes, ignore_unknown: bool) -> None:
    """Cut off, trailing, wrongly encoded, endlessly nested: nothing of the post is kept."""
    for each in (body, array(GOOD, b"5", body) if body.strip() else body):
        with pytest.raises(Refused) as caught:
            decoded(each, ignore_unknown=ignore_unknown)
        assert caught.value.code == "not_json"
        assert len(caught.value.detail) <= 200


def crowd(count: int) -> bytes:
    """Return an item of `count` values."""
    return item(metric=..., value=..., values={f"m{i}": i for i in range(count)})


@pytest.mark.parametrize(
    ("body", "over"),
    [
        (array(*[GOOD] * 10), False),
        (array(*[GOOD] * 11), True),
        (crowd(10), False),
        (crowd(11), True),
        (array(crowd(5), crowd(5)), False),
        (array(crowd(5), crowd(6)), True),
        (array(b"5", *[GOOD] * 9), False),
        (array(b"5", *[GOOD] * 10), True),
        (array(*[b"5"] * 11), True),
        (array(b"5", crowd(9)), False),
        (array(b"5", crowd(10)), True),
        (array(b"5", crowd(11)), True),
        (item(metric=..., value=..., values={f"m{i}": None for i in range(11)}), True),
        (array(*[b"5"] * 20, crowd(5)), True),
    ],
)
def test_readings_over_the_limit_are_refused_with_the_limit(body: bytes, over: bool) -> None:
    """`post_rows_max` counts readings, invalid ones included; at the limit all is well."""
    rules = RULES._replace(post_rows_max=10)
    if not over:
        result = decoded(body, rules=rules)
        assert result.block is not None
        assert result.block.rows + len(result.errors) == 10
        return
    with pytest.raises(Refused) as caught:
        decoded(body, rules=rules)
    assert caught.value.code == "too_many_readings"
    assert caught.value.fields == {"readings_max": 10}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (crowd(6_000), "the post has too many readings"),
        (crowd(40_000), "an item has too many commas"),
        (item(note="," * 70_000), "an item has too many commas"),  # which are no readings
    ],
)
def test_one_item_with_too_many_values_is_told_what_counts(body: bytes, why: str) -> None:
    """An item that is too large to be read may have its commas anywhere: no reading is claimed."""
    with pytest.raises(Refused) as caught:
        decoded(body, rules=RULES._replace(post_rows_max=5_000))
    assert caught.value.code == "too_many_readings"
    assert caught.value.detail == (
        f"{why}: a post may have 5000 readings, and each entry of `values` is one"
    )


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("too_many_readings", b"[" + b"0," * 2_000_000 + b"0]"),
        ("too_many_readings", b"[" + b"{}," * 1_300_000 + b"{}]"),
        ("too_many_readings", b"[[" + b"[]," * 1_300_000 + b"[]]]"),
        ("too_many_readings", b"[" + GOOD + b',{"x":"' + b"},{" * 300_000 + b'"}]'),
        ("too_many_readings", b"[" + b'{"device_id":"a","metric":"b","value":1},' * 50_000 + b"5]"),
        ("item_too_large", b'{"device_id":"a","values":{' + b'"a":1,' * 600_000 + b'"b":1}}'),
        ("item_too_large", b"[" + GOOD + b'," ' + b"x" * SLICE_BYTES_MAX + b'"]'),
        ("item_too_large", b"[" + GOOD + b" " * SLICE_BYTES_MAX + b"]"),
    ],
)
def test_body_of_very_many_or_large_parts_is_refused_before_they_are_made(
    code: str, body: bytes
) -> None:
    """A few megabytes that would become millions of objects are refused at a glance."""
    began_s = thread_s()
    with pytest.raises(Refused) as caught:
        decoded(body)
    assert caught.value.code == code
    assert thread_s() - began_s < 0.1


def test_item_of_the_largest_size_is_decoded_alone_and_in_an_array() -> None:
    """A dead letter of this size can be replayed."""
    size = ITEM_BYTES_MAX - len(GOOD) - 20
    text = (b"},{" + b" " * 200) * (size // 203)  # many places that look like an end
    for errors, fill in (
        (0, b" " * size),
        (1, b',"value":1' + b" " * size),
        (1, b',"x":"%b"' % text),
    ):
        largest = GOOD[:-1] + fill + b"}"
        assert len(largest) <= ITEM_BYTES_MAX
        for body in (largest, array(largest), array(*[GOOD] * 400, largest, *[GOOD] * 400)):
            assert len(decoded(body).errors) == errors


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b" " * 40_000 + b"]",
        b" " * 40_000 + b"[]",
    ],
)
def test_large_array_without_items_is_empty(body: bytes) -> None:
    """Spaces make no items."""
    with pytest.raises(Refused) as caught:
        decoded(body)
    assert caught.value.code == "empty"


@pytest.mark.parametrize(
    "end", [b",]", b",,5]", b"", b"]]", b"],[5]", b",{]", b',{"a":NaN}]', b"] x", b',"\xff"]']
)
@pytest.mark.parametrize("count", [300, 900])
def test_large_body_that_is_not_json_is_refused_whole(count: int, end: bytes) -> None:
    """A fault in the last slice refuses the items of all slices before it."""
    for item_bytes in (GOOD, b"5"):
        with pytest.raises(Refused) as caught:
            decoded(b"[" + b",".join([GOOD] * count + [item_bytes] * 500) + end)
        assert caught.value.code == "not_json"


@pytest.mark.parametrize("tiny", [b"{}", b"0", b'{"device_id":"d"}'])
@pytest.mark.parametrize("spaces", [0, 20_000])
def test_post_of_more_short_invalid_items_than_are_kept_is_refused(
    tiny: bytes, spaces: int
) -> None:
    """A dead letter of `0` has 369 bytes: a few kB of such items would become megabytes."""
    most = most_invalid(6_000 + spaces)
    body = array(GOOD, *[tiny] * (most + 1))[:-1]
    body += b" " * (6_000 + spaces - len(body) - 1) + b"]"
    with pytest.raises(Refused) as caught:
        decoded(body)
    assert caught.value.code == "invalid_items"
    errors: Any = caught.value.fields["errors"]
    assert errors[0]["index"] == 1
    assert len(errors) <= 100


def test_invalid_items_as_long_as_valid_ones_are_always_kept() -> None:
    """The shortest valid item has 34 bytes; a gateway may post thousands with a wrong value."""
    short = b'{"device_id":"a","values":{"b":1}}'
    found = decoded(array(*[short.replace(b"1", b'""')] * 400, *[short] * 10))
    assert found.block is not None
    assert (found.block.rows, len(found.errors)) == (10, 400)


ITEMS = 5_000
STEP_MAX = 2.7  # good bodies; measured are up to 1.8 (of one item with 4,999 values)
# Of good bodies with as many items. Measured are up to 5.0; the rest is for a machine with other
# work.
GOOD_MAX = 9.0
POST = Post(None, False, NOW_US, 7.0, RULES)


def ts(literal: bytes) -> bytes:
    """Return an item with a time."""
    return GOOD.replace(b"1795600000", literal)


def value(literal: bytes) -> bytes:
    """Return an item with a value."""
    return GOOD.replace(b"21.5", literal)


def many(entries: int, last: bytes) -> bytes:
    """Return one item with many values."""
    names = b",".join(b'"m%d":%d' % (n, n) for n in range(entries))
    return b'{"device_id":"d","ts":1795600000,"values":{%b,"x":%b}}' % (names, last)


HOSTILE: dict[str, tuple[float, bytes]] = {  # may cost so many times a good body; the body
    "ts 1e308": (1, array(*[value(b"5e-324").replace(b"1795600000", b"1e308")] * ITEMS)),
    "ts 1e-320": (1, array(*[ts(b"1e-320")] * ITEMS)),
    "value 1e308, valid": (1, array(*[value(b"1e308")] * ITEMS)),
    "value 1e400": (1, array(*[value(b"1e400")] * ITEMS)),
    "ts of 399 digits": (2, array(*[ts(b"9" * 399)] * ITEMS)),
    "ts of a long text": (2, array(*[ts(b'"%bx"' % (b"1" * 700))] * ITEMS)),
    "text of 4 MiB": (1, array(ts(b'"%bx"' % (b"1" * 4_000_000)))),
    "nested arrays": (4, array(*[b'{"a":%b%b}' % (b"[" * 400, b"]" * 400)] * 4_700)),
    "nested objects": (4, array(*[b'{"a":' * 150 + b"1" + b"}" * 150] * 4_000)),
    "unknown field": (1, array(*[item(unit="C")] * ITEMS)),
    "no value": (1, array(*[item(value=None)] * ITEMS)),
    "numbers": (1, array(*[b"1"] * ITEMS)),
    "names of its own": (1, array(*[b'{"id":"a","temp":21.5,"hum":4}'] * ITEMS)),
    "numbers without end": (1, b"[" + b"1," * 2_000_000 + b"1]"),
    "an item of arrays": (1, b"[[" + b"[]," * 1_300_000 + b"[]]]"),
    "an item of values": (1.5, many(4_999, b"null")),
    "good values": (1, many(4_999, b"1")),
}


def least(body: bytes, most: Cost = NONE, tries: int = 20) -> Cost:
    """Return the least cost of a body."""
    return least_cost(partial(begin, body, POST), tries, most)


@pytest.fixture(scope="module")
def good_s() -> float:
    """The cost of a good body."""
    return least(array(*[GOOD] * ITEMS), tries=4).total_s


@pytest.mark.parametrize("name", HOSTILE)
def test_body_takes_short_steps_and_costs_about_as_much_as_a_good_one(
    name: str, good_s: float
) -> None:
    """Whatever numbers, texts, nesting and faults it has."""
    times, body = HOSTILE[name]
    most = Cost(GOOD_MAX * times * good_s, STEP_MAX * good_s)
    found = least(body, most)
    assert found.step_s <= most.step_s
    assert found.total_s <= most.total_s, f"{found.total_s / good_s:.1f} times a good body"


@pytest.mark.parametrize("tiny", [b"{}", b"0", b"[]", b'{"a":0}', b'{"ts":1}'])
def test_small_body_of_tiny_items_costs_about_as_much_as_a_good_one(tiny: bytes) -> None:
    """5,000 times `{}` in 15 kB cost 32 times a good body of that size, most of it at once."""
    body, good = (array(*[each] * (15_000 // (len(each) + 1))) for each in (tiny, GOOD))
    good_s = least(good, tries=4).total_s
    total_s = least(body, Cost(GOOD_MAX * good_s, inf)).total_s
    assert total_s <= GOOD_MAX * good_s, f"{total_s / good_s:.1f} times a good body"


def test_large_good_body_takes_short_steps(good_s: float) -> None:
    """5,000 good readings held the loop for 4 ms, on a slow machine for more; now a tenth."""
    assert least(array(*[GOOD] * ITEMS), Cost(inf, good_s / 3)).step_s <= good_s / 3
