"""Whether there is space: on the disk of the state folder, and in the buffer.

Promises: `disk_low` and `full` neither start nor end because of one measurement (hysteresis).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ingest.config.values import shown
from ingest.model.causes import Cause, Trouble
from ingest.model.ports import BufferStats
from ingest.system.clock import monotonic_s
from ingest.system.state_folder import StateFolder

JOURNAL_BROKEN, DISK_LOW, FULL, SLOWED = "journal_broken", "disk_low", "full", "slowed"
CAUSES = {
    DISK_LOW: Cause(
        "the disk of the state folder is nearly full",
        "Free some space on the disk that the reason names. The service continues by itself.",
        "ingestnoposttaken",
        rank=70,
    ),
    JOURNAL_BROKEN: Cause(
        "the journal cannot be written to the disk",
        "Is the disk of the state folder full, read-only or failing? The service tries a new file "
        "every 2 s. `{run} doctor` checks more.",
        "ingestnoposttaken",
        rank=80,
    ),
    FULL: Cause(
        "there is no space for posts",
        "The database is slower than the posts come in: find out why, or send less.",
        "ingestnoposttaken",
        rank=200,
    ),
    SLOWED: Cause(
        "posts wait for space",
        "If this lasts, the database is too slow for this load.",
        "ingestbufferfilling",
        rank=210,
    ),
}
FULL_S_MIN = 5.0  # so long without space, and the process is full: load balancers may leave it
DISK_RECOVERS = 1.25  # times the least free space
FULL_ABOVE, SPACE_BELOW = 0.95, 0.8  # of the buffer's bounds


class DiskSpace:
    """The disk of a state folder; with less than `free_bytes_min` posts are refused. 0: no bound.

    `broken` returns True if the journal cannot be written.
    """

    def __init__(
        self, folder: StateFolder, *, free_bytes_min: int, broken: Callable[[], bool]
    ) -> None:
        self.free_bytes = 0  # at the last look
        self._folder = folder
        self._free_bytes_min = free_bytes_min
        self._broken = broken
        self._is_low = False
        self._fullest = ""  # the folder on the fullest disk

    def look(self) -> None:
        """Ask the disk; once a second."""
        least = self._free_bytes_min
        try:
            self.free_bytes, self._fullest = self._folder.room()
        except OSError as error:  # a disk that cannot be asked cannot keep dead letters
            self.free_bytes, self._fullest = 0, str(error)
        if least:
            self._is_low = self.free_bytes < (least * DISK_RECOVERS if self._is_low else least)

    @property
    def refuses(self) -> bool:
        """Whether no post can be kept."""
        return self._is_low or self._broken()

    def trouble(self) -> Trouble:
        """Return why no post can be kept, or nothing."""
        if self._broken():
            words = CAUSES[JOURNAL_BROKEN].words
            return Trouble(JOURNAL_BROKEN, words, self._fullest, DISK_LOW)
        if self._is_low:
            least = shown("disk_free_bytes_min", self._free_bytes_min)
            words = f"less than {least} of disk are free"
            return Trouble(DISK_LOW, words, self._fullest, DISK_LOW)
        return Trouble()


class BufferSpace:
    """Whether a buffer is full: after FULL_S_MIN without space and progress."""

    def __init__(self) -> None:
        self._is_full = False
        self._stuck_since_s = math.inf  # since when there is no space and nothing was stored
        self._moving_since_s = math.inf  # since when it is full and blocks are stored again
        self._oldest_s: float | None = None  # when the oldest block was received

    def look(self, stats: BufferStats) -> None:
        """Note what the buffer says; once a second."""
        now_s = monotonic_s()
        # Under overload the buffer is always at its bound, but its oldest block changes.
        moved = stats.oldest_received_s != self._oldest_s
        self._oldest_s = stats.oldest_received_s
        stuck = not moved and (stats.posts_waiting > 0 or stats.used >= FULL_ABOVE)
        self._stuck_since_s = min(self._stuck_since_s, now_s) if stuck else math.inf
        moving = moved and self._is_full
        self._moving_since_s = min(self._moving_since_s, now_s) if moving else math.inf
        long_ago_s = now_s - FULL_S_MIN
        if self._stuck_since_s <= long_ago_s:
            self._is_full = True
        elif self._is_full:
            has_space = stats.used <= SPACE_BELOW and not stats.posts_waiting
            self._is_full = not has_space and self._moving_since_s > long_ago_s

    def trouble(self, stats: BufferStats) -> Trouble:
        """Return whether posts wait, or find no space."""
        # At its bound the buffer refuses posts even if none waits: the clients come back after
        # Retry-After.
        waits = stats.posts_waiting or stats.used >= 1
        state = FULL if self._is_full else SLOWED if waits else ""
        return Trouble(state, load_words(stats), state=state) if state else Trouble()


def load_words(stats: BufferStats) -> str:
    """Return how much is in a buffer, in words."""
    most = f" of {stats.rows_max}" if stats.disk_used is None else ""
    journal = "" if stats.disk_used is None else f", {stats.disk_used:.0%} of the journal"
    return f"{stats.rows} readings{most}{journal}, {stats.posts_waiting} posts wait"
