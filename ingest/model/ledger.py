"""The ledger: what the path counts, and the law that the counts keep.

Plain integers on one event loop (an increment costs 30 ns; a client library's counter 300).
exposition.py shows them as metrics. Counters are per life of a process.

The law, at every quiet moment:
received + recovered + replayed = committed + duplicate + rejected + dead_lettered + held
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ingest.model.letter import REASONS
from ingest.model.ports import BufferStats, JournalStats

SECONDS_HTTP = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SECONDS_COMMIT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SECONDS_SYNC = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
SECONDS_LAG = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 21_600, 86_400, 604_800)
ROWS_FLUSH = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000)

TRIGGERS = ("count", "time", "backlog", "drain")


class Histogram:
    """Counts of observations per bucket; `bounds` are inclusive upper bounds, ascending."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, count so far) pairs as Prometheus wants them."""
        rows: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            running += count
            rows.append((f"{bound:g}" if bound != float("inf") else "+Inf", running))
        return rows


class DeadLetterStats(NamedTuple):
    """What the dead-letter folder holds: bytes of all files, live readings, the oldest's age."""

    size_bytes: int = 0
    live: int = 0
    oldest_age_s: float = 0.0


class Gauges(NamedTuple):
    """Where the gauges of the running service are read, when somebody scrapes."""

    buffer: Callable[[], BufferStats]
    dead_letters: Callable[[], DeadLetterStats]
    database_up: Callable[[], bool]
    hold_reason: Callable[[], str | None]
    journal: Callable[[], JournalStats] = JournalStats  # an empty one, with a buffer in memory
    state: Callable[[], str] = lambda: "starting"  # one of STATES


class Ledger:
    """The counters of one service."""

    def __init__(self) -> None:
        # The ledger, in readings.
        self.received = 0
        self.accepted = 0
        self.committed = 0
        self.duplicate = 0
        self.recovered = 0
        self.replayed = 0
        self.dropped = 0
        self.rejected: defaultdict[str, int] = defaultdict(int)
        self.dead_lettered: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.at_receiver = 0  # decoded, and neither in the buffer nor answered yet
        # The machinery.
        self.requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.request_s: dict[str, Histogram] = {}
        self.flushes: dict[str, int] = dict.fromkeys(TRIGGERS, 0)
        self.flush_rows = Histogram(ROWS_FLUSH)
        self.flush_s: dict[str, Histogram] = {}
        self.commit_s = Histogram(SECONDS_COMMIT)
        self.lag_s = Histogram(SECONDS_LAG)
        self.journal_sync_s = Histogram(SECONDS_SYNC)
        self.retries: defaultdict[str, int] = defaultdict(int)
        self.gauges: Gauges | None = None

    def request_answered(self, route: str, status: int, took_s: float) -> None:
        """Count one answered HTTP request; `route` is one of a closed set."""
        self.requests[route, status] += 1
        histogram = self.request_s.get(route)
        if histogram is None:
            histogram = self.request_s[route] = Histogram(SECONDS_HTTP)
        histogram.observe(took_s)

    def batch_gathered(self, trigger: str, rows: int) -> None:
        """Count one batch that goes to the database for the first time."""
        self.flushes[trigger] += 1
        self.flush_rows.observe(rows)

    def batch_stored(self, method: str, took_s: float, committed: int, duplicate: int) -> None:
        """Count one committed write."""
        histogram = self.flush_s.get(method)
        if histogram is None:
            histogram = self.flush_s[method] = Histogram(SECONDS_COMMIT)
        histogram.observe(took_s)
        self.committed += committed
        self.duplicate += duplicate

    def readings_dead_lettered(self, reason: str, count: int) -> None:
        """Count readings that are safe in the dead-letter queue."""
        self.dead_lettered[reason] += count

    def readings_rejected(self, code: str, count: int) -> None:
        """Count readings that were refused with a problem code and not kept."""
        self.rejected[code] += count

    @property
    def held(self) -> int:
        """Readings received and neither stored, set aside nor refused yet."""
        return (self.gauges.buffer().rows if self.gauges else 0) + self.at_receiver

    @property
    def imbalance(self) -> int:
        """What the law leaves over: 0, or readings were lost (> 0) or counted twice (< 0)."""
        came = self.received + self.recovered + self.replayed
        went = self.committed + self.duplicate + sum(self.rejected.values())
        return came - went - sum(self.dead_lettered.values()) - self.held
