"""What a post with `ack=committed` waits for: its block is decided, its time is up, or a hold.

Promises: one timer and one watch of holds, however many wait; nothing here changes the block.
"""

from __future__ import annotations

import asyncio
from functools import partial

from ingest.model.ack import Ack, Outcome
from ingest.model.errors import Refused
from ingest.model.ports import Database
from ingest.system.clock import monotonic_s

ON_HOLD = "on_hold"  # why a post will not learn its outcome in time


class AckWaits:
    """The outcomes that one door waits for, each at most `wait_s_max`."""

    def __init__(self, database: Database, wait_s_max: float) -> None:
        self._database = database
        self._wait_s_max = wait_s_max
        self._undecided: dict[asyncio.Future[str], float] = {}  # posts that wait, until when
        self._time_watch: asyncio.TimerHandle | None = None
        self._hold_watch: asyncio.Task[str] | None = None

    async def of(self, ack: Ack) -> Outcome:
        """Wait until the block is decided. Raises Refused: it may be stored all the same."""
        why = ""
        if ack.outcome is None:
            decided: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            ack.when_resolved(partial(_decide, decided, ""))
            until_s = self._undecided[decided] = monotonic_s() + self._wait_s_max
            self._watch_time(until_s)
            self._watch_hold()
            try:
                why = await decided
            finally:
                del self._undecided[decided]
        outcome = ack.outcome
        if outcome is not None:
            if not outcome.set_aside:
                return outcome
            why = "it is set aside and will be tried again later"
        elif why == ON_HOLD:
            raise Refused(
                "database_on_hold", "the post is kept and may still be stored once it goes on"
            )
        # The others get the time of each receipt: sent again they are another row.
        raise Refused("outcome_unknown", f"{why}; sending again is safe for readings with a `ts`")

    def _watch_time(self, first_s: float) -> None:
        """Have one timer, for the post that has waited longest: all may wait equally long."""
        if self._time_watch is None:
            self._time_watch = asyncio.get_running_loop().call_later(
                first_s - monotonic_s(), self._time_came
            )

    def _time_came(self) -> None:
        self._time_watch = None
        now_s = monotonic_s()
        for decided, until_s in self._undecided.items():
            if until_s > now_s:
                self._watch_time(until_s)
                break
            _decide(decided, f"not decided within {self._wait_s_max:g} s")

    def _watch_hold(self) -> None:
        """Have one task that waits for a hold, whoever waits for an outcome."""
        if self._hold_watch is None or self._hold_watch.done():
            self._hold_watch = asyncio.create_task(self._database.wait_hold())
            self._hold_watch.add_done_callback(self._hold_came)

    def _hold_came(self, watch: asyncio.Task[str]) -> None:
        if watch.cancelled() or watch.exception() is not None:
            return
        for decided in self._undecided:
            _decide(decided, ON_HOLD)

    def close(self) -> None:
        """Watch no more."""
        if self._hold_watch is not None:
            self._hold_watch.cancel()
        if self._time_watch is not None:
            self._time_watch.cancel()


def _decide(decided: asyncio.Future[str], why_not: str) -> None:
    if not decided.done():
        decided.set_result(why_not)
