"""All metrics. A new one stands in the list of the part that knows it; here a new list is added.

A gauge is read by the process that has the part. Several processes tell each other what they read,
by the name of the gauge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ingest import __version__
from ingest.access import tokens
from ingest.admin import ledger_metrics
from ingest.admin.exposition import Exposition, of_one
from ingest.app import fill, housekeeping
from ingest.app.annexes import annexes
from ingest.http import certificate
from ingest.model.ledger import Ledger
from ingest.model.metrics import Metric, Metrics
from ingest.receiver import senders

LISTS: tuple[Metrics[Any], ...] = (
    fill.METRICS,
    senders.METRICS,
    housekeeping.METRICS,
    certificate.METRICS,
    tokens.METRICS,
    *(each.metrics for each in annexes()),
)
GAUGES: dict[str, Metric[Any]] = {each.name: each for metrics in LISTS for each in metrics}
ALL: Metrics[Any] = (*ledger_metrics.ALL, *GAUGES.values())


def values_of(ledger: Ledger) -> Iterator[tuple[Metric[Any], Any]]:
    """Yield all metrics that a process has now. What another version may send is left out."""
    yield from ledger_metrics.values_of(ledger)
    for name, value in ledger.gauges.figures().items() if ledger.gauges is not None else ():
        metric = GAUGES.get(name)
        if metric is not None and _has_form(value, metric):
            yield metric, value


def _has_form(value: Any, metric: Metric[Any]) -> bool:
    numbers = value.values() if isinstance(value, Mapping) else (value,)
    of_labels = bool(metric.labels) == isinstance(value, Mapping)
    return of_labels and all(isinstance(each, int | float) for each in numbers)


def own_metrics(ledger: Ledger) -> Exposition:
    """Return the metrics of this process alone."""
    return of_one(__version__, lambda: values_of(ledger))
