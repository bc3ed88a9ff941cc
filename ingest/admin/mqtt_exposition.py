"""The metrics of `ingest mqtt`: their names, units and meanings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ingest.admin.process_exposition import build_info
from ingest.mqtt.tally import MqttFigures, MqttTally

_LABELS = ("mqtt",)


class MqttCollector(Collector):
    """The metrics of one `ingest mqtt`. `figures` is called at each scrape."""

    def __init__(
        self, tally: MqttTally, figures: Callable[[], MqttFigures], *, name: str, version: str
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
        outcomes = {
            "taken": tally.taken,
            "dead_lettered": tally.dead_lettered,
            "empty": tally.empty,
            "dropped": tally.dropped,
        }
        by_label: tuple[tuple[str, str, str, dict[str, int]], ...] = (
            (
                "received",
                "Messages of the broker, by their QoS. Each delivery counts.",
                "qos",
                {str(qos): count for qos, count in enumerate(tally.received)},
            ),
            ("messages", "What became of them.", "outcome", outcomes),
            (
                "posts",
                "Posts to the service, by the status of the answer; none: no answer.",
                "status",
                dict(tally.posts),
            ),
        )
        for name, meaning, label, counts in by_label:
            family = CounterMetricFamily(f"ingest_mqtt_{name}", meaning, labels=[*_LABELS, label])
            for value, count in sorted(counts.items()):
                family.add_metric([self._name, value], count)
            yield family
        for name, meaning, count in (
            ("redelivered", "Messages that the broker has sent before.", tally.again),
            ("connects", "Connections to the broker that were made.", tally.connects),
            (
                "sessions_lost",
                "How often the broker had forgotten us: what waited is lost.",
                tally.sessions_lost,
            ),
        ):
            family = CounterMetricFamily(f"ingest_mqtt_{name}", meaning, labels=_LABELS)
            family.add_metric([self._name], count)
            yield family

    def _gauges(self) -> Iterator[Metric]:
        now = self._figures()
        for name, meaning, value in (
            ("connected", "1 if the broker delivers messages.", float(now.connected)),
            ("service_up", "1 if the service took the last post.", float(self._tally.up)),
            ("held_messages", "Messages that are not acknowledged.", now.held_messages),
            (
                "set_aside_messages",
                "Of these, messages that the service refuses for now (413, 403).",
                now.set_aside_messages,
            ),
            ("oldest_age_seconds", "How long the oldest of them is here.", now.oldest_age_s),
            ("dlq_messages", "Open dead letters.", now.dead_letters),
            ("dlq_bytes", "Bytes of the files of these dead letters.", now.dead_letter_bytes),
        ):
            family = GaugeMetricFamily(f"ingest_mqtt_{name}", meaning, labels=_LABELS)
            family.add_metric([self._name], value)
            yield family
