"""What a metric is. A part that has some lists them as METRICS beside it.

ingest/app/metrics.py collects the lists. /metrics and the tables of the documents come from them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeVar

Part = TypeVar("Part")
# Of gauges that are read with the part that has them; those of several processes travel as JSON.
Figures = Mapping[str, float | Mapping[str, float]]


class Histogram:
    """Counts of observations per bucket; `bounds` are inclusive upper bounds, ascending."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count one observation, or several of the same value."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def observe_all(self, values: Sequence[float]) -> None:
        """Count some observations. They must be sorted, the largest first."""
        most, least = bisect_left(self.bounds, values[0]), bisect_left(self.bounds, values[-1])
        if most == least:  # nearly always: all are in one bucket
            self.counts[most] += len(values)
            self.total += sum(values)
        else:
            for value in values:
                self.observe(value)

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add the counts of another histogram with the same bounds. Raises ValueError."""
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.total += total

    def cumulative(self) -> list[tuple[str, float]]:
        """Return pairs (upper bound, count up to it), the form that Prometheus expects."""
        bounds = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))


class Metric(NamedTuple, Generic[Part]):
    """One metric. `ingest_` is put before its name, whose end is the unit; `_total`: a counter.

    `read` returns the value that the part has now. With labels that is a dict: a value by label, or
    by a tuple of them. None: there is none now. `of_all`: it is the same for all processes, so of
    several only the first one shows it.
    """

    name: str
    meaning: str
    read: Callable[[Part], Any]
    labels: tuple[str, ...] = ()
    buckets: bool = False  # its values are histograms
    of_all: bool = False

    @property
    def kind(self) -> str:
        """Its type, as Prometheus calls it."""
        if self.buckets:
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"


Metrics = Sequence[Metric[Part]]
Values = Iterable[tuple[Metric[Any], Any]]


def read(metrics: Metrics[Part], part: Part | None) -> Iterator[tuple[Metric[Any], Any]]:
    """Yield the values that a part has now; nothing if there is no part yet."""
    for each in metrics if part is not None else ():
        if (value := each.read(part)) is not None:  # type: ignore[arg-type]  # it is not None here
            yield each, value


def figures_of(*sources: tuple[Metrics[Any], Callable[[], Any]]) -> Callable[[], Figures]:
    """Return what reads some gauges by name; of each part that a source has, or None."""
    return lambda: {
        each.name: value for metrics, part in sources for each, value in read(metrics, part())
    }
