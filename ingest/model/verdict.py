"""What to do after a failed write, and why it failed. All sinks use these verdicts and reasons.

WAIT: the server does not answer; the failure does not count against the batch. RETRY: the server
answers and failed this batch. ISOLATE: one row is the cause. HOLD: an operator must fix the cause;
keep everything.
Does not: know a driver's errors; each sink maps its own (sinks/postgres/sqlstate.py).
"""

from __future__ import annotations

from enum import Enum

from ingest.model.errors import IngestError

# Why a write failed. These are labels of a metric, so a closed set (except for unknown codes).
UNREACHABLE = "unreachable"
NO_SUCH_HOST = "no_such_host"  # the name of the host is not known
SCHEMA = "schema"
PERMISSION = "permission"
CONFIGURATION = "configuration"
NOT_DURABLE = "not_durable"
LETTERS_FULL = "dead_letters_full"
TOO_MANY_CONNECTIONS = "too_many_connections"  # of the server, of the role, or of ours
NO_STANDBY = "standby_missing"  # each commit waits for a synchronous standby


class Verdict(Enum):
    """What the writer does with a batch whose write failed."""

    WAIT = "wait"
    RETRY = "retry"
    ISOLATE = "isolate"
    NO_PARTITION = "no_partition"  # as ISOLATE: the table has no partition for one row
    HOLD = "hold"
    UNKNOWN = "unknown"  # an unknown code: a few tries, then writes are paused
    DUPLICATE = "duplicate"  # a plain COPY cannot store it, the idempotent path can


OF_ONE_ROW = frozenset({Verdict.ISOLATE, Verdict.NO_PARTITION})


class WriteFailed(IngestError):
    """A write ended, and no commit of it is known. `verdict` says what to do.

    `sqlstate` is None if no server answered (socket, time-out); `reason` is UNREACHABLE then.
    `doubtful` means that the rows may be in the table. `row` is the index of the row that the
    server named as the cause, `constraint` the constraint that it named. `may_be_row`: with HOLD,
    that some rows may be the cause, and not an operator. `known_rows`: the sink knows which rows
    are the cause, without trying them.
    """

    def __init__(
        self,
        verdict: Verdict,
        message: str,
        *,
        sqlstate: str | None = None,
        doubtful: bool = False,
        row: int | None = None,
        constraint: str | None = None,
        may_be_row: bool = False,
        known_rows: bool = False,
        reason: str = UNREACHABLE,
    ) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.message = message
        self.sqlstate = sqlstate
        self.doubtful = doubtful
        self.row = row
        self.constraint = constraint
        self.may_be_row = may_be_row
        self.known_rows = known_rows
        self.reason = reason
