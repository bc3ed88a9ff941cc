"""Every metric: its name, unit and meaning, and the ledger behind the law.

The path counts in plain integers on one event loop (an increment costs 30 ns; a client library's
counter 300) and a collector turns them into samples when somebody scrapes. Nothing else in the
service knows a metric's name. Counters are per life of a process.

The law, at every quiet moment:
received + recovered + replayed = committed + duplicate + rejected + dead_lettered + held
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from ingest.clock import monotonic_s
from ingest.ports import REASONS, STATES, BufferStats, JournalStats

SECONDS_HTTP = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SECONDS_COMMIT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SECONDS_SYNC = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
SECONDS_LAG = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 21_600, 86_400, 604_800)
ROWS_FLUSH = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000)

_STATE = "1 for what /readyz says, 0 for the other states."

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


class Metrics:
    """The counters of one service, and the registry that shows them."""

    def __init__(self, version: str) -> None:
        self.version = version
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
        self.at_door = 0  # decoded, and neither in the buffer nor answered yet
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
        self.holds_seen: set[str] = set()
        self.gauges: Gauges | None = None
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_LedgerCollector(self))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

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
        return (self.gauges.buffer().rows if self.gauges else 0) + self.at_door

    @property
    def imbalance(self) -> int:
        """What the law leaves over: 0, or readings were lost (> 0) or counted twice (< 0)."""
        came = self.received + self.recovered + self.replayed
        went = self.committed + self.duplicate + sum(self.rejected.values())
        return came - went - sum(self.dead_lettered.values()) - self.held

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _LedgerCollector(Collector):
    """Turns the integers into samples; every series exists from the first scrape on."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        yield from self._counters()
        yield from self._histograms()
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        m = self._metrics
        requests = CounterMetricFamily(
            "ingest_http_requests", "Requests answered.", labels=["route", "code"]
        )
        for (route, status), count in sorted(m.requests.items()):
            requests.add_metric([route, str(status)], count)
        yield requests
        for name, count, meaning in (
            ("received", m.received, "Readings decoded at the door, invalid ones included."),
            ("accepted", m.accepted, "Readings kept on their way to the table."),
            ("committed", m.committed, "Readings newly in the table, by the database's own count."),
            ("duplicate", m.duplicate, "Readings that were in the table already."),
            ("recovered", m.recovered, "Readings that came from a journal at start."),
            ("replayed", m.replayed, "Readings that came back from the dead-letter queue."),
            ("dropped", m.dropped, "Readings lost. Must stay 0."),
        ):
            yield CounterMetricFamily(f"ingest_readings_{name}", meaning, value=count)
        yield _labelled(
            "ingest_readings_rejected", "Readings refused, not kept.", "code", m.rejected
        )
        yield _labelled(
            "ingest_readings_dead_lettered",
            "Readings kept in the dead-letter queue.",
            "reason",
            m.dead_lettered,
        )
        yield _labelled(
            "ingest_flush",
            "Batches sent to the database, by what closed them.",
            "trigger",
            m.flushes,
        )
        verdicts = {each: m.retries.get(each, 0) for each in ("wait", "retry", "isolate", "hold")}
        yield _labelled(
            "ingest_retries", "Failed writes, by verdict.", "verdict", {**verdicts, **m.retries}
        )

    def _histograms(self) -> Iterator[Metric]:
        m = self._metrics
        yield _histogram(
            "ingest_http_request_duration_seconds",
            "Head of a request read to answer handed over.",
            {"route": m.request_s},
        )
        yield _histogram("ingest_flush_rows", "Readings in a batch.", m.flush_rows)
        yield _histogram(
            "ingest_flush_duration_seconds",
            "A committed write, from sending to commit.",
            {"method": m.flush_s},
        )
        yield _histogram(
            "ingest_commit_latency_seconds", "Receipt to committed, per post.", m.commit_s
        )
        yield _histogram(
            "ingest_event_lag_seconds", "Age of a post's newest ts when it is committed.", m.lag_s
        )
        yield _histogram(
            "ingest_journal_sync_seconds",
            "A group of posts written and brought to the disk.",
            m.journal_sync_s,
        )

    def _gauges(self) -> Iterator[Metric]:
        m = self._metrics
        build = GaugeMetricFamily("ingest_build_info", "Always 1.", labels=["version"])
        build.add_metric([m.version], 1)
        yield build
        yield GaugeMetricFamily("ingest_readings_held", "Accepted, undecided yet.", value=m.held)
        yield GaugeMetricFamily(
            "ingest_ledger_imbalance_rows",
            "What the law leaves over. Must be 0.",
            value=m.imbalance,
        )
        if m.gauges is None:
            return
        stats = m.gauges.buffer()
        oldest_s = stats.oldest_received_s
        letters = m.gauges.dead_letters()
        for name, meaning, value in (
            ("buffer_rows", "Readings in the buffer, on the disk too.", stats.rows),
            ("buffer_rows_max", "Readings that memory may hold.", stats.rows_max),
            ("buffer_used_ratio", "Share of the buffer in use; at 1 posts wait.", stats.used),
            ("buffer_bytes", "Bytes in memory, waiting posts included.", stats.size_bytes),
            (
                "buffer_oldest_age_seconds",
                "Age of the oldest post in the buffer.",
                monotonic_s() - oldest_s if oldest_s is not None else 0.0,
            ),
            ("db_up", "1 if the last contact with the database went well.", m.gauges.database_up()),
            ("dlq_bytes", "Bytes of all dead-letter files.", letters.size_bytes),
            ("dlq_readings", "Live dead letters.", letters.live),
            ("dlq_oldest_age_seconds", "Age of the oldest live one.", letters.oldest_age_s),
        ):
            yield GaugeMetricFamily(f"ingest_{name}", meaning, value=float(value))
        yield from _journal_families(m.gauges.journal())
        reason = m.gauges.hold_reason()
        if reason is not None:
            m.holds_seen.add(reason)
        hold = GaugeMetricFamily("ingest_hold", "1 while writing is on hold.", labels=["reason"])
        for each in sorted(m.holds_seen):
            hold.add_metric([each], float(each == reason))
        yield hold
        state, now = GaugeMetricFamily("ingest_state", _STATE, labels=["state"]), m.gauges.state()
        for each in STATES:
            state.add_metric([each], float(each == now))
        yield state


def _journal_families(stats: JournalStats) -> Iterator[Metric]:
    for name, meaning, value in (
        ("bytes", "Bytes of the journal.", stats.size_bytes),
        ("segments", "Files of the journal.", stats.segments),
    ):
        yield GaugeMetricFamily(f"ingest_journal_{name}", meaning, value=float(value))
    yield CounterMetricFamily(
        "ingest_journal_damaged", "Files of the journal found damaged.", value=stats.damaged
    )


def _labelled(name: str, meaning: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, meaning, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family


def _histogram(
    name: str, meaning: str, source: Histogram | dict[str, dict[str, Histogram]]
) -> HistogramMetricFamily:
    if isinstance(source, Histogram):
        family = HistogramMetricFamily(name, meaning)
        family.add_metric([], source.cumulative(), source.total)
        return family
    ((label, children),) = source.items()
    family = HistogramMetricFamily(name, meaning, labels=[label])
    for value, histogram in sorted(children.items()):
        family.add_metric([value], histogram.cumulative(), histogram.total)
    return family
