"""What a body costs: bounded steps, and a refused body costs about as much as a good one.

The bounds are multiples of what a good body costs in the same run: machines differ.
"""

from __future__ import annotations

from functools import partial
from math import inf

import pytest

from ingest.formats.json.body import begin
from ingest.formats.post import Post
from tests.support.decode_cost import NONE, Cost, least_cost
from tests.support.posts import GOOD, NOW_US, RULES, array, item

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
