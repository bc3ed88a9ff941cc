"""Whether this instance can take readings now: /readyz, and the receiver's admission.

Promises: one state at a time, with a reason and its start. `full` and `disk_low` neither start nor
end because of one measurement (hysteresis). While the database is away, posts are accepted as long
as the buffer has space.
Does not: measure anything itself but the free disk space, once per tick.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import orjson

from ingest.config.settings import Settings
from ingest.config.values import shown
from ingest.model.ports import BufferStats, Database
from ingest.system.clock import monotonic_s, rfc3339, sleep_unless, unix_us
from ingest.system.logs import get_logger

TICK_S = 1.0
FULL_ABOVE, SPACE_BELOW = 0.95, 0.8  # of the buffer's bounds
DISK_RECOVERS = 1.25  # times disk_free_bytes_min
REFUSING = frozenset({"starting", "draining", "disk_low"})
UNREADY = REFUSING | {"full"}
UNCHECKED = "the database has not answered since the start; the journal keeps the readings"
UNTAKEN = "posts are not taken until the table has been checked"


class Health:
    """The state of the service; implements ports.Admission.

    `free_bytes` returns the free space of the state folder, and may raise OSError. `disk_broken`
    returns True if the journal cannot be written.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        buffer: Callable[[], BufferStats],
        database_state: Database,
        free_bytes: Callable[[], int],
        disk_broken: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._buffer = buffer
        self._database_state = database_state
        self._free_bytes = free_bytes
        self._disk_broken = disk_broken
        self._starting = True
        self._unchecked = False  # posts are accepted, but the table has not been checked yet
        self._draining = False
        self._disk_low = False
        self._full = False
        self._stuck_since_s = math.inf  # since when there is no space and nothing was stored
        self._moving_since_s = math.inf  # since when it is full and blocks are stored again
        self._oldest_s: float | None = None  # when the oldest block was received
        self._state = "starting"
        self._since_us = unix_us()
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
            if await sleep_unless(stop, min(TICK_S, max(self._settings.full_s_min / 4, 0.05))):
                return

    def tick(self) -> None:
        """Check the disk and the buffer; cheap."""
        self._check_disk()
        self._check_buffer(self._buffer())
        self._refresh(self._buffer())

    def state(self) -> str:
        """Return the state now, one of STATES."""
        self._refresh(self._buffer())
        return self._state

    def readyz(self) -> tuple[int, bytes]:
        """Return the HTTP status and the JSON document of /readyz."""
        stats = self._buffer()
        self._refresh(stats)
        document = {
            "state": self._state,
            "reason": self._reason(stats),
            "since": rfc3339(self._since_us),
        }
        return 503 if self._state in UNREADY else 200, orjson.dumps(document)

    def in_words(self) -> str:
        """Return the state and its reason as a text for a process manager."""
        stats = self._buffer()
        self._refresh(stats)
        reason = self._reason(stats)
        return f"{self._state}: {reason}" if reason else self._state

    def _check_disk(self) -> None:
        least = self._settings.disk_free_bytes_min
        if not least:
            return
        try:
            free = self._free_bytes()
        except OSError:
            free = 0  # a disk that cannot be asked cannot keep dead letters
        self._disk_low = free < (least * DISK_RECOVERS if self._disk_low else least)

    def _check_buffer(self, stats: BufferStats) -> None:
        """Set `full` after `full_s_min` without space and progress; end it after the contrary."""
        now_s = monotonic_s()
        # Under overload the buffer is always at its bound, but its oldest block changes.
        moved = stats.oldest_received_s != self._oldest_s
        self._oldest_s = stats.oldest_received_s
        stuck = not moved and (stats.posts_waiting > 0 or stats.used >= FULL_ABOVE)
        self._stuck_since_s = min(self._stuck_since_s, now_s) if stuck else math.inf
        moving = moved and self._full
        self._moving_since_s = min(self._moving_since_s, now_s) if moving else math.inf
        long_ago_s = now_s - self._settings.full_s_min
        if self._stuck_since_s <= long_ago_s:
            self._full = True
        elif self._full:
            has_space = stats.used <= SPACE_BELOW and not stats.posts_waiting
            self._full = not has_space and self._moving_since_s > long_ago_s

    def _refresh(self, stats: BufferStats) -> None:
        state = self.refusal() or self._open_state(stats)
        if state != self._state:
            was, self._state, self._since_us = self._state, state, unix_us()
            if state in UNREADY or was in UNREADY:
                self._log.info("state", state=state, was=was, reason=self._reason(stats))

    def _open_state(self, stats: BufferStats) -> str:
        if self._full:
            return "full"
        if self._database_state.hold_reason is not None:
            return "on_hold"
        # At its bound the buffer refuses posts even if none waits: the clients come back after
        # Retry-After.
        return "slowed" if stats.posts_waiting or stats.used >= 1 else "accepting"

    def _reason(self, stats: BufferStats) -> str:
        hold = self._database_state.hold_reason
        away = UNCHECKED if self._unchecked else "the database is away; readings are kept"
        database = "" if self._database_state.up and not self._unchecked else away
        if hold is not None:
            database = f"the database refuses: {hold}"
        if self._state == "draining":
            return "the service is stopping"
        if self._state == "starting":
            why = database if self._database_state.up else "the database does not answer yet"
            return f"{UNTAKEN}; {why}" if why else UNTAKEN
        if self._state == "disk_low" and self._disk_broken():
            return "the journal cannot be written to the disk"
        if self._state == "disk_low":
            least = shown("disk_free_bytes_min", self._settings.disk_free_bytes_min)
            return f"less than {least} of disk are free"
        if self._state in {"full", "slowed"}:
            most = f" of {stats.rows_max}" if stats.disk_used is None else ""
            journal = "" if stats.disk_used is None else f", {stats.disk_used:.0%} of the journal"
            load = f"{stats.rows} readings{most}{journal}, {stats.posts_waiting} posts wait"
            return f"{load}; {database}" if database else load
        return database
