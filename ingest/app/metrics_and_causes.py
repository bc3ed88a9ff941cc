"""All metrics, and all causes of /readyz with what to do about each.

A new one stands in the list of the part that knows it; here a new list is added. A gauge is read
by the process that has the part. Several processes tell each other what they read, by the name of
the gauge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from ingest import __version__
from ingest.access import tokens
from ingest.admin import exposition
from ingest.app import housekeeping, space
from ingest.app.annexes import annexes
from ingest.config.settings import Settings
from ingest.dead_letters import queue
from ingest.http import tls
from ingest.model import causes
from ingest.model.ledger import Ledger, Metric, Metrics
from ingest.receiver import senders
from ingest.system.words import command_words

METRIC_LISTS: tuple[Metrics[Any], ...] = (
    space.METRICS,
    senders.METRICS,
    housekeeping.METRICS,
    tls.METRICS,
    tokens.METRICS,
    *(each.metrics for each in annexes()),
)
GAUGES: dict[str, Metric[Any]] = {each.name: each for metrics in METRIC_LISTS for each in metrics}
ALL: Metrics[Any] = (*exposition.ALL, *GAUGES.values())


def values_of(ledger: Ledger) -> Iterator[tuple[Metric[Any], Any]]:
    """Yield all metrics that a process has now. What another version may send is left out."""
    yield from exposition.values_of(ledger)
    for name, value in ledger.gauges.figures().items() if ledger.gauges is not None else ():
        metric = GAUGES.get(name)
        if metric is not None and _has_form(value, metric):
            yield metric, value


def _has_form(value: Any, metric: Metric[Any]) -> bool:
    numbers = value.values() if isinstance(value, Mapping) else (value,)
    of_labels = bool(metric.labels) == isinstance(value, Mapping)
    return of_labels and all(isinstance(each, int | float) for each in numbers)


def own_metrics(ledger: Ledger) -> exposition.Exposition:
    """Return the metrics of this process alone."""
    return exposition.of_one(__version__, lambda: values_of(ledger))


def library_metrics(ledger: Ledger) -> exposition.Exposition:
    """Return the same for the registry of a program, which has those of the process itself."""
    return exposition.Exposition(
        lambda: [exposition.Shown("", __version__, values_of(ledger), None)], has_runtime=False
    )


OF_PROCESSES = {
    "starting": causes.Cause(
        "the table has not been checked yet",
        "Wait some seconds. If this lasts: `{log}`.",
        "ingestnoposttaken",
        rank=220,
    ),
    "draining": causes.Cause("the service is stopping", "", "", rank=230),
}
CAUSE_LISTS: tuple[Mapping[str, causes.Cause], ...] = (
    causes.CAUSES,
    OF_PROCESSES,
    queue.CAUSES,
    space.CAUSES,
    housekeeping.CAUSES,
    senders.CAUSES,
    *(each.causes for each in annexes()),
)
CAUSES = {name: cause for each in CAUSE_LISTS for name, cause in each.items()}


def cause_of(name: str) -> causes.Cause:
    """Return the entry of a cause; of a name such as `sqlstate_12345`, the entry for all those."""
    return CAUSES.get(name) or causes.UNKNOWN._replace(words=f"{causes.UNKNOWN.words} ({name})")


def rank_of(name: str) -> float:
    """Return a place in the order of importance: the most important cause has the least."""
    return cause_of(name).rank if name else inf


def next_step(name: str, fields: Mapping[str, str]) -> str:
    """Return what to do about a cause, in the words of `fields`; of no cause, nothing."""
    return cause_of(name).next_step.format_map(fields) if name else ""


CREDENTIALS = "/run/credentials/"  # of systemd


def advice(settings: Settings, url_origin: str) -> dict[str, str]:
    """Return a text for each of causes.FIELDS.

    `url_origin` is where database_url was set, as in Loaded.origins.
    """
    words = command_words()
    psql = 'psql "$ADMIN_URL"' if settings.database_url else f"{words['run']} psql"
    return {**words, "psql": psql, "fix_url": _fix_url(settings, url_origin, words["restart"])}


def _fix_url(settings: Settings, origin: str, restart: str) -> str:
    if not settings.database_url:
        return "Read the log of the embedded database in the state folder."
    if settings.database_url_file.startswith(CREDENTIALS):  # a copy, made at the start
        return f"Correct the file that the unit's LoadCredential names, then `{restart}`."
    if settings.database_url_file:
        return f"Correct the file {settings.database_url_file}; the service reads it again itself."
    place = origin if origin.startswith(("INGEST_", "--")) else f"database_url in {origin}"
    how = " with the same command and options" if place.startswith("--") else f": `{restart}`"
    return f"Correct {place}, then restart the service{how}."
