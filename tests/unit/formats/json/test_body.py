"""Decoding of JSON posts: which items are readings, and which are errors of which code."""

from __future__ import annotations

import json
import math
import struct

import pytest

from ingest.formats import block_builder
from ingest.formats.block_builder import SERIES
from ingest.formats.post import ERRORS_TOLD_MAX, Rules
from ingest.model.codes import ITEM_CODES
from ingest.model.reading import Reading
from ingest.model.tables import NO_TABLES
from tests.support.posts import GOOD, GOOD_READING, NOW_US, RULES, array, decoded, item, readings_of

LONG = "n" * 100_000
DAY_US = 86_400_000_000

# Code, field, the whole item. One row for each way to be wrong.
INVALID: list[tuple[str, str | None, bytes]] = [
    ("not_an_object", None, b"5"),
    ("not_an_object", None, b"null"),
    ("not_an_object", None, b'"text"'),
    ("not_an_object", None, b"[]"),
    ("not_an_object", None, b"[" * 50 + b"]" * 50),
    ("not_an_object", None, b"1e400"),
    ("not_an_object", None, b"9" * 10_000),
    ("missing_field", "device_id", b"{}"),
    ("missing_field", "device_id", item(device_id=...)),
    ("missing_field", "metric", item(metric=..., value=...)),
    ("missing_field", "metric", item(metric=...)),
    ("missing_field", "value", item(value=...)),
    ("unknown_field", "tss", item(tss=1)),
    ("unknown_field", "Device_id", item(Device_id="x")),
    ("unknown_field", "", item(**{"": 1})),
    ("unknown_field", LONG[:64] + "..", item(**{LONG: 1})),
    ("repeated_field", "value", GOOD[:-1] + b',"value":1}'),
    ("repeated_field", "value", GOOD[:-1] + b',"value":21.5}'),
    ("repeated_field", "ts", GOOD[:-1] + b',"ts":"x"}'),
    ("repeated_field", "device_id", GOOD[:-1] + b',"\\u0064evice_id":"pump-1"}'),
    ("both_shapes", "metric", item(value=..., values={"a": 1})),
    ("both_shapes", "value", item(metric=..., values={"a": 1})),
    ("both_shapes", "metric", item(values={"a": 1})),
    ("both_shapes", "metric", item(values={})),
    ("values_empty", "values", item(metric=..., value=..., values={})),
    ("wrong_type", "values", item(metric=..., value=..., values=[1])),
    ("wrong_type", "values", item(metric=..., value=..., values=None)),
    ("wrong_type", "device_id", item(device_id=5)),
    ("wrong_type", "device_id", item(device_id=None)),
    ("wrong_type", "metric", item(metric={"a": 1})),
    ("wrong_type", "metric", item(metric=None)),
    ("wrong_type", "value", item(value="21.5")),
    ("wrong_type", "value", item(value=None)),
    ("wrong_type", "value", item(value=[])),
    ("wrong_type", "value", item(value=LONG)),
    ("wrong_type", "ts", item(ts=None)),
    ("wrong_type", "ts", item(ts=True)),
    ("wrong_type", "ts", item(ts={})),
    ("name_empty", "device_id", item(device_id="")),
    ("name_empty", "metric", item(metric="")),
    ("name_too_long", "device_id", item(device_id=LONG)),
    ("name_too_long", "metric", item(metric="n" * 257)),
    ("name_too_long", "metric", item(metric="温" * 171)),
    ("name_control_character", "device_id", item(device_id="a\0")),
    ("name_control_character", "metric", item(metric="\n")),
    ("value_out_of_range", "value", GOOD.replace(b"21.5", b"1e400")),
    ("value_out_of_range", "value", GOOD.replace(b"21.5", b"-1e400")),
    ("value_out_of_range", "value", GOOD.replace(b"21.5", b"1" + b"0" * 400)),
    ("value_out_of_range", "value", GOOD.replace(b"21.5", b"-" + b"9" * 10_000)),
    ("value_not_exact", "value", GOOD.replace(b"21.5", b"9007199254740993")),
    ("value_not_exact", "value", GOOD.replace(b"21.5", b"-9007199254740993")),
    ("value_not_exact", "value", GOOD.replace(b"21.5", b"18446744073709551615")),
    ("value_not_exact", "value", GOOD.replace(b"21.5", b"18446744073709551617")),
    ("value_not_exact", "value", GOOD.replace(b"21.5", b"1" * 300)),
    ("value_not_exact", "values.a", item(metric=..., value=..., values={"a": 2**64 + 1})),
    ("value_out_of_range", "values.a", item(metric=..., value=..., values={"a": 10**309})),
    ("ts_unreadable", "ts", item(ts="")),
    ("ts_unreadable", "ts", item(ts="1700000000")),
    ("ts_unreadable", "ts", item(ts="2026-02-30T00:00:00Z")),
    ("ts_unreadable", "ts", item(ts=LONG)),
    ("ts_without_offset", "ts", item(ts="2026-01-01T00:00:00")),
    ("ts_too_old", "ts", item(ts="1999-12-31T23:59:59.999999Z")),
    ("ts_too_old", "ts", item(ts=0)),
    ("ts_too_old", "ts", item(ts=-(10**300))),
    ("ts_too_old", "ts", GOOD.replace(b"1795600000", b"-1e400")),
    ("ts_in_future", "ts", item(ts="9999-12-31T23:59:59Z")),
    ("ts_in_future", "ts", item(ts=(NOW_US + DAY_US) / 1e6 + 1)),
    ("ts_in_future", "ts", item(ts=10**300)),
    ("ts_in_future", "ts", GOOD.replace(b"1795600000", b"1e400")),
    ("ts_in_future", "ts", GOOD.replace(b"1795600000", b"9" * 10_000)),
]


def test_every_item_code_that_decoding_can_raise_is_tried() -> None:
    """The table of invalid items and the list of codes agree, but for those of other parts."""
    others = {"refused_by_database", "no_partition", "not_allowed", "no_device"}
    others |= {"line_unreadable", "item_unreadable", "no_value", "document_unreadable"}
    assert {code for code, _, _ in INVALID} == set(ITEM_CODES) - others


@pytest.mark.parametrize(("code", "field", "bad"), INVALID)
def test_invalid_item_is_one_error_wherever_it_stands(
    code: str, field: str | None, bad: bytes
) -> None:
    """Alone, or among good ones, an invalid item is named once and its bytes are kept."""
    alone = decoded(b" \n" + (array(bad) if bad[:1] == b"[" else bad) + b"\t")
    assert alone.block is None
    among = decoded(array(*[GOOD] * 30, b" " + bad + b"\n", *[GOOD] * 69))
    assert readings_of(among) == [GOOD_READING] * 99
    for place, result in ((0, alone), (30, among)):
        (error,) = result.errors
        assert (error.item, error.code, error.field) == (place, code, field)
        assert error.original == bad
        assert 0 < len(error.message) <= 200
        assert error.message.isprintable()
    assert among.block is not None
    assert among.block.items == [*range(30), *range(31, 100)]


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        (b"21.5", 21.5),
        (b"true", 1.0),
        (b"false", 0.0),
        (b"-0.0", 0.0),
        (b"-0", 0.0),
        (b"0", 0.0),
        (b"9007199254740992", 9007199254740992.0),
        (b"9007199254740994", 9007199254740994.0),
        (b"1152921504606846976", 2.0**60),
        (b"18446744073709551616", 2.0**64),
        (b"-9223372036854775808", -(2.0**63)),
        (b"%d" % int(1e300), 1e300),
        (b"9007199254740993.0", 9007199254740992.0),
        (b"123456789012345678901234567890e0", 123456789012345678901234567890.0),
        (b"1.7976931348623157e308", 1.7976931348623157e308),
        (b"5e-324", 5e-324),
        (b"1e-400", 0.0),
        (b"-1e-400", 0.0),
        (b"1E2", 100.0),
        (b"0." + b"1" * 2_000, float("0." + "1" * 2_000)),
    ],
)
def test_value_becomes_the_nearest_float64(literal: bytes, expected: float) -> None:
    """Numbers round to nearest, true and false are 1 and 0, there is no negative zero."""
    for result in (
        decoded(GOOD.replace(b"21.5", literal)),
        decoded(b'{"device_id":"pump-1","ts":1795600000,"values":{"rpm":%b}}' % literal),
        decoded(array(b"5", GOOD.replace(b"21.5", literal))),
    ):
        (reading,) = readings_of(result)
        assert struct.pack("d", reading.value) == struct.pack("d", expected)
        assert math.copysign(1, reading.value) == math.copysign(1, expected)


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        (b"9007199254740993", 2.0**53),
        (b"18446744073709551615", 2.0**64),
        (b"123456789012345678901234567890", float(123456789012345678901234567890)),
        (b"1" * 300, float("1" * 300)),
    ],
)
def test_integer_that_float64_cannot_hold_is_rounded_if_the_setting_says_so(
    literal: bytes, expected: float
) -> None:
    """`value_inexact` round: the nearest float64 is stored, as for numbers with a point."""
    rules = RULES._replace(integers_rounded=True)
    for body in (GOOD.replace(b"21.5", literal), array(b"5", GOOD.replace(b"21.5", literal))):
        (reading,) = readings_of(decoded(body, rules=rules))
        assert reading.value == expected


def test_item_of_several_values_is_one_reading_each() -> None:
    """`values` spreads into readings that share device and time; items say whose each row is."""
    several = item(metric=..., value=..., ts="2026-01-01T00:00:00Z", values={"b": 1, "a": True})
    result = decoded(array(GOOD, several, GOOD))
    at_us = 1_767_225_600_000_000
    assert readings_of(result) == [
        GOOD_READING,
        Reading(at_us, "pump-1", "b", 1.0),
        Reading(at_us, "pump-1", "a", 1.0),
        GOOD_READING,
    ]
    assert result.block is not None
    assert result.block.items == [0, 1, 1, 2]
    assert result.block.rows == 4
    assert result.errors == []


def test_bad_entries_of_values_leave_the_good_ones() -> None:
    """They are one error together; a name that appears twice is not guessed at."""
    entries = b'"a":1,"b":null,"c":2,"c":3,"d":"x","":4,"e":5,"f\\u0000":6,"g":1e999'
    several = b'{"device_id":"pump-1","ts":1795600000,"values":{%b}}' % entries
    result = decoded(array(GOOD, several))
    assert [each.metric for each in readings_of(result)] == ["rpm", "a", "e"]
    (error,) = result.errors
    assert (error.item, error.field, error.code) == (1, "values.b", "wrong_type")
    assert error.also == (
        ("values.c", "repeated_field"),
        ("values.d", "wrong_type"),
        ("values.", "name_empty"),
        ("values.f\0", "name_control_character"),
        ("values.g", "value_out_of_range"),
    )
    assert error.original == several
    assert result.block is not None
    assert result.block.items == [0, 1, 1]


NINE_UNKNOWN = ", ".join(f"{name} unknown_field" for name in "abcfghijk")


@pytest.mark.parametrize(
    ("bad", "faults", "hint"),
    [
        (
            b'{"id":"esp-1","temp":21.5,"hum":40}',
            "id unknown_field, temp unknown_field, hum unknown_field, device_id missing_field, "
            "metric missing_field",
            'did you mean `device_id`?); flat numbers go into `values`, like "values": {"temp":',
        ),
        (item(metrik="x"), "metrik unknown_field", "(the fields are"),
        (item(metric=..., metrik="x"), "metrik unknown_field, metric missing_field", "`metric`?"),
        (item(device_id=..., sensor="x"), "sensor unknown_field, device_id missing_field", "`dev"),
        (item(ts="x", value=None), "ts ts_unreadable, value wrong_type", ""),
        (item(value=..., valeu=1), "valeu unknown_field, value missing_field", "`value`?"),
        (item(**dict.fromkeys("abcfghijklno", 1)), NINE_UNKNOWN, ""),
    ],
)
def test_all_faults_of_an_item_are_told_at_once(bad: bytes, faults: str, hint: str) -> None:
    """One error with its further faults, at most eight, and a hint at what may be meant."""
    (error,) = decoded(bad).errors
    found = [(error.field, error.code), *error.also]
    assert ", ".join(f"{field} {code}" for field, code in found) == faults
    assert hint.replace("(the", "the") in error.message
    assert len(error.message) <= 200


def test_missing_field_names_the_ignored_one_that_may_stand_for_it() -> None:
    """With `?unknown=ignore` no error says that `id` is unknown."""
    (error,) = decoded(b'{"id":"a","metric":"m","value":1}', ignore_unknown=True).errors
    assert (error.field, error.code, error.message) == (
        "device_id",
        "missing_field",
        "is missing (is it `id`?)",
    )


def test_only_the_first_errors_have_messages_of_their_own() -> None:
    """A message costs as much as decoding ten readings; the other errors have their code's text."""
    errors = decoded(array(*[item(value="x")] * 300)).errors
    assert {each.message for each in errors[:ERRORS_TOLD_MAX]} == {
        "is the string 'x'; must be a number, true or false"
    }
    assert {each.message for each in errors[ERRORS_TOLD_MAX:]} == {ITEM_CODES["wrong_type"]}
    assert {(each.field, each.code) for each in errors} == {("value", "wrong_type")}


def test_reading_without_ts_gets_the_time_of_receipt() -> None:
    """Also beside readings with one, and whatever the window says about it."""
    early = Rules(5_000, NOW_US + 1, 0)
    assert readings_of(decoded(item()))[0].ts_us == NOW_US
    assert readings_of(decoded(array(item(), item()), rules=early))[1].ts_us == NOW_US
    mixed = readings_of(decoded(array(item(), GOOD, item(ts="2026-01-01T00:00:00Z"))))
    assert [each.ts_us for each in mixed] == [NOW_US, 1_795_600_000 * 10**6, 1_767_225_600 * 10**6]


def test_window_takes_its_own_edges() -> None:
    """The oldest and the newest accepted microsecond are in, their neighbours are out."""
    newest_us = NOW_US + RULES.ts_ahead_us_max
    for ts_us, code in (
        (RULES.ts_min_us, None),
        (RULES.ts_min_us - 1, "ts_too_old"),
        (newest_us, None),
        (newest_us + 1, "ts_in_future"),
    ):
        result = decoded(item(ts=ts_us), precision="us")
        assert [each.code for each in result.errors] == ([code] if code else [])
        assert [each.ts_us for each in readings_of(result)] == ([] if code else [ts_us])


@pytest.mark.parametrize(
    ("precision", "ts", "expected_us"),
    [
        ("s", 1_700_000_000, 1_700_000_000_000_000),
        ("ms", 1_700_000_000_000, 1_700_000_000_000_000),
        ("us", 1_700_000_000_000_000, 1_700_000_000_000_000),
        ("ns", 1_700_000_000_000_000_501, 1_700_000_000_000_001),
        ("ns", 1.7e18, 1_700_000_000_000_000),
        (None, 1_700_000_000.25, 1_700_000_000_250_000),
        ("ns", "2026-01-01T00:00:00Z", 1_767_225_600_000_000),
    ],
)
def test_precision_is_the_unit_of_numbers_only(
    precision: str | None, ts: object, expected_us: int
) -> None:
    """`?precision` tells what a number counts; text needs none."""
    for body in (item(ts=ts), array(*[item(ts=ts)] * 20)):
        result = decoded(body, precision=precision)
        assert {each.ts_us for each in readings_of(result)} == {expected_us}
        assert result.block is not None
        assert result.block.newest_ts_us == expected_us


@pytest.mark.parametrize(
    "extra",
    [
        b'"unit":"\xc2\xb0C"',
        b'"unit":1,"unit":2',
        b'"unit":"a\\"b"',
        b'"nested":{"value":1,"ts":null,"values":{}}',
        b'"x":"value"',
        b'"deep":' + b"[" * 100 + b"]" * 100,
    ],
)
def test_unknown_fields_are_accepted_when_asked(extra: bytes) -> None:
    """`?unknown=ignore` takes anything else in an item, repeated or not; without it an error."""
    body = array(GOOD[:-1] + b"," + extra + b"}", b"{" + extra + b"," + GOOD[1:], GOOD)
    assert readings_of(decoded(body, ignore_unknown=True)) == [GOOD_READING] * 3
    assert [each.code for each in decoded(body).errors] == ["unknown_field"] * 2


def test_known_fields_stay_strict_when_unknown_ones_are_ignored() -> None:
    """Ignoring what we do not know excuses nothing that we know."""
    bad = [
        (GOOD[:-1] + b',"x":1,"value":2}', "repeated_field"),
        (GOOD[:-1] + b',"x":1,"\\u0074s":2}', "repeated_field"),
        (item(x=1, values={"a": 1}), "both_shapes"),
        (item(x=1, value=None), "wrong_type"),
        (item(x=1, ts=..., metric=...), "missing_field"),
        (b'{"x":1}', "missing_field"),
    ]
    for body, code in bad:
        result = decoded(array(GOOD, body), ignore_unknown=True)
        assert [each.code for each in result.errors] == [code]
        assert readings_of(result) == [GOOD_READING]


def test_names_that_are_kept_stay_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that makes up names without end does not grow our memory."""
    monkeypatch.setattr(block_builder, "KEPT_BYTES_MAX", 500_000)
    for start in range(0, 40_000, 1_000):
        names = [item(device_id=f"made-up-{start + i}", metric=f"m{start}") for i in range(1_000)]
        assert decoded(array(*names)).errors == []
        assert 0 < len(SERIES.devices) < 4_000
        assert len(SERIES.metrics[NO_TABLES]) < 4_000


def test_name_of_brackets_is_only_a_name() -> None:
    """A text with many brackets is not nested, however many such names there are."""
    item = json.dumps({"device_id": "[" * 60, "metric": "[{" * 30, "ts": 1_795_600_000, "value": 1})
    result = decoded(array(*[item.encode()] * 12))
    assert result.errors == []
    assert len(readings_of(result)) == 12
