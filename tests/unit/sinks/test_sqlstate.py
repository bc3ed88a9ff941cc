"""The table of verdicts, compared with the contract."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ingest.model.causes import Verdict, WriteFailed
from ingest.sinks.postgres.sqlstate import copy_row, reason_for, server_failed, verdict_for

WAIT, RETRY, ISOLATE, HOLD = Verdict.WAIT, Verdict.RETRY, Verdict.ISOLATE, Verdict.HOLD
TABLE = {
    WAIT: "08000 08001 08003 08004 08006 08007 57P01 57P02 57P03 57P04 57P05 25006 53000 53100 "
    "53200 53300",
    RETRY: "40000 40001 40002 40003 40P01 55P03 57014 25P02 25P03 25P04 55000 55006",
    ISOLATE: "22000 22001 22003 22008 22021 22P02 22P05 23503 23514 23P01 P0001 P0004 53400 "
    "54000 54001 54023 21000 23505",
    HOLD: "28000 28P01 3D000 3F000 42P01 42703 42501 42804 42883 08P01 22P03 22P04 XX000 XX001 "
    "XX002 58000 58030 TS103 26000",
    Verdict.UNKNOWN: "0A000 P0002 72000 F0000 99999 23000 57000 44000",
}


def server_error(sqlstate: str, **fields: Any) -> Any:
    """Give an error as the driver shows it."""
    every: dict[str, Any] = {
        "sqlstate": sqlstate,
        "message": "what",
        "severity_en": "ERROR",
        "column_name": None,
        "table_name": None,
        "constraint_name": None,
        "context": None,
        "server_source_function": None,
    }
    return SimpleNamespace(**{**every, **fields})


@pytest.mark.parametrize(
    ("sqlstate", "verdict"),
    [(code, verdict) for verdict, codes in TABLE.items() for code in codes.split()],
)
def test_code_gets_the_verdict_of_the_contract(sqlstate: str, verdict: Verdict) -> None:
    """A code that is not in section 5 is unknown, and its rows are never dead-lettered."""
    assert verdict_for(sqlstate) is verdict


@pytest.mark.parametrize(
    ("place", "verdict"),
    [
        ("ExecFindPartition", Verdict.NO_PARTITION),
        ("ExecConstraints", ISOLATE),
        ("exec_stmt_raise", ISOLATE),  # in an operator's trigger, whatever it calls itself
    ],
)
def test_missing_partition_has_a_verdict_of_its_own(place: str, verdict: Verdict) -> None:
    """It has the code of a check, and only the server itself can have found it."""
    error = server_error("23514", table_name="readings", server_source_function=place)
    assert server_failed(error).verdict is verdict


@pytest.mark.parametrize("column", ["ts", "device_id", "metric", "value"])
def test_null_in_our_column_is_a_row_fault(column: str) -> None:
    """23502 on our columns isolates."""
    assert verdict_for("23502", column=column) is ISOLATE


@pytest.mark.parametrize("column", ["site", None])
def test_null_in_a_foreign_column_is_the_operators_fault(column: str | None) -> None:
    """A NOT NULL column that is not ours must not move all readings into the dead letters."""
    assert verdict_for("23502", column=column) is HOLD


def test_failure_without_a_server_is_waited_out() -> None:
    """A socket error says nothing about the rows."""
    assert verdict_for(None) is WAIT
    assert WriteFailed(WAIT, "refused").reason == "unreachable"


@pytest.mark.parametrize(
    ("sqlstate", "reason"),
    [
        ("42703", "schema"),
        ("23502", "schema"),
        ("3F000", "schema"),
        ("42501", "permission"),
        ("28P01", "authentication"),
        ("3D000", "database_missing"),
        ("08P01", "protocol"),
        ("22P03", "protocol"),
        ("XX001", "internal"),
        ("58030", "internal"),
        ("53300", "too_many_connections"),
        ("0A000", "sqlstate_0A000"),
    ],
)
def test_reason_is_one_word_of_a_closed_set(sqlstate: str, reason: str) -> None:
    """It becomes a label of a metric."""
    assert reason_for(sqlstate) == reason
    assert server_failed(server_error(sqlstate)).reason == reason


@pytest.mark.parametrize(
    ("sqlstate", "severity", "doubtful"),
    [
        ("23514", "ERROR", False),
        ("57014", "ERROR", False),
        ("57P01", "FATAL", True),
        ("XX000", "PANIC", True),
        ("08003", None, True),
        ("40003", "ERROR", True),
        ("08007", "ERROR", True),
    ],
)
def test_only_a_server_that_rolled_back_removes_doubt(
    sqlstate: str, severity: str | None, doubtful: bool
) -> None:
    """ERROR is definite. A session that dies, and the codes for an unknown outcome, are not."""
    error = server_error(sqlstate, severity_en=severity)
    assert server_failed(error, doubt=True).doubtful is doubtful
    assert not server_failed(error, doubt=False).doubtful


def test_long_message_is_cut() -> None:
    """The message of an operator's RAISE may have a megabyte, and a dead letter must not."""
    assert len(server_failed(server_error("P0001", message="x" * 10**6)).message) == 1_000


@pytest.mark.parametrize(
    ("context", "row"),
    [
        ("COPY readings, line 1", 0),
        ("COPY readings, line 58, column metric", 57),
        ("COPY readings, Zeile 7, Spalte ts", 6),
        ("COPY readings, ligne 12", 11),
        ("readingsのCOPY、行 4", 3),
        ("COPY ingest_staging, line 3", 2),
        ("PL/pgSQL function check_readings() line 3 at RAISE\nCOPY readings, line 9", 8),
        ("PL/pgSQL function readings(int) line 3 at RAISE", None),
        ("COPY readings_2, line 9", None),
        ("COPY readings", None),
        ("COPY readings, line 0", None),
        ("", None),
        (None, None),
    ],
)
def test_blamed_row_is_read_in_any_language(context: str | None, row: int | None) -> None:
    """The operator may set lc_messages. The first number after the table's name is the line."""
    assert copy_row(context) == row


@pytest.mark.parametrize("sqlstate", ["U0001", "IN001", "Z9999"])
def test_code_of_the_operators_own_is_one_rows_fault(sqlstate: str) -> None:
    """A trigger that raises it must not pause all writes."""
    assert verdict_for(sqlstate) is Verdict.ISOLATE
