"""Every metric: its name, unit and meaning. No other file has the name of a metric.

The path counts in a ledger. At each scrape a collector turns its integers into samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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

from ingest.admin.process_exposition import ProcessExposition
from ingest.model.ledger import BrokerFigures, Gauges, Histogram, Ledger
from ingest.model.ports import STATES
from ingest.system.clock import monotonic_s, unix_us

_STATE = "1 for the state that /readyz shows, 0 for the others."
INSTANCE = "instance"  # the label of a process, if one port shows several
# The figures of the broker and of the table that a process may have. `_total` is counted by the
# process itself; `consumer_..` has a value for each consumer; the others are the same in all.
BROKER_FIGURES = {
    "broker_up": "1 while there is a connection to the broker.",
    "stream_altered": "1 while the stream is missing, or is not as it must be.",
    "stream_bytes": "Bytes of the stream.",
    "stream_bytes_max": "Limit of stream_bytes (stream_bytes_max); then posts are refused.",
    "stream_messages": "Messages in the stream, including those that are done.",
    "stream_oldest_age_seconds": "Age of the oldest message that is not acknowledged.",
    "consumer_pending": "Messages that have not been delivered yet.",
    "consumer_ack_pending": "Messages that have been delivered and are not acknowledged.",
    "consumer_redelivered": "Messages that were delivered again and are not acknowledged.",
    "stream_removed": "Messages that somebody removed before they were done, as seen by processes.",
    "stream_skipped_total": "Messages that no writer was given, and that cannot be read any more.",
    "stream_unforwarded_total": "Messages that were removed, though a forwarder that does not run "
    "had not sent them.",
    "redeliveries_total": "Messages that came to this process and had been delivered before.",
    "sender_not_stored": "1 while all readings of a sender become dead letters.",
    "partitions": "Partitions of the table.",
    "partition_spans_ahead": "Days or months after the present one that have a partition.",
    "table_bytes": "Bytes of all partitions, with their indexes.",
    "table_full_in_seconds": "Time until the table fills the disk of the embedded database.",
    "housekeeping_steps_waiting": "Steps of the housekeeping that a person must confirm first.",
    "housekeeping_steps_failed": "Steps that the last run of the housekeeping could not do; 1 if "
    "it could not run.",
    "table_oldest_age_seconds": "Age of the oldest reading in the table.",
}


class Exposition(ProcessExposition):
    """The metrics of a ledger and of the process."""

    def __init__(self, ledger: Ledger, version: str) -> None:
        super().__init__(LedgerCollector(ledger, version))


class Shown(NamedTuple):
    """One process of several, as a port shows it. `pid` is None after its end.

    `has_folder`: it shows the figures of the state folder and the dead letters.
    """

    name: str
    version: str
    ledger: Ledger
    pid: int | None
    has_folder: bool


class JointExposition:
    """The metrics of several processes, each series with the label `instance`.

    `shown` returns the processes, of which the first is this one. If a process is replaced, its
    successor has the same name, and its counters begin at 0: for Prometheus that is a restart.
    """

    def __init__(self, shown: Callable[[], Iterable[Shown]]) -> None:
        self._shown = shown
        self._collectors: dict[str, LedgerCollector] = {}
        self._runtime = CollectorRegistry(auto_describe=False)
        PlatformCollector(registry=self._runtime)
        GCCollector(registry=self._runtime)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(_Collected(self.families()))

    def families(self) -> list[Metric]:
        """Return all metrics."""
        families: dict[str, Metric] = {}
        for each in self._shown():
            of_first = () if families else self._runtime.collect()
            for family in (*self._of_all(each), *of_first):
                joint = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                joint.samples += [
                    sample._replace(labels={INSTANCE: each.name, **sample.labels})
                    for sample in family.samples
                ]
        return list(families.values())

    def _of_all(self, shown: Shown) -> Iterator[Metric]:
        up = "1 while this process reports its state, 0 after it has ended or fallen silent."
        yield GaugeMetricFamily("ingest_instance_up", up, value=float(shown.pid is not None))
        collector = self._collectors.setdefault(
            shown.name, LedgerCollector(shown.ledger, shown.version)
        )
        collector.show(shown.ledger, shown.version, has_folder=shown.has_folder)
        yield from collector.collect()
        if (pid := shown.pid) is not None:
            yield from ProcessCollector(registry=None, pid=lambda: pid).collect()


class _Collected(Collector):
    """What generate_latest asks for metrics."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class LedgerCollector(Collector):
    """Turns the ledger into samples. Every series exists from the first scrape on."""

    def __init__(self, ledger: Ledger, version: str) -> None:
        self._ledger = ledger
        self._version = version
        self._has_folder = True
        self._holds_seen: set[str] = set()

    def show(self, ledger: Ledger, version: str, *, has_folder: bool) -> None:
        """Show another ledger from now on."""
        self._ledger, self._version, self._has_folder = ledger, version, has_folder

    def collect(self) -> Iterable[Metric]:
        """Return all metrics; see Collector."""
        yield from self._counters()
        yield from self._labelled_counters()
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
            ("replayed", m.replayed, "Readings taken by the automatic replay of dead letters."),
            ("published", m.published, "Readings that the stream of the broker has."),
            ("delivered", m.delivered, "Readings that came from the stream; each delivery counts."),
            ("returned", m.returned, "Readings that were given back to the stream."),
            ("dropped", m.dropped, "Readings lost. Must stay 0."),
        ):
            yield CounterMetricFamily(f"ingest_readings_{name}", meaning, value=count)

    def _labelled_counters(self) -> Iterator[Metric]:
        m = self._ledger
        retries = {**dict.fromkeys(("wait", "retry", "isolate", "hold"), 0), **m.retries}
        for name, meaning, label, counts in (
            ("readings_rejected", "Readings refused and not kept.", "code", m.rejected),
            (
                "posts_refused",
                "Requests to the data port that were refused, by problem code.",
                "code",
                m.posts_refused,
            ),
            (
                "connections_closed",
                "Connections that were closed or refused because of a limit.",
                "cause",
                m.connections_closed,
            ),
            ("readings_dead_lettered", "Readings kept as dead letters.", "reason", m.dead_lettered),
            ("line_fields_changed", "Fields not stored as they came.", "how", m.line_fields),
            ("events_ignored", "Events without readings, of sources.", "source", m.events_ignored),
            (
                "flush",
                "Batches sent to the database, by the reason why the batch was closed.",
                "trigger",
                m.flushes,
            ),
            (
                "retries",
                "Failed writes, by what was decided: wait, retry, isolate or hold.",
                "verdict",
                retries,
            ),
        ):
            yield _labelled(CounterMetricFamily, name, meaning, label, sorted(counts.items()))

    def _histograms(self) -> Iterator[Metric]:
        m = self._ledger
        for name, meaning, label, source in (
            (
                "http_request_duration_seconds",
                "From the end of the request headers to the answer.",
                "route",
                m.request_s,
            ),
            ("flush_rows", "Readings in a batch.", "", m.flush_rows),
            (
                "flush_duration_seconds",
                "Time of a write that succeeded, from sending a batch to its commit.",
                "method",
                m.flush_s,
            ),
            ("commit_latency_seconds", "From the receipt of a post to its commit.", "", m.commit_s),
            ("event_lag_seconds", "Age of a post's newest ts when it is committed.", "", m.lag_s),
            (
                "journal_sync_seconds",
                "Time to write some posts to the journal, with one fsync for all.",
                "",
                m.journal_sync_s,
            ),
        ):
            labels = [label] if label else None
            family = HistogramMetricFamily(f"ingest_{name}", meaning, labels=labels)
            children = {"": source} if isinstance(source, Histogram) else source
            for value, histogram in sorted(children.items()):
                family.add_metric([value] if label else [], histogram.cumulative(), histogram.total)
            yield family

    def _gauges(self) -> Iterator[Metric]:
        m = self._ledger
        version = [(self._version, 1.0)]
        yield _labelled(GaugeMetricFamily, "build_info", "Always 1.", "version", version)
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
        of_folder = _of_folder(m.gauges) if self._has_folder else ()
        for name, meaning, value in (*_of_buffer(m.gauges), *of_folder):
            yield GaugeMetricFamily(f"ingest_{name}", meaning, value=float(value))
        if self._has_folder:
            yield CounterMetricFamily(
                "ingest_journal_damaged",
                "Files of the journal found damaged.",
                value=m.gauges.journal().damaged,
            )
        yield from _of_broker(m.gauges.broker())
        if (ends_s := m.gauges.certificate_ends_s()) is not None:
            left_s, until = ends_s - unix_us() / 1e6, "Until the data port's certificate ends."
            yield GaugeMetricFamily("ingest_certificate_ends_seconds", until, value=left_s)
        if (left := m.gauges.tokens_end_s()) is not None:
            ends = "Until the next token ends, of those that end."
            yield GaugeMetricFamily("ingest_tokens_end_seconds", ends, value=left)
        reason = m.gauges.hold_reason()
        if reason is not None:
            self._holds_seen.add(reason)
        holds = [(each, float(each == reason)) for each in sorted(self._holds_seen)]
        yield _labelled(GaugeMetricFamily, "hold", "1 while writes are paused.", "reason", holds)
        now = m.gauges.state()
        states = [(each, float(each == now)) for each in STATES]
        yield _labelled(GaugeMetricFamily, "state", _STATE, "state", states)


def _of_buffer(gauges: Gauges) -> Iterator[tuple[str, str, float]]:
    stats = gauges.buffer()
    yield "buffer_rows", "Readings in the buffer, including those on the disk.", stats.rows
    yield "buffer_rows_max", "Limit of the readings in memory (buffer_rows_max).", stats.rows_max
    yield "buffer_used_ratio", "Share of the buffer in use; if it is 1, posts wait.", stats.used
    yield "buffer_bytes", "Bytes in memory, including waiting posts.", stats.size_bytes
    oldest_s = stats.oldest_received_s
    age_s = monotonic_s() - oldest_s if oldest_s is not None else 0.0
    yield "buffer_oldest_age_seconds", "Age of the oldest post in the buffer.", age_s
    yield (
        "dlq_share_used",
        "1 while posts of a sender are refused if an item is invalid: its share is used.",
        bool(gauges.dead_letters().share_used_by),
    )
    if (up := gauges.database_up()) is not None:
        yield "db_up", "1 if the last contact with the database succeeded.", up


def _of_folder(gauges: Gauges) -> Iterator[tuple[str, str, float]]:
    letters, journal, limits = gauges.dead_letters(), gauges.journal(), gauges.limits
    waiting = "Dead-letter entries that are neither replayed nor discarded."
    yield "dlq_bytes", "Bytes of all dead-letter files.", letters.size_bytes
    yield "dlq_bytes_max", "Limit of dlq_bytes (dlq_bytes_max).", limits.dlq_bytes_max
    yield "dlq_readings", waiting, letters.live
    yield "dlq_oldest_age_seconds", "Age of the oldest such entry.", letters.oldest_age_s
    full = "1 while posts with an invalid item are refused: the dead letters are half full."
    yield "dlq_invalid_full", full, letters.invalid_full
    yield "journal_bytes", "Bytes of the journal.", journal.size_bytes
    limit = "Limit of journal_bytes (journal_bytes_max); 0 without a journal."
    yield "journal_bytes_max", limit, limits.journal_bytes_max
    yield "journal_segments", "Files of the journal.", journal.segments
    if (free := gauges.disk_free_bytes()) is None:
        return
    yield "disk_free_bytes", "Free space of the state folder, at the last check.", free
    least = "With less free space posts are refused (disk_free_bytes_min)."
    yield "disk_free_bytes_min", least, limits.disk_free_bytes_min


def _of_broker(figures: BrokerFigures) -> Iterator[Metric]:
    for name, value in figures.items():
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        plain = name.removesuffix("_total")
        meaning = BROKER_FIGURES.get(name, "A figure of the broker.")
        if isinstance(value, Mapping):
            yield _labelled(kind, plain, meaning, "consumer", sorted(value.items()))
        else:
            yield kind(f"ingest_{plain}", meaning, value=value)


def _labelled(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    meaning: str,
    label: str,
    samples: Iterable[tuple[str, float]],
) -> Metric:
    family = kind(f"ingest_{name}", meaning, labels=[label])
    for value, sample in samples:
        family.add_metric([value], sample)
    return family
