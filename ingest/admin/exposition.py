"""Every metric: its name, unit and meaning. Nothing else in the service knows a metric's name.

The path counts in a ledger; a collector turns its integers into samples when somebody scrapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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

from ingest.model.ledger import Histogram, Ledger
from ingest.model.ports import STATES, JournalStats
from ingest.system.clock import monotonic_s

_STATE = "1 for the state that /readyz shows, 0 for the others."


class Exposition:
    """Shows a ledger, and what the process uses of the machine, to whoever scrapes."""

    def __init__(self, ledger: Ledger, version: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_LedgerCollector(ledger, version))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _LedgerCollector(Collector):
    """Turns the integers into samples; every series exists from the first scrape on."""

    def __init__(self, ledger: Ledger, version: str) -> None:
        self._ledger = ledger
        self._version = version
        self._holds_seen: set[str] = set()

    def collect(self) -> Iterable[Metric]:
        yield from self._counters()
        yield from self._histograms()
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        m = self._ledger
        requests = CounterMetricFamily(
            "ingest_http_requests", "Requests answered.", labels=["route", "code"]
        )
        for (route, status), count in sorted(m.requests.items()):
            requests.add_metric([route, str(status)], count)
        yield requests
        for name, count, meaning in (
            ("received", m.received, "Readings decoded by the receiver, including invalid ones."),
            ("accepted", m.accepted, "Readings that were accepted: kept until they are stored."),
            ("committed", m.committed, "Readings newly in the table, by the database's own count."),
            ("duplicate", m.duplicate, "Readings that were in the table already."),
            ("recovered", m.recovered, "Readings read from the journal of an earlier process."),
            (
                "replayed",
                m.replayed,
                "Readings that the automatic replay took from the dead letters.",
            ),
            ("dropped", m.dropped, "Readings lost. Must stay 0."),
        ):
            yield CounterMetricFamily(f"ingest_readings_{name}", meaning, value=count)
        yield _labelled(
            "ingest_readings_rejected", "Readings refused and not kept.", "code", m.rejected
        )
        yield _labelled(
            "ingest_readings_dead_lettered",
            "Readings kept as dead letters.",
            "reason",
            m.dead_lettered,
        )
        yield _labelled(
            "ingest_flush",
            "Batches sent to the database, by the reason why the batch was closed.",
            "trigger",
            m.flushes,
        )
        verdicts = {each: m.retries.get(each, 0) for each in ("wait", "retry", "isolate", "hold")}
        yield _labelled(
            "ingest_retries",
            "Failed writes, by what was decided: wait, retry, isolate or hold.",
            "verdict",
            {**verdicts, **m.retries},
        )

    def _histograms(self) -> Iterator[Metric]:
        m = self._ledger
        yield _histogram(
            "ingest_http_request_duration_seconds",
            "From the end of the request headers to the answer.",
            {"route": m.request_s},
        )
        yield _histogram("ingest_flush_rows", "Readings in a batch.", m.flush_rows)
        yield _histogram(
            "ingest_flush_duration_seconds",
            "Time of a write that succeeded, from sending a batch to its commit.",
            {"method": m.flush_s},
        )
        yield _histogram(
            "ingest_commit_latency_seconds", "From the receipt of a post to its commit.", m.commit_s
        )
        yield _histogram(
            "ingest_event_lag_seconds", "Age of a post's newest ts when it is committed.", m.lag_s
        )
        yield _histogram(
            "ingest_journal_sync_seconds",
            "Time to write some posts to the journal, with one fsync for all.",
            m.journal_sync_s,
        )

    def _gauges(self) -> Iterator[Metric]:
        m = self._ledger
        build = GaugeMetricFamily("ingest_build_info", "Always 1.", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        yield GaugeMetricFamily(
            "ingest_readings_held",
            "Readings received, and not yet stored, dead-lettered or rejected.",
            value=m.held,
        )
        yield GaugeMetricFamily(
            "ingest_ledger_imbalance_rows",
            "Difference of the balance. Must be 0.",
            value=m.imbalance,
        )
        if m.gauges is None:
            return
        stats = m.gauges.buffer()
        oldest_s = stats.oldest_received_s
        letters = m.gauges.dead_letters()
        for name, meaning, value in (
            ("buffer_rows", "Readings in the buffer, including those on the disk.", stats.rows),
            ("buffer_rows_max", "Most readings in memory.", stats.rows_max),
            ("buffer_used_ratio", "Share of the buffer in use; at 1 posts wait.", stats.used),
            ("buffer_bytes", "Bytes in memory, including waiting posts.", stats.size_bytes),
            (
                "buffer_oldest_age_seconds",
                "Age of the oldest post in the buffer.",
                monotonic_s() - oldest_s if oldest_s is not None else 0.0,
            ),
            ("db_up", "1 if the last contact with the database succeeded.", m.gauges.database_up()),
            ("dlq_bytes", "Bytes of all dead-letter files.", letters.size_bytes),
            (
                "dlq_readings",
                "Dead-letter entries that are neither replayed nor discarded.",
                letters.live,
            ),
            ("dlq_oldest_age_seconds", "Age of the oldest such entry.", letters.oldest_age_s),
        ):
            yield GaugeMetricFamily(f"ingest_{name}", meaning, value=float(value))
        yield from _journal_families(m.gauges.journal())
        reason = m.gauges.hold_reason()
        if reason is not None:
            self._holds_seen.add(reason)
        hold = GaugeMetricFamily("ingest_hold", "1 while writes are paused.", labels=["reason"])
        for each in sorted(self._holds_seen):
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
