"""What to do after a failed write, and why it failed, in words that every sink shares.

Four verdicts. WAIT: the server is not there; nothing counts against the batch. RETRY: a server that
is there failed this batch. ISOLATE: one row's fault. HOLD: the operator's fault; keep everything.
Does not: know a driver's errors; a sink judges those (sqlstate.py those of PostgreSQL).
"""

from __future__ import annotations

from enum import Enum

from ingest.model.errors import IngestError

# Why a write failed, in one word: a metric's label, so a closed set (but for unknown codes).
UNREACHABLE = "unreachable"
SCHEMA = "schema"
CONFIGURATION = "configuration"
NOT_DURABLE = "not_durable"
LETTERS_FULL = "dead_letters_full"
TOO_MANY_CONNECTIONS = "too_many_connections"  # of the server, or of the role


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

    `sqlstate` is None where no server spoke (socket, time-out), and then `reason` is UNREACHABLE.
    `doubtful` means that the rows may be in the table all the same. `row` is the 0-based index of
    the row that the server blamed.
    """

    def __init__(
        self,
        verdict: Verdict,
        message: str,
        *,
        sqlstate: str | None = None,
        doubtful: bool = False,
        row: int | None = None,
        reason: str = UNREACHABLE,
    ) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.message = message
        self.sqlstate = sqlstate
        self.doubtful = doubtful
        self.row = row
        self.reason = reason
