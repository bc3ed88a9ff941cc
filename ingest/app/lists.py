"""All metrics. A new one stands in the list of the part that knows it; here a new list is added.

A gauge is read by the process that has the part. Several processes tell each other what they read,
by the name of the gauge.

All causes of /readyz. A new one stands in the list of its part; here a new list is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from ingest import __version__
from ingest.access import tokens
from ingest.admin import exposition as ledger_metrics
from ingest.admin.exposition import Exposition, of_one
from ingest.app import housekeeping, space
from ingest.app.annexes import annexes
from ingest.dead_letters import queue
from ingest.http import tls
from ingest.model import causes
from ingest.model.causes import UNKNOWN, Cause
from ingest.model.ledger import Ledger, Metric, Metrics
from ingest.receiver import senders

METRIC_LISTS: tuple[Metrics[Any], ...] = (
    space.METRICS,
    senders.METRICS,
    housekeeping.METRICS,
    tls.METRICS,
    tokens.METRICS,
    *(each.metrics for each in annexes()),
)
GAUGES: dict[str, Metric[Any]] = {each.name: each for metrics in METRIC_LISTS for each in metrics}
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


OF_PROCESSES = {
    "starting": Cause(
        "the table has not been checked yet",
        "Wait some seconds. If this lasts: `{log}`.",
        "ingestnoposttaken",
        rank=220,
    ),
    "draining": Cause("the service is stopping", "", "", rank=230),
}
CAUSE_LISTS: tuple[Mapping[str, Cause], ...] = (
    causes.CAUSES,
    space.CAUSES_OF_WAITS,
    OF_PROCESSES,
    queue.CAUSES,
    space.CAUSES,
    housekeeping.CAUSES,
    senders.CAUSES,
    *(each.causes for each in annexes()),
)
CAUSES = {name: cause for each in CAUSE_LISTS for name, cause in each.items()}


def cause_of(name: str) -> Cause:
    """Return the entry of a cause; of a name such as `sqlstate_12345`, the entry for all those."""
    return CAUSES.get(name) or UNKNOWN._replace(words=f"{UNKNOWN.words} ({name})")


def rank_of(name: str) -> float:
    """Return a place in the order of importance: the most important cause has the least."""
    return cause_of(name).rank if name else inf


def may_be_url(name: str) -> bool:
    """Whether a wrong URL of the database may be the cause."""
    return bool(name) and "{fix_url}" in cause_of(name).next_step


def next_step(name: str, fields: Mapping[str, str]) -> str:
    """Return what to do about a cause, in the words of `fields`; of no cause, nothing."""
    return cause_of(name).next_step.format_map(fields) if name else ""
