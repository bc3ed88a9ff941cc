"""The text of /metrics: of one process, or of several with the label `instance`.

Each part lists its metrics itself, see model/metrics.py. Here they become the format of Prometheus,
beside what Python and the operating system say of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from os import getpid
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from ingest.model.metrics import Histogram, Metric, Metrics, Values, read

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
METRICS: Metrics[Shown] = (
    Metric("build_info", "Always 1.", lambda it: {it.version: 1}, ("version",)),
    Metric(
        "instance_up",
        "1 while this process reports its state, 0 after it has ended or fallen silent.",
        lambda it: {it.name: it.pid is not None} if it.name else None,
        (INSTANCE,),
    ),
)


class Exposition(Collector):
    """The metrics of the processes that `shown` returns, of which the first is this one.

    If a process is replaced, the next one has the same name, and its counters begin at 0: for
    Prometheus that is a restart. A series of a gauge that has ended is 0 from then on: if it
    vanished, an alert could not resolve.
    """

    def __init__(self, shown: Callable[[], Iterable[Shown]]) -> None:
        self._shown = shown
        self._seen: dict[tuple[str, str], set[Any]] = {}  # labels, by process and metric
        self._runtime = CollectorRegistry(auto_describe=False)
        PlatformCollector(registry=self._runtime)
        GCCollector(registry=self._runtime)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self)

    def collect(self) -> list[Family]:
        """Return all metrics."""
        families: dict[str, Family] = {}
        for each in self._shown():
            of_first = () if families else self._runtime.collect()
            is_first = not families
            for family in (*self._of_process(each, is_first=is_first), *of_first):
                joint = families.setdefault(
                    family.name, Family(family.name, family.documentation, family.type)
                )
                own = {INSTANCE: each.name} if each.name else {}
                joint.samples += [
                    sample._replace(labels={**own, **sample.labels}) for sample in family.samples
                ]
        return list(families.values())

    def _of_process(self, shown: Shown, *, is_first: bool) -> Iterator[Family]:
        for metric, value in read(METRICS, shown):
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


def of_one(version: str, values: Callable[[], Values], **label: str) -> Exposition:
    """Return the metrics of this process alone; `label` is one that all its own metrics have."""
    own = next(iter(label.items()), None)
    return Exposition(lambda: [Shown("", version, values(), getpid(), own)])


def _family(metric: Metric[Any], value: Any, label: tuple[str, str] | None = None) -> Family:
    first = (label,) if label else ()
    names = [*(name for name, _ in first), *metric.labels]
    children = value if isinstance(value, Mapping) else {(): value}
    name = f"ingest_{metric.name}"
    family: Any = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }[metric.kind](name, metric.meaning, labels=names)
    for key, each in sorted(children.items()):
        keys = key if isinstance(key, tuple) else (key,)
        labels = [*(own for _, own in first), *(str(part) for part in keys)]
        if isinstance(each, Histogram):
            family.add_metric(labels, each.cumulative(), each.total)
        else:
            family.add_metric(labels, float(each))
    return family  # type: ignore[no-any-return]
