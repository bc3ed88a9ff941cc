"""The database state: whether batches may be written now. It is open, away (`wait`), or paused.

Writers report each success and failure here. While the state is not open, only one writer at a
time probes the server; the lock `probing` holds this. So a server that comes back gets one client
first, and not all at once.
Does not: know a connection.
"""

from __future__ import annotations

import asyncio

from ingest.model.causes import CAUSES
from ingest.model.verdict import UNREACHABLE, Verdict, WriteFailed
from ingest.system.backoff import backoff_s
from ingest.system.clock import monotonic_s
from ingest.system.logs import get_logger
from ingest.system.waiting import first_of

OPEN, WAIT, HOLD = "open", "wait", "hold"  # HOLD: writes are paused

log = get_logger("database_state")


class DatabaseState:
    """The state of the database as the writers see it. All times are in seconds."""

    def __init__(self, *, wait_s_min: float, wait_s_max: float, hold_probe_s: float) -> None:
        self._wait_s_min = wait_s_min
        self._wait_s_max = wait_s_max
        self._hold_probe_s = hold_probe_s
        self._tries = 0
        self._held = asyncio.Event()
        self._nudged = asyncio.Event()
        self.probing = asyncio.Lock()
        self.state = OPEN
        self.reason = ""  # one of a closed set, for metrics
        self.message = ""  # of the server, for people
        self._since_s = self.stored_s = monotonic_s()  # `stored_s`: of the last write
        self.failure = ""  # of the last write, if none went through since

    @property
    def is_open(self) -> bool:
        """Whether batches may be written without probing first."""
        return self.state == OPEN

    @property
    def up(self) -> bool:
        """Whether the server answered at the last try."""
        return self.state != WAIT

    @property
    def hold_reason(self) -> str | None:
        """Why writes are paused, or None."""
        return self.reason if self.state == HOLD else None

    @property
    def cause(self) -> str:
        """Why readings are not written now; empty if they are.

        While the server is away, its last words change with each try. One word stands for those
        that say no more than this.
        """
        says_more = self.state != WAIT or self.reason in CAUSES
        return self.reason if says_more else UNREACHABLE

    async def wait_hold(self) -> str:
        """Wait until writes are paused; return the reason."""
        while self.hold_reason is None:  # the pause may be over before this task runs
            await self._held.wait()
        return self.reason

    def opened(self) -> None:
        """A probe succeeded."""
        if self.state != OPEN:
            after_s = round(monotonic_s() - self._since_s, 3)
            if self.state == HOLD:
                log.info("writing_resumed", reason=self.reason, after_s=after_s)
            else:
                log.info("database_back", after_s=after_s)
            self._change(OPEN, "", "")
        self._tries = 0
        self.stored()

    def stored(self) -> None:
        """A write went through, or nothing keeps one from it."""
        self.stored_s, self.failure = monotonic_s(), ""

    def retried(self, failure: WriteFailed, *, rows: int, attempt: int) -> None:
        """A write failed, and is tried again: the server answers."""
        log.warning(
            "write_failed",
            sqlstate=failure.sqlstate,
            message=failure.message,
            rows=rows,
            attempt=attempt,
        )
        self.failure = ": ".join(filter(None, (failure.sqlstate, failure.message)))

    def answered(self, failure: WriteFailed) -> None:
        """A probe's write failed. If the batch is the cause, a server that was away is back."""
        if self.state == WAIT and failure.verdict not in (Verdict.WAIT, Verdict.HOLD):
            self.opened()

    def failed(self, failure: WriteFailed) -> None:
        """A write or a probe failed: the server is away (WAIT), or an operator has to fix it."""
        state = WAIT if failure.verdict is Verdict.WAIT else HOLD
        self._tries += 1
        if state == self.state and failure.reason == self.reason:
            return  # one log line for each pause, not for each try
        if state == HOLD:
            log.error(
                "on_hold",
                reason=failure.reason,
                sqlstate=failure.sqlstate,
                message=failure.message,
                probe_s=self._hold_probe_s,
            )
        elif self.state != WAIT:
            log.warning("database_away", sqlstate=failure.sqlstate, message=failure.message)
        self._change(state, failure.reason, failure.message)

    def _change(self, state: str, reason: str, message: str) -> None:
        if state != self.state:
            self._since_s = monotonic_s()
            self._tries = 0
        self.state, self.reason, self.message = state, reason, message
        if state == HOLD:
            self._held.set()
        else:
            self._held.clear()

    def pause_s(self) -> float:
        """Return how long to wait before the next probe."""
        if self.state == HOLD:
            return self._hold_probe_s
        return backoff_s(self._tries, first_s=self._wait_s_min, cap_s=self._wait_s_max)

    async def pause(self, halted: asyncio.Event) -> None:
        """Wait `pause_s`. `halted` or a call of `nudge` ends the wait earlier."""
        try:
            await first_of(halted.wait(), self._nudged.wait(), within_s=self.pause_s())
        finally:
            self._nudged.clear()

    def nudge(self) -> None:
        """Have the next probe made at once."""
        self._nudged.set()
