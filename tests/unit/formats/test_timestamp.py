"""RFC 3339 texts and Unix numbers become exact microseconds, or a named fault."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.formats.timestamp import (
    ALIKE_MIN,
    MINUTES_CACHED_MAX,
    NUMBER_MAX,
    Fault,
    Times,
    _minutes,
    integers_us,
    number_us,
    numbers_us,
    text_us,
    texts_us,
)
from ingest.model.block import PG_EPOCH_US

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@st.composite
def moments(draw: st.DrawFn, digits_max: int = 12) -> tuple[str, int]:
    """Draw an RFC 3339 text and what it means, found by other means than ours."""
    moment = draw(st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31))).replace(microsecond=0)
    digits = draw(st.text("0123456789", max_size=digits_max))
    offset_min = draw(st.sampled_from([0, 0, 0, 120, -330, 1439, -1439]))
    zone = draw(st.sampled_from(["Z", "z", "+00:00", "-00:00"])) if not offset_min else ""
    if not zone:
        hours, minutes = divmod(abs(offset_min), 60)
        zone = f"{'-' if offset_min < 0 else '+'}{hours:02}:{minutes:02}"
    between = draw(st.sampled_from(["T", "T", "t", " "]))
    text = f"{moment:%H:%M:%S}{'.' if digits else ''}{digits}{zone}"
    text = f"{moment.year:04}-{moment:%m-%d}{between}{text}"
    whole = moment.replace(tzinfo=timezone(timedelta(minutes=offset_min))) - EPOCH
    us = (Decimal("0." + (digits or "0")) * 1_000_000).to_integral_value(ROUND_HALF_EVEN)
    return text, (whole.days * 86_400 + whole.seconds) * 1_000_000 + int(us)


def together_of(times_us: Sequence[int | Fault]) -> Times:
    """Return what reading these sound times together must give."""
    sound = cast("Sequence[int]", times_us)
    return Times([each - PG_EPOCH_US for each in sound], min(sound), max(sound))


@given(moments())
def test_text_of_any_valid_form_is_exact_to_the_microsecond(moment: tuple[str, int]) -> None:
    """Every separator, offset and number of digits gives what decimal arithmetic gives."""
    text, expected = moment
    assert text_us(text) == expected


@given(st.lists(moments(7), min_size=1, max_size=3 * ALIKE_MIN))
def test_texts_read_together_are_what_each_is_alone(some: list[tuple[str, int]]) -> None:
    """Reading many times at once changes none of them, however their forms are mixed."""
    alone = [us for _, us in some]
    assert texts_us([text for text, _ in some]) == together_of(alone)


@given(
    st.lists(st.datetimes(datetime(1999, 1, 1), datetime(2030, 1, 1)), min_size=ALIKE_MIN),
    st.integers(0, 6),
    st.sampled_from(["Z", "+05:45", "-00:00"]),
    st.data(),
)
def test_texts_of_one_form_with_one_character_changed_are_judged_as_alone(
    times: list[datetime], digits: int, offset: str, data: st.DataObject
) -> None:
    """The way that reads columns takes exactly what the way that reads one text takes."""
    size = 19 + (digits and digits + 1)
    texts = [f"{each.isoformat(timespec='microseconds')[:size]}{offset}" for each in times]
    assert (together := texts_us(texts))
    assert together == together_of([text_us(text) for text in texts])
    place = data.draw(st.integers(0, len(texts) - 1))
    at = data.draw(st.integers(0, len(texts[0]) - 1))
    insert = data.draw(st.sampled_from(["", ",", "6", "0", " ", "_", "-", ".", "e", "Z", ":", "٣"]))
    texts[place] = texts[place][:at] + insert + texts[place][at + data.draw(st.integers(0, 1)) :]
    alone = [text_us(text) for text in texts]
    sound = all(isinstance(each, int) for each in alone)
    again = texts_us(texts)
    assert again == (together_of(alone) if sound else None)


@pytest.mark.parametrize(
    ("text", "expected_us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.9999995Z", 0),
        ("2026-06-30T23:59:60Z", 1_782_864_000_000_000),
        ("2026-06-30T23:59:60.5Z", 1_782_864_000_500_000),
        ("1970-01-01T00:00:00.0000005Z", 0),
        ("1970-01-01T00:00:00.0000015Z", 2),
        ("1970-01-01T00:00:00.00000050000000000001Z", 1),
        ("1970-01-01T00:00:00.0000004999999Z", 0),
        ("1970-01-01T00:00:00.9999995Z", 1_000_000),
        ("1970-01-01T00:00:00." + "9" * 43 + "Z", 1_000_000),
        ("2024-02-29T12:00:00-00:00", 1_709_208_000_000_000),
    ],
)
def test_text_at_the_edges_rounds_half_to_even_and_carries(text: str, expected_us: int) -> None:
    """Leap seconds, leap days, ties and very long fractions are exact."""
    assert text_us(text) == expected_us


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1700000000",
        " 1700000000.5 ",
        "2026-01-01",
        "2026-01-01Z",
        "2026-01-01T00:00Z",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00,5Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T23:60:00Z",
        "2026-01-01T23:59:61Z",
        "2026-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-10T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-W01-1T00:00:00Z",
        "20260101T000000Z",
        "2026-001T00:00:00Z",
        "2026-1-1T00:00:00Z",
        "+2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00+02",
        "2026-01-01T00:00:00+0200",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00+02:60",
        "2026-01-01T00:00:00Z ",
        "2026-01-01T00:00:00Z\n",
        "2026-01-01T00:00:00ZZ",
        "2026-01-01T00:00:1_Z",
        "2026-01-01T00:00:5.123456Z",
        "٢٠٢٦-01-01T00:00:00Z",
        "2026-01-01T00:00:٠٠Z",
        "2026-01-01T00:00:00.٠٠Z",
        "9" * 1_000_000,
        "1970-01-01T00:00:00." + "9" * 44 + "Z",
    ],
)
def test_text_that_is_not_rfc3339_is_unreadable(text: str) -> None:
    """Nothing but RFC 3339 is a time, read alone or with others; the message stays short."""
    fault = text_us(text)
    assert isinstance(fault, tuple)
    assert fault[0] == "ts_unreadable"
    assert len(fault[1]) <= 150
    assert texts_us([text]) is None
    assert texts_us([text] * ALIKE_MIN) is None


def test_text_without_offset_is_named_as_such() -> None:
    """A local time is not guessed at."""
    fault = text_us("2026-01-01 00:00:00.5")
    assert isinstance(fault, tuple)
    assert fault[0] == "ts_without_offset"


@given(
    st.one_of(st.integers(-(10**21), 10**21), st.floats(-NUMBER_MAX, NUMBER_MAX)),
    st.sampled_from(["s", "ms", "us", "ns"]),
)
def test_number_in_a_unit_is_exact_to_the_microsecond(number: int | float, unit: str) -> None:
    """Integers and floats round half to even from their exact value."""
    factor: int | Fraction = {"s": 10**6, "ms": 10**3, "us": 1}.get(unit) or Fraction(1, 1000)
    assert number_us(number, unit) == round(Fraction(number) * factor)


@pytest.mark.parametrize(
    ("number", "expected_us"),
    [
        (0, 0),
        (4_999_999_999, 4_999_999_999_000_000),
        (5_000_000_000, 5_000_000_000_000),
        (4_999_999_999_999, 4_999_999_999_999_000),
        (5_000_000_000_000, 5_000_000_000_000),
        (4_999_999_999_999_999, 4_999_999_999_999_999),
        (5_000_000_000_000_000, 5_000_000_000_000),
        (1_700_000_000_123_456_500, 1_700_000_000_123_456),
        (1_700_000_000_123_457_500, 1_700_000_000_123_458),
        (-1, -1_000_000),
        (-5_000_000_000, -5_000_000_000_000),
        (1700000000.123456, 1_700_000_000_123_456),
        (1700000000123.5, 1_700_000_000_123_500),
        (0.0000005, 0),
        (-0.0, 0),
    ],
)
def test_number_without_unit_goes_by_magnitude(number: int | float, expected_us: int) -> None:
    """Below 5e9 seconds, below 5e12 ms, below 5e15 us, else ns; negative ones alike."""
    assert number_us(number, None) == expected_us


@given(
    st.lists(
        st.one_of(st.integers(-(10**20), 10**20), st.integers(0, 10**16), st.floats(-1e18, 1e18)),
        min_size=1,
    )
    | st.lists(st.integers(10**15, 2 * 10**15), min_size=1)
    | st.lists(st.integers(-10, 10**10), min_size=1),
    st.sampled_from([None, "s", "ms", "us", "ns"]),
)
def test_numbers_read_together_are_what_each_is_alone(
    numbers: list[int | float], unit: str | None
) -> None:
    """Reading many numbers at once changes none of them, however they are mixed."""
    alone = [number_us(number, unit) for number in numbers]
    expected = together_of(alone)
    assert numbers_us(numbers, unit) == expected
    if all(isinstance(number, int) for number in numbers):
        assert integers_us(cast("list[int]", numbers), unit) == expected


@pytest.mark.parametrize("size", [1.1e21, 1e308, float("inf"), 10**22, 10**399])
def test_number_beyond_all_times_is_a_fault_of_its_side(size: float) -> None:
    """It is refused before it is calculated with: integers of 1,024 bits are slow."""
    assert number_us(size, None) == ("ts_in_future", "is beyond all times")
    assert number_us(-size, "s") == ("ts_too_old", "is beyond all times")
    assert numbers_us([1.0, float("inf")], None) is None


def test_minutes_remembered_stay_few() -> None:
    """A client that walks through time does not grow our memory."""
    for day in range(1, 29):
        for hour in range(24):
            texts_us([f"2001-02-{day:02}T{hour:02}:{m:02}:00Z" for m in range(60)])
    assert 0 < len(_minutes) <= MINUTES_CACHED_MAX
