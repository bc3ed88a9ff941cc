"""The outcomes that posts with `ack=committed` wait for: one timer for all, and one watch.

A post waits until its block is in the table, or in the dead letters, and at most for a time that
all have in common. If writes are paused, it is told at once.
Does not: decide outcomes (the writer does), or what the answer to a post is.
"""

from __future__ import annotations

import asyncio
from functools import partial

from ingest.model.block import Ack, Outcome
from ingest.model.errors import Refused
from ingest.model.ports import Database
from ingest.system.clock import monotonic_s

WAITS_OF_4 = 3  # quarters of the connections may wait: one that waits is never closed for a new one
ON_HOLD = "on_hold"  # the reason of a wait that ended because writes are paused


class AckWaits:
    """The outcomes that the posts of one receiver wait for, each at most `wait_s_max`.

    Promises: one timer and one watch of the database state, however many posts wait. A quarter of
    the connections is left for other posts.
    """

    def __init__(self, database: Database, wait_s_max: float, *, connections_max: int) -> None:
        self._database = database
        self._wait_s_max = wait_s_max
        self._waits_max = max(1, connections_max * WAITS_OF_4 // 4)
        self._undecided: dict[asyncio.Future[str], float] = {}  # waiting posts: end of the wait
        self._time_watch: asyncio.TimerHandle | None = None
        self._hold_watch: asyncio.Task[str] | None = None

    def require_place(self) -> None:
        """Raise Refused if so many posts wait that new clients would find no connection."""
        if len(self._undecided) >= self._waits_max:
            raise Refused(
                "buffer_full",
                "too many posts wait for the table; nothing of the post is kept",
                retry_after_s=self._wait_s_max,
            )

    async def of(self, ack: Ack) -> Outcome:
        """Wait for the outcome of a block. Raises Refused; the block may be stored nevertheless."""
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
            why = "the post is set aside and will be tried again later"
        elif why == ON_HOLD:
            raise Refused(
                "database_on_hold", "the post is kept and may still be stored once writes continue"
            )
        # A reading without `ts` gets the time of receipt. Sent again, it would be another row.
        raise Refused("outcome_unknown", f"{why}; sending again is safe for readings with a `ts`")

    def _watch_time(self, first_s: float) -> None:
        """Keep one timer, for the first post: all posts have the same limit."""
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
            _decide(decided, f"the outcome was not known within {self._wait_s_max:g} s")

    def _watch_hold(self) -> None:
        """Keep one task that waits for a pause of writes, for all posts together."""
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
