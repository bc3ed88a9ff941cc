"""Names, bounds and faults of the table, without a server."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.config.loading import load
from ingest.model.errors import ConfigError
from ingest.sinks.postgres.housekeeping.partitions import (
    BEGINNING_US,
    DAY,
    DAY_US,
    END_US,
    MONTH,
    TimeSpan,
    cut_at,
    gaps,
    gaps_of,
    partition_name,
    span_bounds,
)
from ingest.sinks.postgres.housekeeping.partitions import (
    literal as moment,
)
from ingest.sinks.postgres.schema import (
    NAME_BYTES_MAX,
    READINGS,
    TargetTable,
    literal,
    quoted,
    shortened,
)
from ingest.sinks.postgres.sqlstate import copy_row, verdict_for
from loadgen.proof.table_names import column_names, table_name

ODD = TargetTable('plant "1"', "my table", "time", "Gerät", "it's", "va\\lue")


def test_names_are_quoted_unless_they_are_our_own() -> None:
    """Our own names stand as they always did; words of SQL, capitals and quotes are in quotes."""
    assert (READINGS.name, READINGS.source) == ("readings", "readings")
    assert READINGS.column_list == "ts, device_id, metric, value"
    assert READINGS.device_index == "readings_device_idx"
    assert ODD.name == '"plant ""1"""."my table"'
    assert ODD.column_list == '"time", "Gerät", "it\'s", "va\\lue"'
    assert ODD.source.startswith('(select "time" as ts, "Gerät" as device_id, ')
    assert [quoted(each) for each in ("order", "Readings", "a.b")] == [
        '"order"',
        '"Readings"',
        '"a.b"',
    ]
    assert (literal("it's"), literal("a\\'")) == ("'it''s'", "E'a\\\\'''")


def test_name_of_an_index_is_cut_at_a_character() -> None:
    """PostgreSQL would cut it too, but at the wrong end: two indexes would have one name."""
    assert shortened("é" * 31, "_device_idx") == "é" * 26 + "_device_idx"
    assert len(shortened("x" * 63, "_device_idx").encode()) == 63


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("table_name", "é" * 32, "has 64 bytes; PostgreSQL allows 63"),
        ("table_name", "", "is empty"),
        ("table_schema", "a\nb", "cannot be printed"),
        ("column_ts", "\udc80", "cannot be printed"),
        ("column_ts", "value", r"column_ts .* must differ from column_value"),
    ],
)
def test_name_that_cannot_be_is_refused(name: str, value: str, why: str) -> None:
    """PostgreSQL would cut a name that is too long, without an error."""
    with pytest.raises(ConfigError, match=why):
        load(environ={}, flags={name: value})


@pytest.mark.parametrize(
    ("context", "table", "row"),
    [
        ("COPY m1, line 5", "m1", 4),
        ('COPY m1, line 5, column time: "m1 9"', "m1", 4),
        ("COPY C, Zeile 5", "C", 4),
        ("COPY 7, line 5", "7", 4),
        ("COPY a.*(, line 5", "a.*(", 4),
        ("COPY readings, line 5", "m1", None),
        ("COPY ingest_staging, line 5", "m1", 4),
    ],
)
def test_row_of_an_error_is_found_by_the_name_of_the_table(
    context: str, table: str, row: int | None
) -> None:
    """The name may have digits, or be a part of another word of the message."""
    assert copy_row(context, table) == row


def test_null_in_one_of_our_columns_is_the_fault_of_the_row() -> None:
    """A null in another column is a migration, whatever our columns are called."""
    assert verdict_for("23502", ODD, column="time") != verdict_for("23502", ODD, column="ts")


def test_loadgen_takes_names_as_sql_has_them() -> None:
    """They are put into its questions as they are, so they must be names and nothing else."""
    assert column_names('time, "a,""b" ,c,d') == ("time", '"a,""b"', "c", "d")
    assert table_name('"My plant".readings') == '"My plant".readings'
    for wrong in ("readings; drop table x", "a.b.c", "(select 1)", '"', ""):
        with pytest.raises(ValueError, match="name"):
            table_name(wrong)
    for wrong in ("a,b,c", "a,b,c,d,e", "a,b,c,d from x"):
        with pytest.raises(ValueError, match="four names"):
            column_names(wrong)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def us(text: str) -> int:
    """Return a time, RFC 3339 without its offset, in Unix microseconds."""
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("moment", "first", "after"),
    [
        ("2026-11-27T13:00:00", "2026-11-01", "2026-12-01"),
        ("2026-12-31T23:59:59.999999", "2026-12-01", "2027-01-01"),
        ("2027-01-01T00:00:00", "2027-01-01", "2027-02-01"),
        ("2024-02-29T12:00:00", "2024-02-01", "2024-03-01"),
        ("2100-02-28T23:59:59.999999", "2100-02-01", "2100-03-01"),
        ("2000-02-29T00:00:00", "2000-02-01", "2000-03-01"),
        ("1969-12-31T23:59:59.999999", "1969-12-01", "1970-01-01"),
        ("1583-02-28T00:00:00", "1583-02-01", "1583-03-01"),
        ("0001-01-31T00:00:00", "0001-01-01", "0001-02-01"),
    ],
)
def test_month_has_the_days_of_the_calendar(moment: str, first: str, after: str) -> None:
    """Also at the end of a year, in leap years, and before 1970."""
    assert span_bounds(MONTH, us(moment)) == (us(first), us(after))
    day = us(moment[:10])
    assert span_bounds(DAY, us(moment)) == (day, day + DAY_US)


@given(st.dates(date(1, 1, 1), date(9999, 11, 30)), st.integers(0, DAY_US - 1))
def test_names_and_literals_are_those_of_the_calendar(day: date, rest_us: int) -> None:
    """Python's calendar agrees, which uses no code of ours."""
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    ts_us = (begin - _EPOCH) // timedelta(microseconds=1)
    name = f"{day.year:04d}{day.month:02d}"
    assert partition_name("t", DAY, ts_us + rest_us) == f"t_p{name}{day.day:02d}"
    assert partition_name("t", MONTH, ts_us + rest_us) == f"t_p{name}"
    assert span_bounds(DAY, ts_us + rest_us) == (ts_us, ts_us + DAY_US)
    assert moment(ts_us) == f"'{day.isoformat()} 00:00:00+00'"


def test_years_that_have_other_names() -> None:
    """Before the year 1, and after the year 9999, which datetime does not know."""
    assert moment(us("9999-12-31") + DAY_US) == "'10000-01-01 00:00:00+00'"
    assert span_bounds(MONTH, us("9999-12-31")).to_us == us("9999-12-31") + DAY_US
    assert moment(us("0001-01-01") - DAY_US) == "'0001-12-31 00:00:00+00 BC'"
    assert moment(-1) == "'1969-12-31 23:59:59.999999+00'"
    assert (moment(BEGINNING_US), moment(END_US)) == ("minvalue", "maxvalue")


def test_long_name_is_cut_at_a_character() -> None:
    """PostgreSQL would cut it at the end, where the date is."""
    name = partition_name("ä" * 31, DAY, us("2026-11-27"))
    assert name == "ä" * 26 + "_p20261127"
    assert len(name.encode()) <= NAME_BYTES_MAX


def test_gaps_are_what_no_partition_covers() -> None:
    """Of whole spans, and of spans that a partition of another length covers in part."""
    day = us("2026-11-01")
    week = TimeSpan(day + 2 * DAY_US, day + 9 * DAY_US)
    assert gaps([], DAY, day + 5, day + 5) == []
    assert gaps([], DAY, day + 5, day + 6) == [(day, day + DAY_US)]
    assert gaps([week], DAY, day, day + 10 * DAY_US) == [
        (day, day + DAY_US),
        (day + DAY_US, week.from_us),
        (week.to_us, week.to_us + DAY_US),
    ]
    november = span_bounds(MONTH, day)
    parts = [(november.from_us, week.from_us), (week.to_us, november.to_us)]
    assert gaps([week], MONTH, day, day + 1) == parts
    assert gaps_of([week], MONTH, [week.to_us, day + 1, day + 2]) == parts
    assert gaps_of([week], MONTH, [week.to_us + 1]) == parts[1:]
    assert gaps_of([week], MONTH, [week.from_us]) == []
    everything = TimeSpan(BEGINNING_US, END_US)
    assert gaps([everything], DAY, day, day + 100 * DAY_US) == []


def test_gap_lies_within_one_archived_span_or_outside_of_all() -> None:
    """Days were archived, then partition_span became month: late readings go to their files."""
    month = span_bounds(MONTH, 1_795_737_600_000_000)
    fifth, ninth = (
        TimeSpan(month.from_us + n * DAY_US, month.from_us + (n + 1) * DAY_US) for n in (4, 8)
    )

    def gap(ts_us: int) -> list[TimeSpan]:
        return gaps_of([], MONTH, [ts_us], [fifth, ninth])

    assert gap(fifth.from_us) == gap(fifth.to_us - 1) == [fifth]
    assert gap(fifth.to_us) == [TimeSpan(fifth.to_us, ninth.from_us)]
    assert gap(month.from_us) == [TimeSpan(month.from_us, fifth.from_us)]
    assert gap(ninth.to_us) == [TimeSpan(ninth.to_us, month.to_us)]
    assert cut_at(month, [fifth, ninth]) == [
        (month.from_us, fifth.from_us),
        fifth,
        (fifth.to_us, ninth.from_us),
        ninth,
        (ninth.to_us, month.to_us),
    ]
    assert cut_at(fifth, [month]) == cut_at(fifth, [fifth]) == cut_at(fifth, [ninth]) == [fifth]
    assert gaps_of([], DAY, [fifth.from_us + 1], [month]) == [fifth]
    assert gaps_of([], MONTH, [month.to_us], [fifth, ninth]) == [span_bounds(MONTH, month.to_us)]
