"""The text of /metrics: of one process, or of several with the label `instance`.

Each part lists its metrics itself, see model/ledger.py. Here they become the format of Prometheus,
beside what Python and the operating system say of a process. Here is also the list of the ledger's
own metrics, and of the buffer, dead letters, journal and state that it names. The path counts in
plain integers, which are read at each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from os import getpid
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, core, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from ingest.model.ledger import (
    DeadLetterStats,
    Gauges,
    Histogram,
    Ledger,
    Metric,
    Metrics,
    Values,
    read,
)
from ingest.model.ports import STATES, BufferStats, JournalStats
from ingest.system.clock import monotonic_s

INSTANCE = "instance"  # the label of a process, if one port shows several


class Shown(NamedTuple):
    """One process, as a port shows it: `values` are those of its metrics. After its end no `pid`.

    `name` is that of one of several processes. `label` is one that all its own metrics have.
    """

    name: str
    version: str
    values: Values
    pid: int | None
    label: tuple[str, str] | None = None


# Of each process.
OF_SHOWN: Metrics[Shown] = (
    Metric("build_info", "Always 1.", lambda it: {it.version: 1}, ("version",)),
    Metric(
        "instance_up",
        "1 while this process reports its state, else 0.",
        lambda it: {it.name: it.pid is not None} if it.name else None,
        (INSTANCE,),
    ),
)


class Exposition(Collector):
    """The metrics of the processes that `shown` returns, of which the first is this one.

    If a process is replaced, the next one has the same name, and its counters begin at 0: for
    Prometheus that is a restart. A series of a gauge that has ended is 0 from then on: if it
    vanished, an alert could not resolve. `has_runtime`: with what Python says of this process.
    """

    def __init__(self, shown: Callable[[], Iterable[Shown]], *, has_runtime: bool = True) -> None:
        self._shown = shown
        self._seen: dict[tuple[str, str], set[Any]] = {}  # labels, by process and metric
        self._runtime = CollectorRegistry(auto_describe=False)
        if has_runtime:
            PlatformCollector(registry=self._runtime)
            GCCollector(registry=self._runtime)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self)

    def collect(self) -> list[core.Metric]:
        """Return all metrics."""
        families: dict[str, core.Metric] = {}
        for each in self._shown():
            of_first = () if families else self._runtime.collect()
            is_first = not families
            for family in (*self._of_process(each, is_first=is_first), *of_first):
                joint = families.setdefault(
                    family.name, core.Metric(family.name, family.documentation, family.type)
                )
                own = {INSTANCE: each.name} if each.name else {}
                joint.samples += [
                    sample._replace(labels={**own, **sample.labels}) for sample in family.samples
                ]
        return list(families.values())

    def _of_process(self, shown: Shown, *, is_first: bool) -> Iterator[core.Metric]:
        for metric, value in read(OF_SHOWN, shown):
            yield _family(metric, value)
        for metric, value in shown.values:
            if is_first or not metric.of_all:
                yield _family(metric, self._with_ended(shown.name, metric, value), shown.label)
        if (pid := shown.pid) is not None:
            yield from ProcessCollector(registry=None, pid=lambda: pid).collect()

    def _with_ended(self, process: str, metric: Metric[Any], value: Any) -> Any:
        if not metric.labels or metric.kind != "gauge":
            return value
        seen = self._seen.setdefault((process, metric.name), set())
        seen.update(value)
        return {**dict.fromkeys(seen, 0), **value}


def of_one(
    version: str, values: Callable[[], Values], label: tuple[str, str] | None = None
) -> Exposition:
    """Return the metrics of this process alone; `label` is one that all its own metrics have."""
    return Exposition(lambda: [Shown("", version, values(), getpid(), label)])


def _family(metric: Metric[Any], value: Any, label: tuple[str, str] | None = None) -> core.Metric:
    first = (label,) if label else ()
    names = [*(name for name, _ in first), *metric.labels]
    children = value if isinstance(value, Mapping) else {(): value}
    name = f"ingest_{metric.name}"
    family: Any = {
        "counter": core.CounterMetricFamily,
        "gauge": core.GaugeMetricFamily,
        "histogram": core.HistogramMetricFamily,
    }[metric.kind](name, metric.meaning, labels=names)
    for key, each in sorted(children.items()):
        keys = key if isinstance(key, tuple) else (key,)
        labels = [*(own for _, own in first), *(str(part) for part in keys)]
        if isinstance(each, Histogram):
            family.add_metric(labels, each.cumulative(), each.total)
        else:
            family.add_metric(labels, float(each))
    return family  # type: ignore[no-any-return]


METRICS: Metrics[Ledger] = (
    Metric("http_requests_total", "Requests answered.", lambda m: m.requests, ("route", "code")),
    Metric(
        "readings_received_total",
        "Decoded, invalid ones too.",
        lambda m: m.received,
    ),
    Metric(
        "readings_accepted_total",
        "Readings accepted.",
        lambda m: m.accepted,
    ),
    Metric(
        "readings_committed_total",
        "New in the table, as the database counts.",
        lambda m: m.committed,
    ),
    Metric(
        "readings_duplicate_total",
        "In the table already.",
        lambda m: m.duplicate,
    ),
    Metric(
        "readings_recovered_total",
        "From the journal of an earlier process.",
        lambda m: m.recovered,
    ),
    Metric(
        "readings_replayed_total",
        "Sent by the automatic replay.",
        lambda m: m.replayed,
    ),
    Metric(
        "readings_published_total",
        "The stream of the broker has them.",
        lambda m: m.published,
    ),
    Metric(
        "readings_delivered_total",
        "From the stream; each delivery counts.",
        lambda m: m.delivered,
    ),
    Metric(
        "readings_returned_total",
        "Given back to the stream.",
        lambda m: m.returned,
    ),
    Metric("readings_dropped_total", "Lost. Must stay 0.", lambda m: m.dropped),
    Metric(
        "readings_rejected_total",
        "Refused and not kept.",
        lambda m: m.rejected,
        ("code",),
    ),
    Metric(
        "posts_refused_total",
        "By problem code.",
        lambda m: m.posts_refused,
        ("code",),
    ),
    Metric(
        "connections_closed_total",
        "Closed or refused by a limit.",
        lambda m: m.connections_closed,
        ("cause",),
    ),
    Metric(
        "readings_dead_lettered_total",
        "Kept as dead letters.",
        lambda m: m.dead_lettered,
        ("reason",),
    ),
    Metric(
        "line_fields_changed_total",
        "Fields not stored as they came.",
        lambda m: m.line_fields,
        ("how",),
    ),
    Metric(
        "events_ignored_total",
        "Events without readings, of sources.",
        lambda m: m.events_ignored,
        ("source",),
    ),
    Metric(
        "flush_total",
        "Batches written, by why they were closed.",
        lambda m: m.flushes,
        ("trigger",),
    ),
    Metric(
        "retries_total",
        "Failed writes, by what was decided.",
        lambda m: {**dict.fromkeys(("wait", "retry", "isolate", "hold"), 0), **m.retries},
        ("verdict",),
    ),
    Metric(
        "http_request_duration_seconds",
        "From the end of the request headers to the answer.",
        lambda m: m.request_s,
        ("route",),
        buckets=True,
    ),
    Metric("flush_rows", "Readings in a batch.", lambda m: m.flush_rows, buckets=True),
    Metric(
        "flush_duration_seconds",
        "Time of a write that succeeded.",
        lambda m: m.flush_s,
        ("method",),
        buckets=True,
    ),
    Metric(
        "commit_latency_seconds",
        "From the receipt of a post to its commit.",
        lambda m: m.commit_s,
        buckets=True,
    ),
    Metric(
        "event_lag_seconds",
        "Age of a post's newest ts when it is committed.",
        lambda m: m.lag_s,
        buckets=True,
    ),
    Metric(
        "journal_sync_seconds",
        "Time of one fsync of the journal.",
        lambda m: m.journal_sync_s,
        buckets=True,
    ),
    Metric(
        "readings_held",
        "Readings without an outcome yet.",
        lambda m: m.held,
    ),
    Metric(
        "ledger_imbalance_rows",
        "Difference of the balance. Must be 0.",
        lambda m: m.imbalance,
    ),
)
OF_BUFFER: Metrics[BufferStats] = (
    Metric("buffer_rows", "Readings in the buffer, on the disk too.", lambda b: b.rows),
    Metric(
        "buffer_rows_max",
        "The setting buffer_rows_max.",
        lambda b: b.rows_max,
    ),
    Metric("buffer_used_ratio", "Share in use; at 1 posts wait.", lambda b: b.used),
    Metric("buffer_bytes", "Bytes in memory, with waiting posts.", lambda b: b.size_bytes),
    Metric(
        "buffer_oldest_age_seconds",
        "Age of its oldest post.",
        lambda b: 0 if b.oldest_received_s is None else monotonic_s() - b.oldest_received_s,
    ),
)
OF_DEAD_LETTERS: Metrics[DeadLetterStats] = (
    Metric(
        "dlq_share_used",
        "1 while a sender has used its share.",
        lambda d: bool(d.share_used_by),
    ),
    Metric("dlq_bytes", "Bytes of all dead-letter files.", lambda d: d.size_bytes, of_all=True),
    Metric(
        "dlq_readings",
        "Open dead-letter entries.",
        lambda d: d.live,
        of_all=True,
    ),
    Metric(
        "dlq_oldest_age_seconds",
        "Age of the oldest.",
        lambda d: d.oldest_age_s,
        of_all=True,
    ),
    Metric(
        "dlq_invalid_full",
        "1 while the dead letters are half full.",
        lambda d: d.invalid_full,
        of_all=True,
    ),
)
OF_JOURNAL: Metrics[JournalStats] = (
    Metric("journal_bytes", "Bytes of the journal.", lambda j: j.size_bytes, of_all=True),
    Metric("journal_segments", "Files of the journal.", lambda j: j.segments, of_all=True),
    Metric(
        "journal_damaged_total",
        "Files found damaged.",
        lambda j: j.damaged,
        of_all=True,
    ),
)
OF_STATE: Metrics[Gauges] = (
    Metric("db_up", "1 if the last contact succeeded.", lambda g: g.database_up()),
    Metric(
        "hold",
        "1 while writes are paused.",
        lambda g: {reason: 1} if (reason := g.hold_reason()) else {},
        ("reason",),
    ),
    Metric(
        "state",
        "1 for the state of /readyz, 0 for the others.",
        lambda g: {each: each == g.state() for each in STATES},
        ("state",),
    ),
)
ALL: Metrics[Any] = (*METRICS, *OF_BUFFER, *OF_DEAD_LETTERS, *OF_JOURNAL, *OF_STATE)


def values_of(ledger: Ledger) -> Iterator[tuple[Metric[Any], Any]]:
    """Yield the values of all these that a ledger has now."""
    yield from read(METRICS, ledger)
    if (gauges := ledger.gauges) is not None:
        yield from read(OF_BUFFER, gauges.buffer())
        yield from read(OF_DEAD_LETTERS, gauges.dead_letters())
        yield from read(OF_JOURNAL, gauges.journal())
        yield from read(OF_STATE, gauges)
