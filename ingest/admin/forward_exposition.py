"""The metrics of a forwarder: their names, units and meanings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ingest.admin.process_exposition import build_info
from ingest.forward.tally import ForwardFigures, ForwardTally

_LABELS = ("forward",)


class ForwardCollector(Collector):
    """The metrics of one forwarder. `figures` is called at each scrape."""

    def __init__(
        self, tally: ForwardTally, figures: Callable[[], ForwardFigures], *, name: str, version: str
    ) -> None:
        self._tally = tally
        self._figures = figures
        self._name = name
        self._version = version

    def collect(self) -> Iterable[Metric]:
        """Return all of them."""
        yield build_info(self._version)
        yield from self._counters()
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        tally = self._tally
        readings = {
            "sent": tally.sent,
            "filtered": tally.filtered,
            "dead_lettered": tally.dead_lettered,
            "skipped": tally.skipped,
        }
        for name, meaning, label, counts in (
            (
                "readings",
                "Readings of the stream, by what became of them. Each delivery counts.",
                "outcome",
                readings,
            ),
            (
                "skipped",
                "Messages that were skipped: too far behind, not ours, or missing.",
                "why",
                tally.skipped_messages,
            ),
            (
                "posts",
                "Posts to the target, by the status of the answer; none: no answer.",
                "status",
                tally.posts,
            ),
        ):
            family = CounterMetricFamily(
                f"ingest_forward_{name}", meaning, labels=[*_LABELS, label]
            )
            for value, count in sorted(counts.items()):
                family.add_metric([self._name, value], count)
            yield family

    def _gauges(self) -> Iterator[Metric]:
        now = self._figures()
        for name, meaning, value in (
            ("up", "1 if the target took the last post.", float(self._tally.up)),
            ("held_messages", "Messages pulled and not done.", now.held_messages),
            ("oldest_age_seconds", "Age of the oldest reading in them.", now.oldest_age_s),
            ("lag_messages", "Messages of the stream that are not done.", now.lag_messages),
            ("lag_bytes", "About the bytes of these messages.", now.lag_bytes),
            (
                "lag_bytes_max",
                "With a larger lag, messages are skipped (forward_lag_bytes_max).",
                now.lag_bytes_max,
            ),
            ("dlq_readings", "Open dead letters of the forwarder.", now.dead_letters),
            ("dlq_bytes", "Bytes of the files of its dead letters.", now.dead_letter_bytes),
        ):
            family = GaugeMetricFamily(f"ingest_forward_{name}", meaning, labels=_LABELS)
            family.add_metric([self._name], value)
            yield family
