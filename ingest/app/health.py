"""Whether this instance can take readings now: /readyz, and the door's admission.

Promises: one state at a time, with a reason and since when; `full` and `disk_low` neither start nor
end on one sample (hysteresis). A database that is away is no reason to refuse while there is room.
Does not: measure anything by itself but the free disk space, once per tick.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson

from ingest.config.settings import Settings
from ingest.config.values import shown
from ingest.model.ports import BufferStats, Database
from ingest.system.clock import monotonic_s, rfc3339, sleep_unless, unix_us
from ingest.system.logs import get_logger

TICK_S = 1.0
FULL_ABOVE, ROOM_BELOW = 0.95, 0.8  # of the buffer's bounds
DISK_RECOVERS = 1.25  # times disk_free_bytes_min
REFUSING = frozenset({"starting", "draining", "disk_low"})
UNREADY = REFUSING | {"full"}
UNTAKEN = "posts are not taken until the table has been checked"


class Health:
    """The state of the service; implements ports.Admission.

    `free_bytes` returns the free space of the state folder (may raise OSError); `disk_broken` says
    that the journal cannot be written.
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
        self._draining = False
        self._disk_low = False
        self._full = False
        self._stuck_since_s: float | None = None  # no room, and nothing moved, since then
        self._moving_since_s: float | None = None  # full, and things move again, since then
        self._oldest_s: float | None = None
        self._state = "starting"
        self._since_us = unix_us()
        self._log = get_logger("health")

    @property
    def starting(self) -> bool:
        """Whether the schema has not been checked yet."""
        return self._starting

    def started(self) -> None:
        """The schema has been checked: posts may come in."""
        self._starting = False

    def draining(self) -> None:
        """From now on no post comes in."""
        self._draining = True

    def refusal(self) -> str | None:
        """Return the problem code for every post now, or None: come in."""
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
        """Look at the disk and at the buffer; cheap."""
        self._look_at_disk()
        self._look_at_buffer(self._buffer())
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
        """Return the state and its reason as one text, for a process manager."""
        stats = self._buffer()
        self._refresh(stats)
        reason = self._reason(stats)
        return f"{self._state}: {reason}" if reason else self._state

    def _look_at_disk(self) -> None:
        least = self._settings.disk_free_bytes_min
        if not least:
            return
        try:
            free = self._free_bytes()
        except OSError:
            free = 0  # a disk that does not answer cannot keep dead letters
        self._disk_low = free < (least * DISK_RECOVERS if self._disk_low else least)

    def _look_at_buffer(self, stats: BufferStats) -> None:
        """Full: no room, and nothing made room, for `full_s_min`. Ended by the contrary."""
        now_s = monotonic_s()
        used = stats.used
        # Under overload the buffer is always at its bound, but its oldest block changes.
        moved = stats.oldest_received_s != self._oldest_s
        self._oldest_s = stats.oldest_received_s
        no_room = stats.posts_waiting > 0 or used >= FULL_ABOVE
        if not no_room or moved:
            self._stuck_since_s = None
        elif self._stuck_since_s is None:
            self._stuck_since_s = now_s
        if not self._full or not moved:
            self._moving_since_s = None
        elif self._moving_since_s is None:
            self._moving_since_s = now_s
        long_s = self._settings.full_s_min
        if self._stuck_since_s is not None and now_s - self._stuck_since_s >= long_s:
            self._full = True
        elif self._full:
            roomy = used <= ROOM_BELOW and not stats.posts_waiting
            moving = self._moving_since_s is not None and now_s - self._moving_since_s >= long_s
            self._full = not (roomy or moving)

    def _refresh(self, stats: BufferStats) -> None:
        state = self.refusal() or self._open_state(stats)
        if state != self._state:
            was, self._state, self._since_us = self._state, state, unix_us()
            if state in UNREADY or was in UNREADY:  # after the change: the reason is the new one's
                self._log.info("state", state=state, was=was, reason=self._reason(stats))

    def _open_state(self, stats: BufferStats) -> str:
        if self._full:
            return "full"
        if self._database_state.hold_reason is not None:
            return "on_hold"
        # At its bound it refuses, whoever still waits: those sent away come back after Retry-After.
        return "slowed" if stats.posts_waiting or stats.used >= 1 else "accepting"

    def _reason(self, stats: BufferStats) -> str:
        hold = self._database_state.hold_reason
        database = "" if self._database_state.up else "the database is away; readings are kept"
        database = f"the database refuses: {hold}" if hold is not None else database
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
            room = f"{stats.rows} readings{most}{journal}, {stats.posts_waiting} posts wait"
            return f"{room}; {database}" if database else room
        return database
