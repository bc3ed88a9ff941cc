"""The names of the table: in quotes for SQL, and checked as settings."""

from __future__ import annotations

import pytest

from ingest.config.loading import load
from ingest.model.errors import ConfigError
from ingest.sinks.postgres.schema import READINGS, TargetTable, literal, quoted, shortened
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
