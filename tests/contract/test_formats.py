"""The contract of a format, run over every entry of FORMATS: from a body to a block and errors.

A new format adds its Writer to WRITERS, and gets all of these tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.formats.lines.body import decode_item
from ingest.formats.lines.keys import Naming
from ingest.formats.media_types import DECODE_ITEM, FORMATS, USUAL, Format, format_of
from ingest.formats.post import Decode, Decoded, Post
from ingest.model.block import encode_reading
from ingest.model.codes import ITEM_CODES, PROBLEMS
from ingest.model.errors import Refused
from ingest.model.reading import LINE, Reading, name_fault
from tests.support.line_oracle import metric_of
from tests.support.posts import GOOD, GOOD_READING, NOW_US, RULES, readings_of


class Writer(NamedTuple):
    """How the tests write bodies of one format.

    `item` writes one reading, with its time in microseconds. `body` writes a post of items.
    """

    item: Callable[[Reading], bytes]
    body: Callable[[Sequence[bytes]], bytes]
    invalid: bytes  # an item of the format that is no reading: the device's name is missing
    empty: Sequence[bytes]  # bodies without a reading
    not_it: Sequence[bytes]  # bodies that are not of the format
    pieces: str  # characters from which random bodies nearly of the format are made
    kept: Callable[[Reading], Reading] = lambda reading: reading  # what `item` says


def json_item(reading: Reading) -> bytes:
    """Write a reading as a JSON object."""
    ts_us, device_id, metric, value = reading
    return json.dumps(
        {"device_id": device_id, "metric": metric, "ts": ts_us, "value": value}, ensure_ascii=False
    ).encode()


def json_body(items: Sequence[bytes]) -> bytes:
    """Write items as a JSON array."""
    return b"[%b]" % b",".join(items)


def line(reading: Reading) -> bytes:
    """Write a reading as a line of QuestDB's, which can have any name."""
    ts_us, device_id, metric, value = reading
    device = re.sub(r"([, =\\])", r"\\\1", device_id)
    measurement = re.sub(r"([, \\])", r"\\\1", f"m{metric}")
    return f"{measurement},host={device} value={value!r} {ts_us}".encode()


def kept_of_line(reading: Reading) -> Reading:
    """Return the reading of `line`."""
    return reading._replace(metric=metric_of(f"m{reading.metric}", "value", {}))


def line_of_json(reading: Reading) -> bytes:
    """Write a reading as a line of NDJSON, with the spaces that some writers put there."""
    return b"\t%b \r" % json_item(reading)


def packed_item(reading: Reading) -> bytes:
    """Write a reading as MessagePack."""
    return msgspec.msgpack.encode(
        dict(zip(("ts", "device_id", "metric", "value"), reading, strict=True))
    )


def packed_body(items: Sequence[bytes]) -> bytes:
    """Write items as an array of MessagePack, whose head is not the shortest one."""
    return b"\xdd%b%b" % (len(items).to_bytes(4), b"".join(items))


def record(reading: Reading) -> bytes:
    """Write a reading as a SenML record. Its names have none of the marks that separate them."""
    ts_us, device_id, metric, value = reading
    device, metric = (re.sub("[:/]", "_", each) for each in (device_id, metric))
    name = f"{device}/{metric}"
    seconds = f"{ts_us // 1_000_000}.{ts_us % 1_000_000:06}"
    return b'{"n":%b,"t":%b,"v":%b}' % (
        json.dumps(name, ensure_ascii=False).encode(),
        seconds.encode(),
        json.dumps(value).encode(),
    )


def kept_of_record(reading: Reading) -> Reading:
    """Return the reading of `record`."""
    device, metric = (re.sub("[:/]", "_", each) for each in (reading.device_id, reading.metric))
    return reading._replace(device_id=device, metric=metric)


# The formats that a media type names, and those that are found by the path of a post.
DECODERS: dict[str, Decode] = {
    **{media_type: FORMATS[media_type].decode for media_type in USUAL},
    LINE: lambda body, post: decode_item(body, post, Naming(("host",), escapes="questdb")),
}
WRITERS: dict[str, Writer] = {
    LINE: Writer(
        line,
        b"\n".join,
        b"m  value=21.5",
        [b"", b" ", b"\n", b"# only a comment\n", b'm,host=h s="text"'],
        [b"pump-1", GOOD, b"\xff\xfe", b"<xml/>", b"[]", b"m,host=h"],
        'mh,=\\" #\n\r1.-eit',
        kept_of_line,
    ),
    "application/x-ndjson": Writer(
        line_of_json,
        b"\n \r\n".join,
        b'{"metric": "rpm",  "value":21.5}',
        [b"", b" ", b"\n\r\n \n"],
        [b"pump-1 rpm=21.5", GOOD[:-1], b"\xff\xfe", b"\x81\xa1a\x01", GOOD.replace(b":", b":\n")],
        '[]{}",:0.e-tr\\ u\n',
    ),
    "application/msgpack": Writer(
        packed_item,
        packed_body,
        b"\x82\xa6metric\xa3rpm\xd9\x05value\xca\x41\xac\x00\x00",
        [b"\x90", b"\xdc\x00\x00", b"\xdd\x00\x00\x00\x00"],
        [
            b"",
            b"\x91",
            b"\xc0\xc0",
            b"\x92\xc0",
            b"\xc1",
            b"\xdd\x00",
            b"\x91" * 3_000 + b"\xc0\xc0",
        ],
        "\x01\x05\x10az",
    ),
    "application/senml+json": Writer(
        record,
        json_body,
        b'{"n":"rpm",  "v":21.5}',
        [b"[]", b" [ ] ", b'[{"bn":"a/","bt":1795600000}]', b'[{"n":"a/b","vs":"x"}]'],
        [
            b"",
            b" ",
            GOOD,
            b"0",
            GOOD[:-1],
            b'[{"bver":11}]',
            b'[{"bn":1}]',
            b"\xff\xfe",
            b'[{"bv":1e999}]',
        ],
        '[]{}",:0.e-vbnt1s_\\/',
        kept_of_record,
    ),
    "application/json": Writer(
        json_item,
        json_body,
        b'{"metric": "rpm",  "value":21.5}',
        [b"[]", b" [ ] "],
        [b"", b" ", b"pump-1 rpm=21.5", GOOD[:-1], GOOD + GOOD, b"\xff\xfe", b"\x81\xa1a\x01"],
        '[]{}",:0.e-tr\\ u\n',
    ),
}

READINGS = st.builds(
    Reading,
    st.integers(RULES.ts_min_us, NOW_US + RULES.ts_ahead_us_max),
    *[st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)] * 2,
    st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0),
)
# Texts that are nearly of some format.
NEARLY = (
    st.sampled_from([*WRITERS.values()])
    .flatmap(lambda write: st.text(write.pieces, max_size=60))
    .map(str.encode)
)
every_format = pytest.mark.parametrize("media_type", DECODERS)
every_media_type = pytest.mark.parametrize("media_type", FORMATS)


def decoded(media_type: str, body: bytes, *, rows_max: int = RULES.post_rows_max) -> Decoded:
    """Decode a body received at NOW_US with numeric times in microseconds."""
    rules = RULES._replace(post_rows_max=rows_max)
    found = DECODERS[media_type](body, Post("us", False, NOW_US, 7.0, rules))
    while not isinstance(found, Decoded):
        try:
            next(found)
        except StopIteration as end:
            found = cast("Decoded", end.value)
    return found


def refusal(media_type: str, body: bytes, *, rows_max: int = RULES.post_rows_max) -> Refused:
    """Return the refusal of a body."""
    with pytest.raises(Refused) as caught:
        decoded(media_type, body, rows_max=rows_max)
    return caught.value


def test_every_format_has_a_writer() -> None:
    """A format without a Writer here would be a format without tests."""
    assert WRITERS.keys() == DECODERS.keys()
    assert {FORMATS[media_type] for media_type in USUAL} == set(FORMATS.values())
    assert DECODE_ITEM.keys() == {each.name for each in FORMATS.values()}


@every_media_type
def test_media_type_is_found_in_any_case_and_with_a_charset_of_utf_8(media_type: str) -> None:
    """Clients write a media type in several ways; each way finds the same format."""
    expected: Format = FORMATS[media_type]
    for header in (media_type, media_type.upper(), f" {media_type} ;charset=UTF-8"):
        assert format_of(header) is expected
    for header in (f"{media_type};charset=latin-1", f"{media_type}x", f"x{media_type}"):
        with pytest.raises(Refused) as caught:
            format_of(header)
        assert caught.value.code == "unsupported_media_type"
        assert USUAL[0] in caught.value.detail


@every_media_type
def test_media_type_in_the_list_is_as_lookups_write_it(media_type: str) -> None:
    """An entry with a capital letter or a space would never be found by another spelling."""
    assert media_type == media_type.strip().lower()
    assert ";" not in media_type


@every_format
def test_body_without_readings_is_refused_as_empty(media_type: str) -> None:
    """A post without readings is never answered as a success."""
    for body in WRITERS[media_type].empty:
        assert refusal(media_type, body).code == "empty"


@every_format
def test_body_of_another_form_is_refused_with_400(media_type: str) -> None:
    """Bytes that are not of the format are one refusal of the whole post, and no item's error."""
    for body in WRITERS[media_type].not_it:
        assert PROBLEMS[refusal(media_type, body).code].status == 400


@every_format
def test_block_has_the_times_and_the_size_of_its_post(media_type: str) -> None:
    """The block says when its post was received, and which reading of it is the newest."""
    write = WRITERS[media_type]
    older = GOOD_READING._replace(ts_us=GOOD_READING.ts_us - 5)
    block, errors, _ = decoded(
        media_type, write.body([write.item(GOOD_READING), write.item(older)])
    )
    assert errors == []
    assert block is not None
    assert (block.received_us, block.received_s, block.rows) == (NOW_US, 7.0, 2)
    assert block.newest_ts_us == GOOD_READING.ts_us


@every_format
@given(facts=st.lists(READINGS, min_size=1, max_size=40))
def test_valid_readings_are_kept_bit_exact_and_in_order(
    media_type: str, facts: list[Reading]
) -> None:
    """The block has the bytes of exactly those readings that the client wrote."""
    write = WRITERS[media_type]
    block, errors, _ = decoded(media_type, write.body([write.item(each) for each in facts]))
    assert errors == []
    assert block is not None
    assert block.tuples == b"".join(map(encode_reading, map(write.kept, facts)))
    assert block.rows == len(facts)
    assert block.newest_ts_us == max(each.ts_us for each in facts)


@every_format
@given(are_valid=st.lists(st.booleans(), min_size=1, max_size=40))
def test_invalid_item_is_named_and_the_others_are_kept(
    media_type: str, are_valid: list[bool]
) -> None:
    """An error has the index of its item and its original bytes; rows know their item."""
    write = WRITERS[media_type]
    facts = [GOOD_READING._replace(value=float(place)) for place in range(len(are_valid))]
    items = [
        write.item(fact) if valid else write.invalid
        for fact, valid in zip(facts, are_valid, strict=True)
    ]
    result = decoded(media_type, write.body(items))
    kept = [place for place, valid in enumerate(are_valid) if valid]
    bad = [place for place, valid in enumerate(are_valid) if not valid]
    assert [each.item for each in result.errors] == bad
    for error in result.errors:
        assert error.original == write.invalid
        assert error.code in ITEM_CODES
        assert 0 < len(error.message) <= 200
    assert readings_of(result) == [write.kept(facts[place]) for place in kept]
    if result.block is not None:
        assert list(result.block.items or range(result.block.rows)) == kept


@every_format
def test_more_readings_than_allowed_are_refused(media_type: str) -> None:
    """The bound is inclusive; invalid items count, so errors are bounded too."""
    write = WRITERS[media_type]
    for item in (write.item(GOOD_READING), write.invalid):
        allowed = decoded(media_type, write.body([item] * 5), rows_max=5)
        assert (allowed.block.rows if allowed.block else 0) + len(allowed.errors) == 5
        refused = refusal(media_type, write.body([item] * 6), rows_max=5)
        assert (refused.code, refused.fields) == ("too_many_readings", {"readings_max": 5})


@every_format
@given(body=st.binary(max_size=200) | NEARLY)
@example(body=b"\x00")
@example(body=b"[" * 2_000)
@example(body=b'{"":' * 2_000)
@example(body=b"\xff" * 100)
def test_any_bytes_are_decoded_or_refused(media_type: str, body: bytes) -> None:
    """No bytes raise anything but Refused, and each body has a result."""
    check_any(media_type, body)


@every_format
@given(
    facts=st.lists(READINGS, min_size=1, max_size=5),
    changes=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=2)), max_size=3),
    cut=st.integers(0, 400),
)
def test_damaged_bodies_are_decoded_or_refused(
    media_type: str, facts: list[Reading], changes: list[tuple[int, bytes]], cut: int
) -> None:
    """A body with bytes changed, added, removed or cut off raises nothing but Refused."""
    write = WRITERS[media_type]
    body = write.body([write.item(each) for each in facts])
    for place, new in changes:
        at = place % len(body)
        body = body[:at] + new + body[at + 1 :]
    check_any(media_type, body)
    check_any(media_type, body[: cut % (len(body) + 1)])


def check_any(media_type: str, body: bytes) -> None:
    """Decode a body: it has a valid result, or is refused as a fault of its client."""
    try:
        result = decoded(media_type, body)
    except Refused as refused:
        code = refused.code
    else:
        check_result(media_type, body, result)
        return
    assert 400 <= PROBLEMS[code].status < 500


def check_result(media_type: str, body: bytes, result: Decoded) -> None:
    """Hold what must hold of every result, whatever the bytes were."""
    assert result.block or result.errors
    for error in result.errors:
        # A line may have some fields left out.
        parts = re.split(b"[, ]", error.original) if media_type == LINE else [error.original]
        assert all(part in body for part in parts)
        assert error.code in ITEM_CODES
    for reading in readings_of(result):
        assert name_fault(reading.device_id) is None
        assert name_fault(reading.metric) is None
        assert RULES.ts_min_us <= reading.ts_us <= NOW_US + RULES.ts_ahead_us_max


@pytest.mark.parametrize("field", ["v", "s"])
def test_base_of_0_makes_the_sum_a_float64_as_any_other_base_does(field: str) -> None:
    """A sender may write its base as 0.0: its integers must not be refused for that."""
    body = b'[{"n":"a/b","b%b":%b,"%b":9007199254740993}]'
    for base in (b"0.0", b"-0.0", b"1.0"):
        result = decoded("application/senml+json", body % (field.encode(), base, field.encode()))
        assert result.errors == []
        assert readings_of(result)[0].value == pytest.approx(2.0**53, abs=4)
    (error,) = decoded(
        "application/senml+json", body % (field.encode(), b"0", field.encode())
    ).errors
    assert error.code == "value_not_exact"
