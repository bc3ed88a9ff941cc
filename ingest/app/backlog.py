"""Whether readings wait too long for their write, and why: writes fail, or they are too slow.

Promises: it says nothing before the oldest reading has waited for WAITS_S_MIN, nor while the
database is known to be away or writes are paused: then there is a better reason.
Does not: ask the database; it knows what the writers have told.
"""

from __future__ import annotations

from collections.abc import Callable

from ingest.app.fill import WAITS_S_MIN
from ingest.app.forecast import Forecast
from ingest.model.causes import Cause, Trouble
from ingest.model.ports import BufferStats
from ingest.system.clock import monotonic_s
from ingest.system.words import duration
from ingest.writer.database_state import DatabaseState

WRITES_FAIL, BEHIND = "writes_fail", "behind"
CAUSES = {
    WRITES_FAIL: Cause(
        "no write goes through, though the database answers",
        "If the reason names a process of the database: see what it does, then end it, with a role "
        "that may: `{run} psql -c 'select pg_terminate_backend(PID)'`. If it names none, look at "
        "the log and the disk of the database. The service continues by itself.",
        "ingestwritesfail",
        rank=10,
    ),
    BEHIND: Cause(
        "readings wait long until they are written",
        "After an outage this is over by itself. If they do not become fewer, the database is too "
        "slow for this load: find out why, or send less.",
        "ingestreadingswaitlong",
        rank=60,
    ),
}
RATE_S_MIN = 15.0  # counts of less say nothing about how fast they become fewer


# What waits for its write: how many, what it is called, and for how long the oldest has waited.
Waiting = tuple[int, str, float]


class Backlog:
    """What waits in a process whose buffer has `stats`; or in the stream, if `stream` says it."""

    def __init__(
        self,
        database_state: DatabaseState,
        stats: Callable[[], BufferStats],
        stream: Callable[[], Waiting | None] = lambda: None,
    ) -> None:
        self._database_state = database_state
        self._stats = stats
        self._stream = stream
        self._waits = False
        self._left = Forecast(span_s_min=RATE_S_MIN)  # of the count below 0: it grows towards 0

    def trouble(self) -> Trouble:
        """Return what is wrong now. Call it once a second; more often does no harm."""
        state, stats, now_s = self._database_state, self._stats(), monotonic_s()
        here_s = now_s - (stats.oldest_received_s or now_s)
        count, noun, oldest_s = self._stream() or (stats.rows, "readings", here_s)
        self._left.sample(now_s, -count)
        least_s = WAITS_S_MIN / 2 if self._waits else WAITS_S_MIN
        self._waits = state.is_open and oldest_s > least_s
        silent_s = min(now_s - state.stored_s, here_s)
        if not self._waits:
            return Trouble()
        told = f"{count:,} {noun} wait, the oldest for {duration(oldest_s)}"
        if silent_s >= WAITS_S_MIN:
            words = f"no write has gone through for {duration(silent_s)}; {told}"
            return Trouble(WRITES_FAIL, words, state.failure)
        done_s = self._left.full_in_s(0)
        soon = "" if done_s is None else f"; at this rate all are written in {duration(done_s)}"
        return Trouble(BEHIND, told + soon)
