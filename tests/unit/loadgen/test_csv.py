"""A CSV becomes readings exactly; bad lines are named."""

from __future__ import annotations

import json
from pathlib import Path
from zoneinfo import available_timezones

import pytest

from loadgen.csv.file import Batch, CsvError, CsvFile, columns_of, zone_named


def _file(path: Path, content: bytes, zone: str = "UTC") -> CsvFile:
    path.write_bytes(content)
    return CsvFile(path, "d", "m", zone_named(zone), {"value": "value"})


def _all(file: CsvFile, rows_max: int = 1000) -> list[Batch]:
    return list(file.batches(rows_max))


def _literals(tmp_path: Path, value: str) -> list[str]:
    (batch,) = _all(_file(tmp_path / "f", f"timestamp,value\n2024-01-01 00:00:00,{value}".encode()))
    return [str(item["value"]) for item in json.loads(batch.body, parse_float=str, parse_int=str)]


@pytest.mark.parametrize("value", ["74.93588199999998", "0.10", "1E5", "-0.0", "1e-400", "12"])
def test_value_that_is_a_json_number_is_sent_digit_for_digit(tmp_path: Path, value: str) -> None:
    """A JSON number goes into the body unchanged, not over a float."""
    assert _literals(tmp_path, value) == [value]


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
        (b"2024-01-01 00:00:00,21,5", "has more columns than the header: a decimal comma?"),
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


def _columned(path: Path, content: str, columns: str, *names: str | None) -> CsvFile:
    path.write_text(content)
    device, metric = names or (None, None)
    return CsvFile(path, device, metric, zone_named("UTC"), columns_of(columns))


def test_wide_file_names_a_bad_number_and_what_it_does_not_read(tmp_path: Path) -> None:
    """A line with a bad value is left out as a whole; a batch never has more than was asked."""
    content = "id,a,text,b,,b\nx,1,t,,1,2\nx,,t,3,1,2\nx,1,t,warm,1,2\nx,5\nx,6,t,7,1,2\n"
    file = _columned(
        tmp_path / "f", content.replace("id", "timestamp,id").replace("\nx", "\n1,x"), "device=id"
    )
    batches = _all(file, 1)
    assert file.not_read == ["text", "b", "", "b"]
    assert [line for each in batches for line in each.lines] == [2, 4, 5, 6]
    assert file.bad == []

    file = _columned(
        tmp_path / "f", "timestamp,a,b\n1,1,2\n2,3,x\n3,,\n4,5\n5,6,7\n", "b=b,a=a", "d", None
    )
    assert [each.lines for each in _all(file, 3)] == [[2, 2], [6, 6]]
    assert file.bad == [(3, "'x' is not a number"), (5, "has too few columns")]


@pytest.mark.parametrize(
    ("columns", "names", "why"),
    [
        ("time=ts", (), "whose readings are these"),
        ("time=ts,device=id", ("d", None), "whose readings are these"),
        ("time=ts,device=id,value=v", (), "needs --metric NAME"),
        ("time=ts,device=id", (None, "m"), "needs --metric NAME"),
        ("time=ts,device=id,metric=id,value=v,a=v", (), "needs --metric NAME"),
        ("device=id,value=v", (None, "m"), "one column 'timestamp'.*--columns time=COLUMN"),
        ("time=ts,device=nobody", (), "one column 'nobody'; its header is 'TS, id, v, w, w'"),
        ("time=ts,device=w", (), "one column 'w'"),
    ],
)
def test_columns_that_do_not_fit_are_told(
    tmp_path: Path, columns: str, names: tuple[str | None, ...], why: str
) -> None:
    """Before anything is posted, also if the file has nothing but its header."""
    file = _columned(tmp_path / "f", "TS;id;v;w;w\n", columns, *names)
    with pytest.raises(CsvError, match=why):
        _all(file)


@pytest.mark.parametrize("text", ["", "time", "time=", "=x", "time=a,,device=b"])
def test_columns_that_are_no_pairs_are_refused(text: str) -> None:
    """Each part has a word and a column."""
    with pytest.raises(ValueError, match="WORD=COLUMN"):
        columns_of(text)
