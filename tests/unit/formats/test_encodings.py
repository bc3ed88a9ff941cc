"""NDJSON, MessagePack, SenML: the same readings give the same bytes, whatever the sender does."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from functools import partial
from math import inf
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.formats import messagepack
from ingest.formats.block_builder import CAREFUL_ITEMS
from ingest.formats.media_types import DECODE_ITEM
from ingest.formats.post import Decoded
from ingest.model.block import encode_reading
from ingest.model.errors import Refused
from ingest.model.reading import Reading
from tests.support.decode_cost import Cost, least_cost
from tests.support.encodings import BEGIN, decoded, objects_of, post, written
from tests.support.posts import GOOD_READING, NOW_US, RULES, readings_of

NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=":/"), min_size=1, max_size=8
)
READINGS = st.lists(
    st.builds(
        Reading,
        st.integers(RULES.ts_min_us, NOW_US + RULES.ts_ahead_us_max),
        NAMES,
        NAMES,
        st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0),
    ),
    min_size=1,
    max_size=2 * CAREFUL_ITEMS,
)


@given(facts=READINGS, slice_bytes=st.integers(1, 300))
def test_same_readings_give_the_same_block(facts: list[Reading], slice_bytes: int) -> None:
    """In each format, at once and in slices of any size."""
    expected = b"".join(map(encode_reading, facts))
    for name in BEGIN:
        body = written(name, facts)
        for whole_bytes in (1 << 20, -1):
            with (
                patch("ingest.formats.json.body.WHOLE_BYTES", whole_bytes),
                patch("ingest.formats.messagepack.WHOLE_BYTES", whole_bytes),
                patch("ingest.formats.json.body.SLICE_BYTES", slice_bytes),
                patch("ingest.formats.messagepack.LARGE_BYTES", slice_bytes),
                patch("ingest.formats.json_slices.SLICE_BYTES", slice_bytes),
            ):
                found = decoded(name, body)
            assert found.errors == []
            assert found.block is not None
            assert found.block.tuples == expected


@pytest.mark.parametrize("name", BEGIN)
def test_bad_item_is_read_later_as_what_it_was(name: str) -> None:
    """Its bytes give the same error again, alone; with a rule less they give its reading."""
    old = GOOD_READING._replace(ts_us=RULES.ts_min_us - 1)
    body = written(name, [GOOD_READING, old, GOOD_READING])
    (error,) = decoded(name, body).errors
    assert (error.item, error.code) == (1, "ts_too_old")
    (again,) = DECODE_ITEM[name](error.original, post()).errors
    assert (again.code, again.message) == (error.code, error.message)
    lenient = post(rules=RULES._replace(ts_min_us=0))
    assert readings_of(DECODE_ITEM[name](error.original, lenient)) == [old]


# NDJSON


def test_line_that_is_no_item_spoils_no_other_one() -> None:
    """Also if two lines are an item only when they are joined, or one line has two items."""
    good = written("ndjson", [GOOD_READING])
    first, second = good[:20], good[20:]
    lines = [good, first, second, b"[%b]" % good, b"%b,%b" % (good, good), b"", b"1", good]
    found = decoded("ndjson", b"\r\n".join(lines))
    codes = {error.item: error.code for error in found.errors}
    expected = {1: "item_unreadable", 2: "item_unreadable", 4: "item_unreadable"}
    assert codes == {**expected, 3: "not_an_object", 5: "not_an_object"}
    assert [error.original for error in found.errors] == [*lines[1:5], lines[6]]
    assert readings_of(found) == [GOOD_READING] * 2
    # As JSON, one of these lines would be two readings.
    with pytest.raises(Refused, match="line 1"):
        DECODE_ITEM["ndjson"](lines[4], post())


# MessagePack


def packed(*items: object) -> bytes:
    """Write items."""
    return msgspec.msgpack.encode(items)


ITEM = objects_of([GOOD_READING])[0]
TWICE = b"\x85" + packed(ITEM)[2:]  # and a fifth field, which follows


@pytest.mark.parametrize(
    ("item", "code", "field"),
    [
        (TWICE + b"\xa5value\x01", "repeated_field", "value"),
        (TWICE + b"\xd9\x02ts\x01", "repeated_field", "ts"),
        (TWICE + b"\xa4unit\xa1C", "unknown_field", "unit"),
        (b"\x84" + packed(ITEM)[2:-9] + b"\xc0", "wrong_type", "value"),
        (packed({**ITEM, "value": 2**63 + 1})[1:], "value_not_exact", "value"),
        (packed({**ITEM, "value": float("nan")})[1:], "value_out_of_range", "value"),
        (packed({**ITEM, "value": float("inf")})[1:], "value_out_of_range", "value"),
        (packed({**ITEM, "value": [1]})[1:], "wrong_type", "value"),
        (packed({**ITEM, "value": b"1"})[1:], "wrong_type", "value"),
        (packed({5: 1})[1:], "item_unreadable", None),
        (
            packed({**ITEM, "metric": "x"})[1:].replace(b"\xa1x", b"\xa1\xff"),
            "item_unreadable",
            None,
        ),
        (packed(7)[1:], "not_an_object", None),
        (b"\xc7\x01\x05x", "not_an_object", None),
        (packed({"device_id": "d", "values": {}})[1:], "values_empty", "values"),
        (b"\x82\xa9device_id\xa1d\xa6values\x82\xa1a\x01\xa1a\x02", "repeated_field", "values.a"),
    ],
)
def test_faulty_item_of_messagepack_is_named(item: bytes, code: str, field: str | None) -> None:
    """With its index, its bytes and the same codes as in JSON; the others are kept."""
    good = packed(ITEM)[1:]
    found = decoded("msgpack", b"\x93" + good + item + good)
    (error,) = found.errors
    assert (error.item, error.code, error.field, error.original) == (1, code, field, item)
    assert readings_of(found) == [GOOD_READING] * 2
    (again,) = DECODE_ITEM["msgpack"](item, post()).errors
    assert again.code == code


def test_array_as_an_item_is_no_list_of_items_later() -> None:
    """An item that is an array of valid items is invalid, and stays so."""
    inner = packed(ITEM)
    (error,) = decoded("msgpack", packed([ITEM], ITEM)).errors
    assert (error.code, error.original) == ("not_an_object", inner)
    assert DECODE_ITEM["msgpack"](inner, post()).errors[0].code == "not_an_object"


def test_messagepack_takes_each_form_of_a_value() -> None:
    """One item alone; float32; long forms; `values`; integers as they are; true and false."""
    single = msgspec.msgpack.encode(ITEM)
    short = single.replace(b"\xcb" + struct.pack(">d", 21.5), b"\xca" + struct.pack(">f", 21.5))
    long = short.replace(b"\xa2ts", b"\xdb\0\0\0\x02ts").replace(b"\xa5value", b"\xd9\x05value")
    for body in (single, short, long, b"\xdc\0\x01" + single, b"\xdd\0\0\0\x01" + short):
        assert readings_of(decoded("msgpack", body)) == [GOOD_READING]
    several = {"device_id": "pump-1", "ts": ITEM["ts"], "values": {"rpm": 21.5, "on": True, "n": 7}}
    found = decoded("msgpack", msgspec.msgpack.encode(several))
    assert [(each.metric, each.value) for each in readings_of(found)] == [
        *(("rpm", 21.5), ("on", 1.0), ("n", 7.0))
    ]
    body = msgspec.msgpack.encode({**ITEM, "unit": "C"})
    assert readings_of(decoded("msgpack", body, ignore_unknown=True)) == [GOOD_READING]


@pytest.mark.parametrize(
    ("moment", "us"),
    [
        (b"\xd6\xff" + (1_795_600_000).to_bytes(4), 1_795_600_000_000_000),
        (b"\xd7\xff" + (2_500 << 34 | 1_795_600_000).to_bytes(8), 1_795_600_000_000_002),
        (b"\xd7\xff" + (999_999_501 << 34 | 1_795_599_999).to_bytes(8), 1_795_600_000_000_000),
        (
            b"\xc7\x0c\xff" + (7_000).to_bytes(4) + (1_795_600_000).to_bytes(8),
            1_795_600_000_000_007,
        ),
        (b"\xc7\x0c\xff" + bytes(4) + (1 << 62).to_bytes(8), "ts_in_future"),
        (b"\xc7\x0c\xff" + bytes(4) + (-(1 << 62)).to_bytes(8, signed=True), "ts_too_old"),
        (b"\xd7\xff" + b"\xff" * 8, "wrong_type"),
        (b"\xd6\x05abcd", "wrong_type"),
    ],
)
def test_time_may_be_one_of_messagepack(moment: bytes, us: int | str) -> None:
    """Its nanoseconds are rounded half to even, as those of RFC 3339."""
    body = msgspec.msgpack.encode(ITEM | {"ts": 0})[::]
    body = body.replace(b"\xa2ts\x00", b"\xa2ts" + moment)
    found = decoded("msgpack", body)
    told: list[int | str] = [each.ts_us for each in readings_of(found)]
    assert told + [error.code for error in found.errors] == [us]


def test_parser_says_where_the_items_end() -> None:
    """The place is in the text of an error of msgspec; a fault tells its place in the body."""
    with pytest.raises(msgspec.DecodeError) as caught:
        messagepack._RAW.decode(b"\x91\x01\x02")
    found = messagepack._BYTES_FOLLOW.search(str(caught.value))
    assert found is not None
    assert found[1] == "2"
    with pytest.raises(Refused, match=r"\(byte 5\)"):
        decoded("msgpack", b"\x92\x91\x80\x82\xa0\xc1")


@pytest.mark.parametrize(
    ("name", "body", "rows", "faults"),
    [
        ("senml", b'[{"bn":"a/b"},%b]' % b",".join([b'{"v":1,"t":1}'] * 3_000), 3_000, 0),
        (
            "msgpack",
            msgspec.msgpack.encode([{"device_id": "a", "values": {"b": 1}}] * 1_000 + [0] * 700),
            1_000,
            700,
        ),
    ],
)
def test_short_items_are_no_crowd(name: str, body: bytes, rows: int, faults: int) -> None:
    """An item of these formats may be shorter than one of JSON; only its own fault counts."""
    found = decoded(name, body)
    assert (len(readings_of(found)), len(found.errors)) == (rows, faults)


# SenML


def told_of(found: Decoded) -> list[tuple[str, str, float, float]]:
    """Return device, metric, value, and seconds from the time of receipt."""
    return [
        (each.device_id, each.metric, each.value, (each.ts_us - NOW_US) / 1e6)
        for each in readings_of(found)
    ]


def pack(*records: dict[str, object]) -> bytes:
    """Write a pack."""
    return json.dumps(records).encode()


@pytest.mark.parametrize(
    ("name", "device", "metric"),
    [
        ("urn:dev:ow:10e2073a01080063", "urn:dev:ow:10e2073a01080063", "value"),
        ("urn:dev:ow:10e2073a01080063:voltage", "urn:dev:ow:10e2073a01080063", "voltage"),
        ("urn:dev:ow:10e2073a01080063_humidity", "urn:dev:ow:10e2073a01080063", "humidity"),
        ("urn:dev:mac:0024befffe804ff1/3303/0/5700", "urn:dev:mac:0024befffe804ff1", "3303/0/5700"),
        ("room-1/temperature", "room-1", "temperature"),
        ("building:room-1:temperature", "building:room-1", "temperature"),
        ("http://host.example/sensors/t", "http://host.example/sensors", "t"),
        ("room-1/", "room-1", "value"),
        ("temperature", "gateway", "temperature"),
        ("/3303/0/5700", "gateway", "3303/0/5700"),
    ],
)
def test_name_has_a_device_and_a_metric(name: str, device: str, metric: str) -> None:
    """However it is split between `bn` and `n`. A name without a device is one of the token's."""
    for at in range(len(name) + 1):
        body = pack({"bn": name[:at], "n": name[at:], "v": 1})
        assert told_of(decoded("senml", body, device="gateway")) == [(device, metric, 1.0, 0.0)]
    if device == "gateway":
        assert decoded("senml", pack({"n": name, "v": 1})).errors[0].code == "no_device"


def test_base_fields_hold_for_the_records_after_them() -> None:
    """Until the next one; values, sums and times are added to theirs; texts are left out."""
    found = decoded(
        "senml",
        pack(
            {"bn": "a/", "bt": -10, "bver": 1e1, "bu": "W"},
            {"n": "x", "v": 1, "t": -1},
            {"n": "y", "vb": True, "u": "/", "l": "ignored"},
            {"n": "text", "vs": "on"},
            {"n": "data", "vd": "AA", "ut": 5},
            {"bn": "b/", "bv": 100.5, "n": "x", "v": 1},
            {"n": "y"},
            {"bs": 7, "bv": 0, "bt": 0, "n": "z", "v": 2, "s": 1},
            {"n": "s", "vs": "t", "s": -7.5},
        ),
    )
    assert told_of(found) == [
        ("a", "x,u=W", 1.0, -11.0),
        ("a", "y,u=/", 1.0, -10.0),
        ("b", "x,u=W", 101.5, -10.0),
        ("b", "y,u=W", 100.5, -10.0),
        ("b", "z,u=W", 2.0, 0.0),
        ("b", "z,u=W,sum", 8.0, 0.0),
        ("b", "s,u=W,sum", -0.5, 0.0),
    ]
    assert (found.errors, found.texts) == ([], 3)
    assert found.block is not None
    assert found.block.items == [1, 2, 5, 6, 7, 7, 8]


def test_unit_keeps_series_apart() -> None:
    """As in RFC 8428, 5.1.3: one name, equal values, one time; a series depends on its record only.

    No unit is like a sum.
    """
    records: list[dict[str, object]] = [
        {"n": "urn:dev:ow:1", "u": unit, "v": 20} for unit in ("%RH", "lon", "", "a,sum")
    ]
    base: dict[str, object] = {"bn": "urn:dev:ow:1", "bu": "%RH", "bt": 0, "v": 20}
    mixed = pack(base, {"u": "lon", "v": 20}, {"u": "", "v": 20}, {"u": "a,sum", "v": 20})
    metrics = ["value,u=%RH", "value,u=lon", "value", r"value,u=a\,sum"]
    for body in (mixed, pack(*records)):
        assert [each[1] for each in told_of(decoded("senml", body))] == metrics
    assert [decoded("senml", pack(each)).errors for each in records] == [[]] * 4


@pytest.mark.parametrize(
    ("base", "own", "us"),
    [
        (1_795_600_000, None, 1_795_600_000_000_000),
        (1_795_600_000.5, -0.25, 1_795_600_000_250_000),
        (None, 2**28 - 0.5, NOW_US + (2**28 - 1) * 10**6 + 500_000),
        (None, 2**28, 2**28 * 10**6),
        (-5, 2, NOW_US - 3_000_000),
        (1_795_600_000, 0.0000005, 1_795_600_000_000_000),
    ],
)
def test_time_below_2_to_the_28_counts_from_now(
    base: float | None, own: float | None, us: int
) -> None:
    """RFC 8428, 4.5.3: base and own time are added first; all is rounded once."""
    times = {name: each for name, each in (("bt", base), ("t", own)) if each is not None}
    rules = RULES._replace(ts_min_us=0, ts_ahead_us_max=10**18)
    (reading,) = readings_of(decoded("senml", pack({"n": "a/b", "v": 1, **times}), rules=rules))
    assert reading.ts_us == us


@pytest.mark.parametrize(
    ("record", "code", "field"),
    [
        ({"n": "a/b", "v": 1, "must_": 1}, "unknown_field", "must_"),
        ({"n": "a/b"}, "missing_field", "v"),
        ({"n": "a/b", "v": 1, "vs": "x"}, "both_shapes", "vs"),
        ({"n": "a/b", "v": "1"}, "wrong_type", "v"),
        ({"n": "a/b", "v": True}, "wrong_type", "v"),
        ({"n": "a/b", "vb": 1}, "wrong_type", "vb"),
        ({"n": 5, "v": 1}, "wrong_type", "n"),
        ({"n": "a/b", "u": 5, "v": 1}, "wrong_type", "u"),
        ({"n": "a/b", "u": "\n", "v": 1}, "name_control_character", "n"),
        ({"n": "a/b", "v": 1, "t": "1"}, "wrong_type", "t"),
        ({"n": "a/b", "v": 1, "t": None}, "wrong_type", "t"),
        ({"n": "a/b", "v": 1, "t": 1e300}, "ts_in_future", "t"),
        ({"n": "a/b", "v": 1, "t": -1e300}, "ts_too_old", "t"),
        ({"n": "a/b", "v": 2**53 + 1}, "value_not_exact", "v"),
        ({"n": "a/b", "v": 2**64 + 1}, "value_not_exact", "v"),
        ({"n": "a/b", "v": 10**400}, "value_out_of_range", "v"),
        ({"n": "a/\n", "v": 1}, "name_control_character", "n"),
        ({"n": "a/" + "b" * 300, "v": 1}, "name_too_long", "n"),
        (7, "not_an_object", None),
        ("x", "not_an_object", None),
    ],
)
def test_faulty_record_is_named_and_has_its_base(
    record: dict[str, object], code: str, field: str | None
) -> None:
    """Its bytes have the base fields of the records before it, so it means the same alone."""
    good = {"n": "a/b", "v": 1}
    base = {"bn": "x/", "bt": 1_795_600_000.25, "bver": 5, "bu": "W"}
    found = decoded("senml", pack({**base, **good}, record, good))
    (error,) = found.errors
    assert (error.item, error.code, error.field) == (1, code, field)
    if isinstance(record, dict):
        assert json.loads(error.original) == {**base, **record}
    assert len(readings_of(found)) == 2
    (again,) = DECODE_ITEM["senml"](error.original, post()).errors
    assert (again.code, again.original) == (code, error.original)


@pytest.mark.parametrize(
    "body",
    [
        b'{"n":"a/b","v":1}',
        b'[{"bn":1}]',
        b'[{"bt":"1"}]',
        b'[{"bver":11,"n":"a/b","v":1}]',
        b'[{"bver":true,"n":"a/b","v":1}]',
        b'[{"bver":1.5,"n":"a/b","v":1}]',
        b'[{"bv":1e999,"n":"a/b","v":1}]',
        b'[{"bn":"a","bn":"b","n":"c","v":1}]',
        b'[{"bn":"%b"},{"n":"c","v":1}]' % (b"/" * 601),
        b'[{"bu":"%b"},{"n":"a/c","v":1}]' % (b"," * 601),
    ],
)
def test_pack_whose_base_is_wrong_is_refused(body: bytes) -> None:
    """All records after it would be read wrongly."""
    with pytest.raises(Refused) as caught:
        decoded("senml", body)
    assert caught.value.code == "not_senml"


def test_field_twice_and_large_base_are_found_in_any_slice() -> None:
    """What the parser hides: a name that stands twice, and digits beyond 64 bits."""
    good = b'{"n":"a/b","v":1}'
    twice = b'{"n":"a/b","v":1,"v":2}'
    body = b"[%b]" % b",".join([good] * 2 * CAREFUL_ITEMS + [twice, good])
    (error,) = decoded("senml", body).errors
    assert (error.item, error.code, error.field) == (2 * CAREFUL_ITEMS, "repeated_field", "v")
    large = b'{"bv":18446744073709551617,"n":"a/b","v":%d}'
    assert decoded("senml", b"[%b]" % (large % 0)).errors[0].code == "value_not_exact"
    assert readings_of(decoded("senml", b"[%b]" % (large % -1)))[0].value == 2.0**64


# Costs and limits

STEP_S_MAX = 0.005


def hostile() -> dict[str, tuple[str, bytes]]:
    """Return large bodies that are made to cost much."""
    good = [*objects_of([GOOD_READING]) * 5_000]
    return {
        "bad lines": ("ndjson", b'{"device_id":"a","metric":"m","value":}\n' * 5_000),
        "empty lines": ("ndjson", b"\n" * 4_000_000 + b"{}"),
        "one long line": ("ndjson", b'{"device_id":"%b"}' % (b"x" * 4_000_000)),
        "nested lines": ("ndjson", (b"[" * 400 + b"]" * 400 + b"\n") * 4_000),
        "no names twice": ("msgpack", msgspec.msgpack.encode([{**each, "x": 1} for each in good])),
        "empty items": ("msgpack", b"\xdc\x13\x88" + b"\x80" * 5_000),
        "an item of arrays": ("msgpack", b"\x91\xdd\x00\x08\x00\x00" + b"\x90" * 524_288),
        "a large item": ("msgpack", b"\x91\xdf\x00\x03\x00\x00" + b"\xa1a\xc0" * 196_608),
        "large values": (
            "msgpack",
            b"\x82\xa9device_id\xa1a\xa6values\xdf\x00\x01\x00\x00" + b"\xa1a\xc0" * 65_536,
        ),
        "items beyond": ("msgpack", b"\xdd\xff\xff\xff\xff" + b"\xc0" * 4_000_000),
        "bad records": ("senml", b"[%b]" % b",".join([b'{"bn":"a/","n":"b","v":null}'] * 5_000)),
        "long units": (
            "senml",
            b'[{"bu":"%b"},%b]' % (b"," * 600, b",".join([b'{"n":"a/b","v":1}'] * 5_000)),
        ),
        "large numbers": ("senml", b"[%b]" % b",".join([b'{"n":"a/b","v":1e308}'] * 5_000)),
        "exact numbers": ("senml", b"[%b]" % b",".join([b'{"n":"a/b","v":%d}' % 10**20] * 5_000)),
    }


HOSTILE = hostile()


@pytest.mark.parametrize("case", HOSTILE)
def test_large_body_takes_short_steps(case: str) -> None:
    """Whatever it has, no step holds the event loop for long. The least of some tries counts."""
    name, body = HOSTILE[case]
    most = Cost(inf, STEP_S_MAX)
    found = least_cost(partial(BEGIN[name], body, post(precision=None)), 12, most)
    assert found.step_s <= STEP_S_MAX


@pytest.mark.parametrize("name", BEGIN)
def test_limits_are_those_of_json(name: str) -> None:
    """Readings of a post, invalid items, and devices that a token may speak for."""
    facts = [GOOD_READING] * 6
    with pytest.raises(Refused) as caught:
        decoded(name, written(name, facts), rules=RULES._replace(post_rows_max=5))
    assert caught.value.code == "too_many_readings"
    others: Sequence[Reading] = [GOOD_READING._replace(device_id="other"), *facts]
    found = decoded(name, written(name, others), allows=lambda device: device == "pump-1")
    assert [error.code for error in found.errors] == ["not_allowed"]
    assert len(readings_of(found)) == 6
    large = "x" * 1_200_000
    with pytest.raises(Refused) as caught:
        decoded(name, written(name, [*facts, GOOD_READING._replace(metric=large), *facts]))
    assert caught.value.code == "item_too_large"
