"""Whether batches may go to the database now: open, waiting for the server, or on hold.

The gate knows no connection. Writers report what they met; while it is not open exactly one of them
probes (`probing` is its lock), so a server that comes back meets one client, not a crowd.
"""

from __future__ import annotations

import asyncio

from ingest.model.verdict import Verdict, WriteFailed
from ingest.system.backoff import backoff_s
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.logs import get_logger

OPEN, WAIT, HOLD = "open", "wait", "hold"


class DatabaseState:
    """The state of the database as the writers see it. All times are in seconds."""

    def __init__(self, *, wait_s_min: float, wait_s_max: float, hold_probe_s: float) -> None:
        self._wait_s_min = wait_s_min
        self._wait_s_max = wait_s_max
        self._hold_probe_s = hold_probe_s
        self._tries = 0
        self._held = asyncio.Event()
        self._nudged = asyncio.Event()
        self._log = get_logger("database_state")
        self.probing = asyncio.Lock()
        self.state = OPEN
        self.reason = ""  # of a closed set, for metrics
        self.message = ""  # what the server said, for people
        self.since_us = unix_us()
        self._since_s = monotonic_s()

    @property
    def is_open(self) -> bool:
        """Whether batches may be written without probing first."""
        return self.state == OPEN

    @property
    def up(self) -> bool:
        """Whether the server answered when last asked."""
        return self.state != WAIT

    @property
    def hold_reason(self) -> str | None:
        """Why writing is on hold, or None."""
        return self.reason if self.state == HOLD else None

    async def wait_hold(self) -> str:
        """Wait until writing is on hold; return the reason."""
        while self.hold_reason is None:  # it may have gone on before we were woken
            await self._held.wait()
        return self.reason

    def opened(self) -> None:
        """A probe succeeded."""
        if self.state != OPEN:
            after_s = round(monotonic_s() - self._since_s, 3)
            self._log.info("database_back", was=self.state, after_s=after_s)
            self._change(OPEN, "", "")
        self._tries = 0

    def answered(self, failure: WriteFailed) -> None:
        """A probe's write failed: for a reason of its own, so a server that was away is there."""
        if self.state == WAIT and failure.verdict not in (Verdict.WAIT, Verdict.HOLD):
            self.opened()

    def failed(self, failure: WriteFailed) -> None:
        """A write or a probe failed because of the server (WAIT) or of its operator (the rest)."""
        state = WAIT if failure.verdict is Verdict.WAIT else HOLD
        self._tries += 1
        if state == self.state and failure.reason == self.reason:
            return  # one line per hold, not one per try
        if state == HOLD:
            self._log.error(
                "on_hold",
                reason=failure.reason,
                sqlstate=failure.sqlstate,
                message=failure.message,
                probe_s=self._hold_probe_s,
            )
        elif self.state != WAIT:
            self._log.warning("database_away", sqlstate=failure.sqlstate, message=failure.message)
        self._change(state, failure.reason, failure.message)

    def _change(self, state: str, reason: str, message: str) -> None:
        if state != self.state:
            self.since_us = unix_us()
            self._since_s = monotonic_s()
            self._tries = 0
        self.state, self.reason, self.message = state, reason, message
        if state == HOLD:
            self._held.set()
        else:
            self._held.clear()

    def pause_s(self) -> float:
        """Return how long the prober waits before its next try."""
        if self.state == HOLD:
            return self._hold_probe_s
        return backoff_s(self._tries, first_s=self._wait_s_min, cap_s=self._wait_s_max)

    async def pause(self, halted: asyncio.Event) -> None:
        """Wait `pause_s`, or until `halted` is set or somebody asks for a try at once."""
        waits = [
            asyncio.ensure_future(halted.wait()),
            asyncio.ensure_future(self._nudged.wait()),
        ]
        try:
            await asyncio.wait(waits, timeout=self.pause_s(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
            self._nudged.clear()

    def nudge(self) -> None:
        """Ask the prober to try at once."""
        self._nudged.set()
