"""The line of a dead letter: it loses nothing, alterations are found, and ids are stable."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.dead_letters.format import (
    ID_AT,
    REASON_AT,
    BadLine,
    Line,
    decode_line,
    encode_line,
    line_of,
    parse,
    seal,
    unseal,
)
from ingest.dead_letters.identity import letter_id
from ingest.model.reading import JSON, LINE, REASONS, Letter, Reading
from tests.support.letters import START_US, invalid

TIMES = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)  # years 1 to 9999
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
READINGS = st.builds(
    Reading,
    st.one_of(TIMES, st.integers(-(2**62), 2**62)),
    TEXTS,
    TEXTS,
    st.floats(allow_nan=False, allow_infinity=False),
)
LETTERS = st.builds(
    Letter,
    st.sampled_from(REASONS),
    TEXTS,
    TEXTS,
    TIMES,
    reading=st.none() | READINGS,
    original=st.none() | st.binary(max_size=200) | TEXTS.map(str.encode),
    precision=st.none() | st.sampled_from(["s", "ms", "us", "ns"]),
    field=st.none() | TEXTS,
    item=st.none() | st.integers(0, 100_000),
    attempts=st.integers(0, 100),
    format=st.just("json"),
    source=st.just("/v1/readings"),
    ignore_unknown=st.just(False),
    device=st.just(""),
    prefix=st.just(""),
    context=st.just(""),
    sender=st.just(""),
    devices=st.just(()),
)


# What a post said of its items; letters of readings do not have it.
SAID = st.builds(
    Letter,
    st.just("invalid"),
    TEXTS,
    TEXTS,
    TIMES,
    reading=st.none(),
    original=st.binary(max_size=50),
    precision=st.none(),
    field=st.none() | TEXTS,
    item=st.integers(0, 5_000),
    attempts=st.just(0),
    format=TEXTS,
    source=TEXTS,
    ignore_unknown=st.booleans(),
    device=TEXTS,
    prefix=TEXTS,
    context=TEXTS,
    sender=TEXTS,
    devices=st.lists(TEXTS, max_size=2).map(tuple),
)


def line_for(letter: Letter, failed_us: int = START_US) -> bytes:
    """Encode a letter with its own id."""
    return encode_line(letter, id_=letter_id(letter), failed_us=failed_us)


def bits(letter: Letter) -> object:
    """Return a letter with its value as text, in which 0.0 and -0.0 differ."""
    if letter.reading is None:
        return letter
    return letter._replace(reading=None), letter.reading[:3], letter.reading.value.hex()


@given(LETTERS | SAID, TIMES)
def test_line_any_letter_comes_back_bit_exact(letter: Letter, failed_us: int) -> None:
    """Every field, every bit of the value and every byte is read as it was written."""
    line = line_for(letter, failed_us)
    id_, when_us, back = decode_line(line)
    assert (id_, when_us, bits(back)) == (letter_id(letter), failed_us, bits(letter))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


@given(LETTERS, st.data())
def test_line_any_flipped_bit_is_refused(letter: Letter, data: st.DataObject) -> None:
    """No altered line is ever taken for a letter."""
    line = bytearray(line_for(letter))
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BadLine):
        decode_line(bytes(line))


@given(LETTERS)
def test_line_any_cut_is_refused(letter: Letter) -> None:
    """A line that was cut at any place is no letter."""
    line = line_for(letter)
    for end in range(len(line)):
        with pytest.raises(BadLine):
            decode_line(line[:end])


@given(st.binary(max_size=60))
def test_line_sealed_rubbish_is_refused_not_fatal(body: bytes) -> None:
    """Other content with a correct checksum raises BadLine and nothing else."""
    with pytest.raises(BadLine):
        decode_line(seal(body))
    assert unseal(seal(body[:1] + b"x}")) == body[:1] + b"x}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v", 2),
        ("id", "short"),
        ("reason", 7),
        ("received_at", "2025-01-01T00:00:00"),
        ("failed_at", "yesterday"),
        ("item", "3"),
        ("attempts", 1.5),
        ("original", 5),
        ("reading", 5),
        ("reading", {"ts": 1, "device_id": "d", "metric": "m", "value": None}),
        ("reading", {"ts": 1, "device_id": "d", "metric": "m"}),
    ],
)
def test_line_with_a_wrong_field_is_refused(name: str, value: object) -> None:
    """A line with a wrong field is refused even if its checksum is correct."""
    fields = json.loads(line_for(invalid(b"{}")))
    del fields["sum"]
    assert decode_line(seal(json.dumps(fields).encode()))
    fields[name] = value
    with pytest.raises(BadLine):
        decode_line(seal(json.dumps(fields).encode()))
    del fields[name]
    if name != "original":
        with pytest.raises(BadLine):
            decode_line(seal(json.dumps(fields).encode()))


def test_line_is_readable_by_a_person() -> None:
    """The reading, its times and the original are text in the line."""
    reading = Reading(1_760_000_000_123_456, "pump", "temp", 21.5)
    fields = json.loads(line_for(Letter("drained", "", "m", START_US, reading=reading)))
    assert fields["reading"] == {
        "ts": "2025-10-09T08:53:20.123456Z",
        "device_id": "pump",
        "metric": "temp",
        "value": 21.5,
    }
    assert json.loads(line_for(invalid('{"ä":"\\u0000"}'.encode())))["original"] == (
        '{"ä":"\\u0000"}'
    )
    assert json.loads(line_for(invalid(b"\xff\x00")))["original_base64"] == "/wA="


def test_line_id_and_reason_stand_at_fixed_places() -> None:
    """Id and reason are at fixed offsets, so that readers can skip lines without parsing them."""
    letter = invalid(b'{"ts":1}')
    line = line_for(letter)
    assert line[ID_AT : ID_AT + 32] == letter_id(letter).encode()
    assert line.startswith(b'invalid"', REASON_AT)


def test_line_with_half_a_surrogate_pair_is_written_all_the_same() -> None:
    """A message with half of a surrogate pair is written too."""
    letter = Letter("invalid", "c", "m\ud800", START_US, original=b"1", field="values.\udfff")
    assert decode_line(line_for(letter)).letter.message == "m?"
    letter_id(Letter("drained", "", "", 0, reading=Reading(0, "\ud800", "m", 1.0)))


@given(READINGS, READINGS)
def test_id_of_readings_equal_only_for_equal_facts(one: Reading, other: Reading) -> None:
    """The id depends on every part of the reading, and not on how and when it failed."""
    first = letter_id(Letter("drained", "", "", 1, reading=one))
    assert first == letter_id(Letter("retries_exhausted", "40001", "x", 2, reading=one, attempts=8))
    same = one[:3] == other[:3] and one.value.hex() == other.value.hex()
    assert (first == letter_id(Letter("drained", "", "", 1, reading=other))) is same


def test_id_of_names_depends_on_where_they_end() -> None:
    """The names `ab`, `c` give another id than `a`, `bc`."""
    ids = {
        letter_id(Letter("drained", "", "", 1, reading=Reading(1, device, metric, math.pi)))
        for device, metric in (("ab", "c"), ("a", "bc"), ("abc", ""))
    }
    assert len(ids) == 3


def test_id_of_an_item_with_ts_is_its_bytes_and_terms() -> None:
    """Equal bytes with equal precision and field are one letter, whenever they came."""
    letter = invalid(b'{"ts":1700000000,"value":"x"}')
    later_us = letter.received_us + 5
    assert letter_id(letter) == letter_id(
        letter._replace(received_us=later_us, item=9, message="y")
    )
    assert letter_id(letter) != letter_id(letter._replace(precision="ms"))
    assert letter_id(letter) != letter_id(letter._replace(field="values.a"))
    assert letter_id(letter) != letter_id(letter._replace(original=b'{"ts":2,"value":"x"}'))


WITHOUT_TIME = (
    b'{"value":"x"}',
    b' {"value":"x"',
    b'{"a":"\\ud800"}',
    b'{"ts":null,"value":5}',
    b'{"ts":false,"value":5}',
    b'{"ts":"","value":5}',
    b'{"ts":"now","value":5}',
    b'{"ts":0,"value":5}',
    b'{"ts":12,"value":5}',
    b'{"ts":1e300,"value":5}',
    b'{"ts":"1970-01-01T00:00:12Z","value":5}',
    b'{"ts":"2999-01-01T00:00:00Z","value":5}',
    b"7",
    b"[1]",
    b"",
)


@pytest.mark.parametrize("original", WITHOUT_TIME)
def test_id_of_an_item_without_a_usable_time_is_new_each_time(original: bytes) -> None:
    """A device without a clock sends the same bytes each minute, and each is a reading.

    The same bytes twice in one post are two readings as well.
    """
    letter = invalid(original)
    assert letter_id(letter) == letter_id(letter)
    assert letter_id(letter) != letter_id(letter._replace(received_us=letter.received_us + 1))
    assert letter_id(letter) != letter_id(letter._replace(item=1))


def test_id_of_a_line_has_its_terms_and_its_time() -> None:
    """A client that sends a post again does not make a second letter of the same line."""
    second = START_US // 1_000_000
    timed = invalid(b"m,host=h value=nan %d" % second)._replace(format=LINE)
    later = timed._replace(received_us=timed.received_us + 5, item=9)
    assert letter_id(timed) == letter_id(later)
    others = [
        timed._replace(format=JSON),
        timed._replace(device="d"),
        timed._replace(prefix="d"),
        timed._replace(precision="ms"),
    ]
    assert len({letter_id(each) for each in [timed, *others]}) == 5
    untimed = timed._replace(original=b"m,host=h value=nan")
    assert letter_id(untimed) != letter_id(untimed._replace(item=9))


def test_line_of_an_earlier_version_is_json_of_our_own_path() -> None:
    """Its lines have no format, no source and no `ignore_unknown`."""
    letter = invalid(b"7")
    fields = parse(line_for(letter), check_sum=True)
    for name in ("format", "source", "ignore_unknown"):
        del fields[name]
    assert line_of(fields).letter == letter


def test_line_is_a_named_tuple_of_its_parts() -> None:
    """Decoded lines with equal content are equal."""
    letter = invalid(b"7")
    assert decode_line(line_for(letter)) == Line(letter_id(letter), START_US, letter)
