"""The table that turns an error of PostgreSQL into a verdict.

Only the SQLSTATE, the column and the place in the server's source decide, never the text of a
message: a server may translate it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import asyncpg

from ingest.model.causes import (
    CONFIGURATION,
    PERMISSION,
    SCHEMA,
    TOO_MANY_CONNECTIONS,
    UNREACHABLE,
    Verdict,
    WriteFailed,
)
from ingest.sinks.postgres.schema import KEY, READINGS, TABLE, Target

# Exact codes first, then classes (the first two characters). Sources: docs/reference/contract.md,
# section 5, then PostgreSQL's Appendix A. A code that is in neither is unknown on purpose: rows
# are never dead-lettered because of an unknown code.
NO_SUCH_STATEMENT, LOCKED = "26000", "55P03"
_BY_CODE: dict[str, Verdict] = {
    "08P01": Verdict.HOLD,  # of binary COPY into a numeric column: the format is wrong
    "21000": Verdict.ISOLATE,  # a query in an operator's trigger returned more than one row
    "22P03": Verdict.HOLD,  # bad binary format: every row would fail in the same way
    "22P04": Verdict.HOLD,  # bad COPY file format: the same
    "23502": Verdict.ISOLATE,
    "23503": Verdict.ISOLATE,
    "23505": Verdict.ISOLATE,
    "23514": Verdict.ISOLATE,
    "23P01": Verdict.ISOLATE,
    "25006": Verdict.WAIT,  # a standby: the primary is elsewhere or not yet promoted
    "25P02": Verdict.RETRY,  # our transaction has failed already: a new session helps
    "25P03": Verdict.RETRY,  # idle_in_transaction_session_timeout
    "25P04": Verdict.RETRY,  # transaction_timeout
    "26000": Verdict.HOLD,  # our prepared statement is gone: a pooler changed the session
    "53400": Verdict.ISOLATE,  # TimescaleDB's limit on decompression: a retry does not help
    "54000": Verdict.ISOLATE,  # an index row too large
    "54001": Verdict.ISOLATE,  # an operator's trigger recursed on it
    "54023": Verdict.ISOLATE,
    "55000": Verdict.RETRY,
    "55006": Verdict.RETRY,
    "55P03": Verdict.RETRY,  # lock_timeout
    "57014": Verdict.RETRY,  # statement_timeout, or a stray cancel
    "57P01": Verdict.WAIT,
    "57P02": Verdict.WAIT,
    "57P03": Verdict.WAIT,
    "57P04": Verdict.WAIT,  # the database was dropped: the next connect gets 3D000, a HOLD
    "57P05": Verdict.WAIT,
    "P0001": Verdict.ISOLATE,  # RAISE in an operator's trigger
    "P0004": Verdict.ISOLATE,  # ASSERT in one
}
_BY_CLASS: dict[str, Verdict] = {
    "08": Verdict.WAIT,
    "22": Verdict.ISOLATE,
    "28": Verdict.HOLD,
    "3D": Verdict.HOLD,
    "3F": Verdict.HOLD,
    "40": Verdict.RETRY,
    "42": Verdict.HOLD,
    "53": Verdict.WAIT,
    "58": Verdict.HOLD,
    "TS": Verdict.HOLD,  # TimescaleDB's own
    "XX": Verdict.HOLD,
}

REASONS: dict[str, str] = {
    "08P01": "protocol",
    "22P03": "protocol",
    "22P04": "protocol",
    "23502": SCHEMA,
    "26000": CONFIGURATION,
    "28": "authentication",
    "3D": "database_missing",
    "3F": SCHEMA,
    "42501": PERMISSION,
    "42": SCHEMA,
    "53300": TOO_MANY_CONNECTIONS,
    "58": "internal",
    "TS": SCHEMA,
    "XX": "internal",
}

# Errors of these classes have an operator as their cause, or some rows: by a policy for rows, or a
# trigger that finds no table for a row. The sink cannot see which.
_MAY_BE_ROW = frozenset({"3F", "42"})

# The standard leaves classes that begin with I to Z to implementations and users. PostgreSQL's own
# of these are P0 and XX.
_USERS_OWN = frozenset("IJKLMNOPQRSTUVWXYZ")


def verdict_for(
    sqlstate: str | None, columns: Collection[str] = KEY, *, column: str | None = None
) -> Verdict:
    """Return the verdict for a server's error; `column` is the error's own field.

    `columns` are those that we write.

    None (socket error, closed connection) is WAIT. 23505 is ISOLATE: only the sink can find out
    whether the violated constraint is our key, which is DUPLICATE.
    """
    if sqlstate is None:
        return Verdict.WAIT
    if sqlstate == "23502" and column not in columns:
        return Verdict.HOLD  # a NOT NULL column that we do not fill: a migration, not a reading
    verdict = _BY_CODE.get(sqlstate) or _BY_CLASS.get(sqlstate[:2])
    if verdict is None and sqlstate[:1] in _USERS_OWN and sqlstate[:2] != "P0":
        return Verdict.ISOLATE  # RAISE .. USING ERRCODE in an operator's trigger, like P0001
    return verdict if verdict is not None else Verdict.UNKNOWN


def reason_for(sqlstate: str | None) -> str:
    """Return in one word why a write failed: `sqlstate_XXXXX` if there is no better word."""
    if sqlstate is None:
        return UNREACHABLE
    return REASONS.get(sqlstate) or REASONS.get(sqlstate[:2]) or f"sqlstate_{sqlstate}"


_UNKNOWN_OUTCOME = frozenset({"08007", "40003"})
_MESSAGE_CHARACTERS_MAX = 1_000
_FINDS_PARTITION = "ExecFindPartition"  # execPartition.c, of PostgreSQL 11 to 18
_NAME_CHARACTERS_MAX = 63  # of PostgreSQL; an operator's RAISE may set any text


def server_failed(
    error: asyncpg.PostgresError, targets: Sequence[Target] = (READINGS,), *, doubt: bool = False
) -> WriteFailed:
    """Turn a server's error into WriteFailed. `doubt`: the rows may have been committed before.

    `targets` are the tables that were written to.
    """
    # ERROR means that the server has rolled back. FATAL, PANIC and the driver's own 08003 do not.
    rolled_back = error.severity_en == "ERROR" and error.sqlstate not in _UNKNOWN_OUTCOME
    columns = {column for target in targets for column in target.columns}
    verdict = verdict_for(error.sqlstate, columns, column=error.column_name)
    # A trigger can raise all of an error but the place in the server's source that has found it.
    if error.sqlstate == "23514" and error.server_source_function == _FINDS_PARTITION:
        verdict = Verdict.NO_PARTITION
    return WriteFailed(
        verdict,
        (error.message or str(error))[:_MESSAGE_CHARACTERS_MAX],
        sqlstate=error.sqlstate,
        reason=reason_for(error.sqlstate),
        doubtful=doubt and not rolled_back,
        row=copy_row(error.context, *(target.table for target in targets)),
        constraint=(error.constraint_name or "")[:_NAME_CHARACTERS_MAX] or None,
        may_be_row=verdict is Verdict.HOLD and error.sqlstate[:2] in _MAY_BE_ROW,
        table=error.table_name or "",
    )


_BAD_OPTION = frozenset({"22023", "42704"})  # a parameter in the URL is unknown, or its value bad


def server_refused(error: asyncpg.PostgresError) -> WriteFailed:
    """Turn the error of a server that refuses a connection into WriteFailed."""
    failed = server_failed(error)
    if error.sqlstate in _BAD_OPTION:
        failed.verdict, failed.reason = Verdict.HOLD, CONFIGURATION
    if error.sqlstate == "08P01":  # PgBouncer has this code for all that it refuses
        failed.reason = CONFIGURATION
        failed.message = (
            f"a pooler (PgBouncer) refuses the connection: {failed.message}; correct its "
            "configuration, or the options in the URL"
        )
    return failed


def copy_row(context: str | None, *tables: str) -> int | None:
    """Return the 0-based row of a table that COPY names in an error's context, or None.

    The context may be translated (`COPY readings, line 58`, `COPY readings, Zeile 58`). Its
    outermost frame comes last. The first number after the table's name is the line.
    """
    last = context.rsplit("\n", 1)[-1] if context else ""
    known = "|".join(map(re.escape, tables or (TABLE,)))
    names = rf"(?<!\w)(?:{known}|ingest_staging\w*)(?!\w)"
    found = re.search(rf"{names}\D*(\d+)", last, re.ASCII) if "COPY" in last else None
    return int(found[1]) - 1 if found and int(found[1]) > 0 else None
