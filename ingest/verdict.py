"""The one table that turns a failed write into what to do next.

Four verdicts. WAIT: the server is not there; nothing counts against the batch. RETRY: a server that
is there failed this batch. ISOLATE: one row's fault. HOLD: the operator's fault; keep everything.
Only the SQLSTATE and the constraint decide, never a message text (they are translated).
"""

from __future__ import annotations

from enum import Enum

from ingest.errors import IngestError


class Verdict(Enum):
    """What the writer does with a batch whose write failed."""

    WAIT = "wait"
    RETRY = "retry"
    ISOLATE = "isolate"
    HOLD = "hold"
    UNKNOWN = "unknown"  # a code of no class below: tried a few times, then held
    DUPLICATE = "duplicate"  # our own key: not a fault, the idempotent path counts it


class WriteFailed(IngestError):
    """A write ended without a commit that we know of; `verdict` says what to do.

    `sqlstate` is None where no server spoke (socket, time-out). `doubtful` means that the rows may
    be in the table all the same. `row` is the 0-based index of the row that the server blamed.
    """

    def __init__(
        self,
        verdict: Verdict,
        message: str,
        *,
        sqlstate: str | None = None,
        doubtful: bool = False,
        row: int | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.message = message
        self.sqlstate = sqlstate
        self.doubtful = doubtful
        self.row = row
        self.reason = reason or sqlstate or "unreachable"


# Exact codes first, then classes (the first two characters). Sources: the contract, section 5, and
# PostgreSQL's Appendix A.
_BY_CODE: dict[str, Verdict] = {
    "08P01": Verdict.HOLD,  # binary COPY into a numeric column yields it: our shape, not the line
    "22P03": Verdict.HOLD,  # bad binary format: every row would fail alike
    "22P04": Verdict.HOLD,  # bad COPY file format: the same
    "25006": Verdict.WAIT,  # a standby: the primary is elsewhere or not yet promoted
    "40003": Verdict.RETRY,
    "53400": Verdict.ISOLATE,  # TimescaleDB's limit on decompression; retrying never helps
    "55P03": Verdict.RETRY,  # lock_timeout
    "57014": Verdict.RETRY,  # statement_timeout, or a stray cancel
    "57P01": Verdict.WAIT,
    "57P02": Verdict.WAIT,
    "57P03": Verdict.WAIT,
    "57P04": Verdict.HOLD,  # the database was dropped
    "57P05": Verdict.WAIT,
    "P0001": Verdict.ISOLATE,  # RAISE in an operator's trigger
}
_BY_CLASS: dict[str, Verdict] = {
    "08": Verdict.WAIT,
    "22": Verdict.ISOLATE,
    "23": Verdict.ISOLATE,
    "28": Verdict.HOLD,
    "3D": Verdict.HOLD,
    "3F": Verdict.HOLD,
    "40": Verdict.RETRY,
    "42": Verdict.HOLD,
    "53": Verdict.WAIT,
    "54": Verdict.ISOLATE,
    "58": Verdict.HOLD,
    "XX": Verdict.HOLD,
}

OUR_COLUMNS = frozenset({"ts", "device_id", "metric", "value"})


def verdict_for(
    sqlstate: str | None,
    *,
    column: str | None = None,
    constraint: str | None = None,
    key_constraint: str | None = None,
) -> Verdict:
    """Return the verdict for a server's error.

    `column` and `constraint` are the error's own fields; `key_constraint` is the name of our key.
    `sqlstate` None (socket error, closed connection) is WAIT.
    """
    if sqlstate is None:
        return Verdict.WAIT
    if sqlstate == "23505":
        ours = constraint is not None and constraint == key_constraint
        return Verdict.DUPLICATE if ours else Verdict.ISOLATE
    if sqlstate == "23502" and column not in OUR_COLUMNS:
        return Verdict.HOLD  # a NOT NULL column that we do not fill: a migration, not a reading
    verdict = _BY_CODE.get(sqlstate) or _BY_CLASS.get(sqlstate[:2])
    return verdict if verdict is not None else Verdict.UNKNOWN
