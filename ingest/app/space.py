"""How much space there is for readings: on the disk of the state folder, and in the buffer.

It says whether posts find space, how long journal, dead letters and disk last at the present rate,
and whether readings wait too long for their write, and why: writes fail, or they are too slow.
Promises: `disk_low` and `full` neither start nor end because of one measurement (hysteresis).
Does not: ask the database; it knows what the writers have told.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from ingest.config.settings import Settings
from ingest.config.values import shown
from ingest.model.causes import Cause, Trouble, trouble_of
from ingest.model.ledger import DeadLetterStats, Metric, Metrics
from ingest.model.ports import BufferStats
from ingest.system.clock import monotonic_s
from ingest.system.state_folder import StateFolder
from ingest.system.words import duration
from ingest.writer.database_state import DatabaseState

WRITES_FAIL, BEHIND = "writes_fail", "behind"
JOURNAL_BROKEN, DISK_LOW, FULL, SLOWED = "journal_broken", "disk_low", "full", "slowed"
CAUSES = {
    WRITES_FAIL: Cause(
        "no write goes through, though the database answers",
        "If the reason names a process of the database: see what it does, then end it, with a role "
        "that may: `{psql} -c 'select pg_terminate_backend(PID)'`. If it names none, look at the "
        "log and the disk of the database. The service continues by itself.",
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
# Of forecasts: between two samples, of all samples, and after which without growth they begin anew.
SAMPLE_S, WINDOW_S, STILL_S = 5.0, 300.0, 60.0
FULL_S_MAX = 30 * 86_400.0  # later than that is "does not fill"
OURS_S_MIN, DISK_S_MIN = 20.0, 120.0  # others write to the disk too, in bursts
WAITS_S_MIN = 10.0  # if the oldest post waits longer, the database does not keep up
RATE_S_MIN = 15.0  # counts of less say nothing about how fast they become fewer

# What waits for its write: how many, what it is called, and for how long the oldest has waited.
Waiting = tuple[int, str, float]


class DiskSpace:
    """The disk of a state folder; with less than `free_bytes_min` posts are refused. 0: no bound.

    `broken` returns why the journal cannot be written, or "".
    """

    def __init__(
        self, folder: StateFolder, *, free_bytes_min: int, broken: Callable[[], str]
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
        return self._is_low or bool(self._broken())

    def trouble(self) -> Trouble:
        """Return why no post can be kept, or nothing."""
        broken = self._broken()
        if broken and "No space left" not in broken:
            return trouble_of(CAUSES, JOURNAL_BROKEN, self._fullest)._replace(state=DISK_LOW)
        if broken or self._is_low:
            needed = shown("disk_free_bytes_min", self._free_bytes_min * DISK_RECOVERS)
            words = "no space is left" if broken else f"less than {needed} of disk are free"
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


class Forecast:
    """How long until one quantity reaches a limit, at the rate of the last minutes.

    The rate is the slope of a straight line through the samples (least squares), as
    `predict_linear` of Prometheus has it. A series that did not grow in the last minute begins
    anew: what has ended, or was freed, says nothing of what comes, and minutes before an outage
    must not make its rate look small. Samples of less than `span_s_min` say nothing about its rate.
    """

    def __init__(self, *, span_s_min: float) -> None:
        self._span_s_min = span_s_min
        self._samples: deque[tuple[float, float]] = deque()

    def sample(self, now_s: float, used: float) -> None:
        """Take a sample, at most one in SAMPLE_S."""
        samples = self._samples
        if samples and now_s - samples[-1][0] < SAMPLE_S:
            return
        lately = (before for at_s, before in samples if now_s - at_s <= STILL_S)
        if used <= next(lately, math.inf):
            samples.clear()  # the first sample is the last one before it grows
        samples.append((now_s, used))
        while now_s - samples[0][0] > WINDOW_S:
            samples.popleft()

    def restart(self) -> None:
        """Forget all samples: what grows from now on has nothing to do with them."""
        self._samples.clear()

    def full_in_s(self, limit: float) -> int | None:
        """Return the seconds until `limit`; None if it does not fill, or not within a month."""
        samples = self._samples
        if len(samples) < 2 or samples[-1][0] - samples[0][0] < self._span_s_min:
            return None
        rate = _slope(samples)
        left_s = (limit - samples[-1][1]) / rate if rate > 0 else FULL_S_MAX
        return max(0, round(left_s)) if left_s < FULL_S_MAX else None


def _slope(samples: deque[tuple[float, float]]) -> float:
    count = len(samples)
    mean_s = sum(at_s for at_s, _ in samples) / count
    mean = sum(used for _, used in samples) / count
    spread = sum((at_s - mean_s) ** 2 for at_s, _ in samples)
    return sum((at_s - mean_s) * (used - mean) for at_s, used in samples) / spread


class Fill:
    """The forecasts of one service. `journal_bytes` returns the size of the journal now.

    Without it there is no journal; without a folder no disk fills. The journal fills only while
    readings wait: its files also grow while all is stored in time, until a whole file is removed.
    So its files are not counted as what fills the disk; but while readings wait, the disk may be
    full before the journal is. Dead letters fill only while entries wait: else their files are
    removed when space is needed. A replay writes to them, too, and there become fewer.
    """

    def __init__(
        self,
        settings: Settings,
        journal_bytes: Callable[[], int] | None = None,
        *,
        has_folder: bool = True,
    ) -> None:
        has_journal = settings.buffer == "journal" and journal_bytes is not None
        self.journal_bytes_max = settings.journal_bytes_max if has_journal else 0
        self.dlq_bytes_max = settings.dlq_bytes_max
        self.disk_free_bytes_min = settings.disk_free_bytes_min if has_folder else 0
        # At the last tick; None: there is no folder.
        self.disk_free_bytes: int | None = 0 if has_folder else None
        self._journal_bytes = journal_bytes or int
        self._journal, self._dead_letters = (Forecast(span_s_min=OURS_S_MIN) for _ in range(2))
        self._disk = Forecast(span_s_min=DISK_S_MIN)
        self._dlq_bytes = self._live = 0
        self._left_bytes = 0  # on the disk

    def tick(
        self, buffer: BufferStats, letters: DeadLetterStats, disk_free_bytes: int | None
    ) -> None:
        """Take samples; cheap."""
        now_s, journal_bytes = monotonic_s(), self._journal_bytes()
        oldest_s = buffer.oldest_received_s
        if oldest_s is None or now_s - oldest_s < WAITS_S_MIN:
            self._journal.restart()
        else:
            self._journal.sample(now_s, journal_bytes)
        self._dlq_bytes = letters.size_bytes
        if letters.live and letters.live >= self._live:
            self._dead_letters.sample(now_s, letters.size_bytes)
        else:
            self._dead_letters.restart()
        self._live = letters.live
        self.disk_free_bytes = disk_free_bytes
        if disk_free_bytes is not None:
            self._left_bytes = disk_free_bytes - self.disk_free_bytes_min
            self._disk.sample(now_s, -disk_free_bytes - journal_bytes)

    def full_in_s(self) -> dict[str, int | None]:
        """Return the seconds that are left for each, or None.

        For dead letters until they are half full, when invalid items are refused, and beyond that
        until they are full.
        """
        journal_bytes, left = self._journal_bytes(), self._left_bytes
        half = 2 if self._dlq_bytes < self.dlq_bytes_max // 2 else 1
        by_journal = self._journal.full_in_s(journal_bytes + left) if left else None
        disk = (self._disk.full_in_s(-self.disk_free_bytes_min - journal_bytes), by_journal)
        return {
            "journal": self._journal.full_in_s(self.journal_bytes_max),
            "dead_letters": self._dead_letters.full_in_s(self.dlq_bytes_max // half),
            "disk": min((each for each in disk if each is not None), default=None),
        }


class Backlog:
    """What waits in a process whose buffer has `stats`; or in the stream, if `stream` says it.

    It says nothing before the oldest reading has waited for WAITS_S_MIN, nor while the database is
    known to be away or writes are paused: then there is a better reason.
    """

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


METRICS: Metrics[Fill] = (
    Metric(
        "dlq_bytes_max",
        "The setting dlq_bytes_max.",
        lambda it: it.dlq_bytes_max,
        of_all=True,
    ),
    Metric(
        "journal_bytes_max",
        "The setting journal_bytes_max; 0 without a journal.",
        lambda it: it.journal_bytes_max,
        of_all=True,
    ),
    Metric(
        "disk_free_bytes",
        "Free space of the state folder.",
        lambda it: it.disk_free_bytes,
        of_all=True,
    ),
    Metric(
        "disk_free_bytes_min",
        "The setting disk_free_bytes_min.",
        lambda it: None if it.disk_free_bytes is None else it.disk_free_bytes_min,
        of_all=True,
    ),
)
