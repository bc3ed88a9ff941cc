"""Whether this instance can take readings now: /readyz, and the receiver's admission.

Promises: one state at a time, and one cause: why posts are refused or readings not stored, since
when, and what to do. `full` and `disk_low` neither start nor end because of one measurement
(hysteresis). While the database is away, posts are accepted as long as the buffer has space.
Does not: measure anything itself but the free disk space, once per tick.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from ingest.app.fill import Fill
from ingest.app.refusals import Refusals
from ingest.config.settings import Settings
from ingest.config.values import shown
from ingest.model.causes import (
    INVALID_FULL,
    JOURNAL_BROKEN,
    SHARE_USED,
    STREAM_FULL,
    WRITES_FAIL,
    Trouble,
    cause_of,
    may_be_url,
    next_step,
    rank_of,
    trouble_of,
)
from ingest.model.ledger import DeadLetterStats
from ingest.model.ports import BufferStats, Database
from ingest.model.verdict import UNREACHABLE
from ingest.system.clock import monotonic_s, rfc3339, sleep_unless, unix_us
from ingest.system.logs import get_logger
from ingest.system.state_folder import StateFolder

TICK_S = 1.0
FULL_S_MIN = 5.0  # so long without space, and the process is full: load balancers may leave it
FULL_ABOVE, SPACE_BELOW = 0.95, 0.8  # of the buffer's bounds
DISK_RECOVERS = 1.25  # times disk_free_bytes_min
REFUSING = frozenset({"starting", "draining", "disk_low"})
UNREADY = REFUSING | {"full", "broker_away"}
UNCHECKED = "no connection to the database since the start; the journal keeps the readings"
UNTAKEN = "posts are not taken until the table has been checked"


class Health:
    """The state of the service; implements ports.Admission.

    `disk` is the state folder; None: there is none. `disk_broken` returns True if the journal
    cannot be written. `url_fault` returns what is wrong with the file of the database's URL, or
    nothing. `broker` returns why the broker is of no use now, as a key of causes.CAUSES, or
    nothing; the state is `broker_away` then. `troubles` say what else is wrong. `untaken` says what
    a start waits for. `advice` are the words of the next steps: a text for each of causes.FIELDS.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        buffer: Callable[[], BufferStats],
        database_state: Database,
        url_fault: Callable[[], str] = str,
        disk: StateFolder | None,
        disk_broken: Callable[[], bool] = lambda: False,
        broker: Callable[[], str] = str,
        untaken: str = UNTAKEN,
        dead_letters: Callable[[], DeadLetterStats] = DeadLetterStats,
        troubles: Sequence[Callable[[], Trouble]] = (),
        refusals: Refusals,
        fill: Fill,
        advice: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._buffer = buffer
        self._database_state = database_state
        self._url_fault = url_fault
        self._disk = disk
        self._disk_broken = disk_broken
        self._broker = broker
        self._untaken = untaken
        self._dead_letters = dead_letters
        self._troubles = troubles
        self._trouble = Trouble()
        self._refusals = refusals
        self.fill = fill
        self._advice = advice
        self.disk_free_bytes = None if disk is None else 0  # at the last check
        self._starting = True
        self._unchecked = False  # posts are accepted, but the table has not been checked yet
        self._draining = False
        self._disk_low = False
        self._fullest = ""  # the folder on the fullest disk
        self._full = False
        self._stuck_since_s = math.inf  # since when there is no space and nothing was stored
        self._moving_since_s = math.inf  # since when it is full and blocks are stored again
        self._oldest_s: float | None = None  # when the oldest block was received
        self._state = "starting"
        self._since_us = unix_us()
        self._cause = ""
        self._cause_since_us = self._since_us
        self._log = get_logger("health")

    @property
    def starting(self) -> bool:
        """Whether the table has not been checked yet."""
        return self._starting

    def started(self) -> None:
        """Note that the table has been checked: posts are accepted."""
        self._starting = self._unchecked = False

    def taking_unchecked(self) -> None:
        """Accept posts before the table has been checked: the journal keeps them."""
        self._unchecked = self._starting or self._unchecked
        self._starting = False

    def draining(self) -> None:
        """Note that the service drains: no post is accepted."""
        self._draining = True

    def refusal(self) -> str | None:
        """Return the problem code for every post now, or None if posts are accepted."""
        if self._draining:
            return "draining"
        if self._starting:
            return "starting"
        return "disk_low" if self._disk_low or self._disk_broken() else None

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until `stop` is set."""
        while True:
            self.tick()
            if await sleep_unless(stop, TICK_S):
                return

    def tick(self) -> None:
        """Check disk and buffer; cheap."""
        stats = self._buffer()
        self._check_disk()
        self._check_buffer(stats)
        self._refresh(stats)
        self.fill.tick(stats, self._dead_letters(), self.disk_free_bytes)
        self._refusals.tick()

    def state(self) -> str:
        """Return the state now, one of STATES."""
        self._refresh(self._buffer())
        return self._state

    def readyz(self) -> tuple[int, bytes]:
        """Return the HTTP status and the JSON document of /readyz for the admin port."""
        status, document = self._readyz()
        next_one = next_step(self._cause, self._advice) if self._cause else ""
        details = self._trouble.details if self._cause == self._trouble.cause else ""
        if details := self._fullest if self._state == "disk_low" else details:
            document["reason"] += f": {details}"
        return status, orjson.dumps({**document, "next": next_one})

    def readyz_for_devices(self) -> tuple[int, bytes]:
        """Return the same for the data port, without commands, paths and senders."""
        status, document = self._readyz()
        return status, orjson.dumps(document)

    def _readyz(self) -> tuple[int, dict[str, Any]]:
        stats = self._buffer()
        self._refresh(stats)
        cause = self._cause
        document = {
            "state": self._state,
            "reason": self._reason(stats),
            "since": rfc3339(self._since_us),
            "refusing": self._state in UNREADY,
            "cause": cause,
            "cause_since": rfc3339(self._cause_since_us) if cause else None,
            "runbook": cause_of(cause).runbook if cause else "",
            "full_in_s": self.fill.full_in_s(),
            "refused_60s": self._refusals.posts.grown(),
            "closed_60s": self._refusals.connections.grown(),
        }
        return 503 if self._state in UNREADY else 200, document

    def in_words(self) -> str:
        """Return the state and its reason as a text for a process manager."""
        stats = self._buffer()
        self._refresh(stats)
        reason = self._reason(stats)
        return f"{self._state}: {reason}" if reason else self._state

    def _check_disk(self) -> None:
        if self._disk is None:
            return
        least = self._settings.disk_free_bytes_min
        try:
            free, self._fullest = self._disk.room()
        except OSError as error:  # a disk that cannot be asked cannot keep dead letters
            free, self._fullest = 0, str(error)
        self.disk_free_bytes = free
        if least:
            self._disk_low = free < (least * DISK_RECOVERS if self._disk_low else least)

    def _of_letters(self) -> Trouble:
        letters = self._dead_letters()
        if letters.invalid_full:
            return trouble_of(INVALID_FULL)
        return trouble_of(SHARE_USED if letters.share_used_by else "", letters.share_used_by)

    def _check_buffer(self, stats: BufferStats) -> None:
        """Set `full` after FULL_S_MIN without space and progress; end it after the contrary."""
        now_s = monotonic_s()
        # Under overload the buffer is always at its bound, but its oldest block changes.
        moved = stats.oldest_received_s != self._oldest_s
        self._oldest_s = stats.oldest_received_s
        stuck = not moved and (stats.posts_waiting > 0 or stats.used >= FULL_ABOVE)
        self._stuck_since_s = min(self._stuck_since_s, now_s) if stuck else math.inf
        moving = moved and self._full
        self._moving_since_s = min(self._moving_since_s, now_s) if moving else math.inf
        long_ago_s = now_s - FULL_S_MIN
        if self._stuck_since_s <= long_ago_s:
            self._full = True
        elif self._full:
            has_space = stats.used <= SPACE_BELOW and not stats.posts_waiting
            self._full = not has_space and self._moving_since_s > long_ago_s

    def _refresh(self, stats: BufferStats) -> None:
        state = self.refusal() or self._open_state(stats)
        was, self._state = self._state, state
        if state != was:
            self._since_us = unix_us()
        was_trouble = self._trouble.cause
        found = (trouble() for trouble in (self._of_letters, *self._troubles))
        self._trouble = min(found, key=lambda each: rank_of(each.cause))
        cause, words, details = self._trouble
        if cause != was_trouble:
            self._log.warning("trouble", cause=cause, was=was_trouble, words=words, details=details)
        cause = self._cause_now()
        if cause != self._cause:
            self._cause, self._cause_since_us = cause, unix_us()
        if state != was and state in UNREADY - {"starting", "draining"}:
            self._log.error("state", state=state, was=was, reason=self._reason(stats))
        elif state != was and (state in UNREADY or was in UNREADY):
            self._log.info("state", state=state, was=was, reason=self._reason(stats))

    def _cause_now(self) -> str:
        """Return the cause of the state, or of what else is wrong: a key of causes.CAUSES."""
        state = self._state
        if state == "disk_low" and self._disk_broken():
            return JOURNAL_BROKEN
        if state in {"draining", "disk_low"}:
            return state
        if self._broker():
            return self._broker()
        if self._database_cause():
            return self._database_cause()
        if state in {"starting", "full", "slowed"}:
            return state
        return self._trouble.cause

    def _open_state(self, stats: BufferStats) -> str:
        if broker := self._broker():
            return "full" if broker == STREAM_FULL else "broker_away"
        if self._full:
            return "full"
        if self._database_state.hold_reason is not None:
            return "on_hold"
        # At its bound the buffer refuses posts even if none waits: the clients come back after
        # Retry-After.
        return "slowed" if stats.posts_waiting or stats.used >= 1 else "accepting"

    def _reason(self, stats: BufferStats) -> str:
        """Return the cause in words, with the figures of the state."""
        if self._state == "starting":
            return "; ".join(filter(None, (self._untaken, self._database_words())))
        if self._cause == "disk_low":
            least = shown("disk_free_bytes_min", self._settings.disk_free_bytes_min)
            return f"less than {least} of disk are free"
        if self._state in {"full", "slowed"}:
            most = f" of {stats.rows_max}" if stats.disk_used is None else ""
            journal = "" if stats.disk_used is None else f", {stats.disk_used:.0%} of the journal"
            load = f"{stats.rows} readings{most}{journal}, {stats.posts_waiting} posts wait"
            return f"{load}; {self._database_words()}" if self._database_words() else load
        database = self._database_words() if self._cause == self._database_cause() else ""
        return database or (self._words_of(self._cause) if self._cause else "")

    def _database_cause(self) -> str:
        """Return why nothing is written, or nothing; before the first check nobody has answered."""
        failing = WRITES_FAIL if self._trouble.cause == WRITES_FAIL else ""
        return self._database_state.cause or (UNREACHABLE if self._unchecked else failing)

    def _database_words(self) -> str:
        """Return that in words; if a wrong URL may be why, also what is wrong with its file."""
        cause = self._database_cause()
        fault = self._url_fault() if may_be_url(cause) else ""
        return "; ".join(filter(None, (self._cause_words(cause), fault)))

    def _cause_words(self, cause: str) -> str:
        if self._unchecked and cause == UNREACHABLE:
            return UNCHECKED
        if self._database_state.hold_reason is not None:
            return f"writes are paused: {cause_of(cause).words}"
        if not cause:
            return ""
        kept = "" if self._state == "starting" else "; readings are kept"
        return f"{self._words_of(cause)}{kept}"

    def _words_of(self, cause: str) -> str:
        return self._trouble.words if cause == self._trouble.cause else cause_of(cause).words
