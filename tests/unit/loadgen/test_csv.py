"""A CSV becomes readings exactly; bad lines are named."""

from __future__ import annotations

import json
import math
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.csv.file import LINE_BYTES_MAX, Batch, CsvError, CsvFile, zone_named


def _file(path: Path, content: bytes, zone: str = "UTC") -> CsvFile:
    path.write_bytes(content)
    return CsvFile(path, "d", "m", zone_named(zone))


def _all(file: CsvFile, rows_max: int = 1000) -> list[Batch]:
    return list(file.batches(rows_max))


def _literals(tmp_path: Path, value: str) -> list[str]:
    (batch,) = _all(_file(tmp_path / "f", f"timestamp,value\n2024-01-01 00:00:00,{value}".encode()))
    return [str(item["value"]) for item in json.loads(batch.body, parse_float=str, parse_int=str)]


@pytest.mark.parametrize("value", ["74.93588199999998", "0.10", "1E5", "-0.0", "1e-400", "12"])
def test_value_that_is_a_json_number_is_sent_digit_for_digit(tmp_path: Path, value: str) -> None:
    """A JSON number goes into the body unchanged, not over a float."""
    assert _literals(tmp_path, value) == [value]


@pytest.mark.parametrize(
    ("value", "sent"), [(".5", "0.5"), ("+3", "3.0"), ("007", "7.0"), ("1.", "1.0"), (" 4 ", "4")]
)
def test_value_in_another_spelling_is_sent_as_the_same_number(
    tmp_path: Path, value: str, sent: str
) -> None:
    """Another spelling of a number becomes the same number in JSON."""
    assert _literals(tmp_path, value) == [sent]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_survives_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, x: float) -> None:
    """Python's text of a float keeps its 64 bits."""
    path = tmp_path_factory.getbasetemp() / "float.csv"
    (batch,) = _all(_file(path, f"timestamp,value\n2024-01-01 00:00:00,{x!r}".encode()))
    assert struct.pack(">d", json.loads(batch.body)[0]["value"]) == struct.pack(">d", x)


@pytest.mark.parametrize(
    ("text", "zone", "sent"),
    [
        ("2013-12-02 21:15:00", "UTC", "2013-12-02T21:15:00Z"),
        ("2013-12-02T21:15", "UTC", "2013-12-02T21:15:00Z"),
        ("2024-07-01 12:00:00.123456789", "+02:00", "2024-07-01T12:00:00.123456789+02:00"),
        ("2024-01-01 12:00:00", "-03:30", "2024-01-01T12:00:00-03:30"),
        ("2024-01-01 12:00:00Z", "+02:00", "2024-01-01T12:00:00Z"),
        ("2024-01-01 12:00:00 +05:45", "UTC", "2024-01-01T12:00:00+05:45"),
        ("1700000000.25", "UTC", 1700000000.25),
    ],
)
def test_timestamp_gets_the_offset_of_the_zone_only_without_one(
    tmp_path: Path, text: str, zone: str, sent: str | float
) -> None:
    """A time without an offset gets that of the zone; other times stay unchanged."""
    (batch,) = _all(_file(tmp_path / "f", f"timestamp,value\n{text},1".encode(), zone))
    assert json.loads(batch.body)[0]["ts"] == sent


def test_timestamp_in_a_named_zone_gets_the_offset_of_its_season(tmp_path: Path) -> None:
    """The offset is that of the zone's season; without zone data there is an error."""
    if "Europe/Vienna" not in available_timezones():
        with pytest.raises(ValueError, match="there is no time zone"):
            zone_named("Europe/Vienna")
        return
    content = b"timestamp,value\n2024-07-01 12:00:00,1\n2024-01-01 12:00:00,1\n"
    (batch,) = _all(_file(tmp_path / "f", content, "Europe/Vienna"))
    offsets = [item["ts"][19:] for item in json.loads(batch.body)]
    assert offsets == ["+02:00", "+01:00"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"2024-13-01 00:00:00,1", "is not a timestamp: month must be in 1..12"),
        (b"yesterday,1", "'yesterday' is not a timestamp"),
        (b"2024-01-01 00:00:00,", "'' is not a number"),
        (b"2024-01-01 00:00:00,NaN", "'NaN' is not a number"),
        (b"2024-01-01 00:00:00,-inf", "'-inf' is not a number"),
        (b"2024-01-01 00:00:00,1_000", "'1_000' is not a number"),
        (b"2024-01-01 00:00:00,0x10", "'0x10' is not a number"),
        ("2024-01-01 00:00:00,٣".encode(), "is not a number"),
        (b"2024-01-01 00:00:00", "has too few columns"),
        (b'2024-01-01 00:00:00,"1', "is not CSV"),
        (b"2024-01-01 00:00:00,\xff", "is not UTF-8"),
    ],
)
def test_line_that_is_no_reading_is_named_and_the_rest_goes_on(
    tmp_path: Path, line: bytes, why: str
) -> None:
    """A bad line is named by its number, and all others are read."""
    content = b"timestamp,value\n2024-01-01 00:00:00,1\n" + line + b"\n2024-01-01 00:00:02,2\n"
    file = _file(tmp_path / "f", content)
    (batch,) = _all(file)
    assert batch.lines == [2, 4]
    assert (file.rows, file.bad_rows) == (2, 1)
    ((number, said),) = file.bad
    assert number == 3
    assert why in said


def test_batches_cover_the_file_in_order_with_their_lines(tmp_path: Path) -> None:
    """Every row is in one batch; the line of each item is known, for the service's errors."""
    rows = b"".join(b"2024-01-01 00:00:%02d,%d\r\n" % (n, n) for n in range(25))
    content = b"timestamp,value\r\n\r\n" + rows
    file = _file(tmp_path / "f", content)
    batches = _all(file, 10)
    assert [len(json.loads(each.body)) for each in batches] == [10, 10, 5]
    assert [line for each in batches for line in each.lines] == list(range(3, 28))
    assert batches[-1].end_bytes == len(content)


def test_columns_are_found_by_name_behind_a_byte_order_mark(tmp_path: Path) -> None:
    """Order of columns, other columns and a byte order mark do not matter."""
    content = b"\xef\xbb\xbfValue,Note, TIMESTAMP\n5,x,2024-01-01 00:00:00\n"
    (batch,) = _all(_file(tmp_path / "f", content))
    (item,) = json.loads(batch.body)
    assert item == {"device_id": "d", "metric": "m", "ts": "2024-01-01T00:00:00Z", "value": 5}


def test_names_are_escaped_in_the_body(tmp_path: Path) -> None:
    """Any device name gives a valid body."""
    (tmp_path / "f").write_bytes(b"timestamp,value\n1700000000,1\n")
    file = CsvFile(tmp_path / "f", 'a"b\\ü', "m\n", UTC)
    (item,) = json.loads(_all(file)[0].body)
    assert (item["device_id"], item["metric"]) == ('a"b\\ü', "m\n")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has no header"),
        (b"\n\n", "has no header"),
        (b"time;value\n1;2\n", "the header must name the columns"),
        (b"2024-01-01 00:00:00,1\n", "the header must name the columns"),
        (b"timestamp,value\n1700000000,1\n" + b"9" * (LINE_BYTES_MAX + 1), "a line of more than"),
    ],
)
def test_file_that_is_no_csv_of_readings_is_refused(
    tmp_path: Path, content: bytes, why: str
) -> None:
    """Wrong files raise an error with a sentence, in bounded memory."""
    with pytest.raises(CsvError, match=why):
        _all(_file(tmp_path / "f", content), 1)


def test_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    """A missing file raises an error with a sentence."""
    with pytest.raises(CsvError, match=r"cannot read .*: No such file"):
        _all(CsvFile(tmp_path / "nothing.csv", "d", "m", UTC))


def test_bad_lines_beyond_the_shown_ones_are_counted(tmp_path: Path) -> None:
    """Only the first bad lines are kept; all are counted."""
    file = _file(tmp_path / "f", b"timestamp,value\n" + b"x,y\n" * 5000)
    assert _all(file) == []
    assert (len(file.bad), file.bad_rows) == (10, 5000)


def test_zone_unknown_is_a_sentence_that_helps() -> None:
    """The error of a wrong zone names valid ones."""
    assert zone_named("-03:30").utcoffset(datetime(2024, 1, 1)) == -timedelta(hours=3.5)
    for name in ("Mars/Olympus", "", "../../etc/passwd", "+25"):
        with pytest.raises(ValueError, match=r"use UTC, \+02:00 or a name"):
            zone_named(name)


def test_infinite_literal_is_left_to_the_service(tmp_path: Path) -> None:
    """A JSON number too large for a float is sent unchanged; the service refuses it."""
    assert _literals(tmp_path, "1e999") == ["1e999"]
    assert math.isinf(float("1e999"))
