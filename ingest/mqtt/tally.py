"""The counters of `ingest mqtt`, and their metrics.

A message that was received ends in exactly one of taken, dead_lettered, empty and dropped. One that
comes again, since it was not acknowledged, counts again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from paho.mqtt.client import topic_matches_sub

from ingest.http_client.delivery import PostTally
from ingest.model.ledger import Metric, Metrics

IGNORED_MAX = 20  # messages of a filter, one after the other; from here on it is told


class IgnoredMessages:
    """How many messages of each filter were ignored since the last one that was not.

    A source ignores a message that its `when` leaves out. If it ignores all of a filter, the filter
    or the source is wrong. A filter is that of `--topic`; a topic with two filters counts for both.
    """

    def __init__(self, filters: Iterable[str] = ()) -> None:
        self._counts = dict.fromkeys(filters, 0)

    def note(self, topic: str, messages: int, *, ignored: bool) -> list[str]:
        """Count messages of a topic; return the filters that are `all_ignored` from now on."""
        found = []
        for name, count in self._counts.items():
            if not topic_matches_sub(_unshared(name), topic):
                continue
            self._counts[name] = count + messages if ignored else 0
            if count < IGNORED_MAX <= self._counts[name]:
                found.append(name)
        return found

    @property
    def all_ignored(self) -> Sequence[str]:
        """The filters of which the last IGNORED_MAX messages were all ignored."""
        return [name for name, count in self._counts.items() if count >= IGNORED_MAX]


def _unshared(name: str) -> str:
    """Return what a filter of a shared subscription filters: $share/GROUP/FILTER."""
    return name.split("/", 2)[2] if name.startswith("$share/") else name


class MqttTally(PostTally):
    """See PostTally. `filters` are those of `--topic`."""

    def __init__(self, filters: Iterable[str] = ()) -> None:
        super().__init__()
        self.ignored = IgnoredMessages(filters)
        self.received = [0, 0]  # messages by QoS
        self.again = 0  # of these, those that the broker has sent before
        self.taken = 0  # the service has answered 2xx
        self.dead_lettered = 0
        self.empty = 0  # without a reading; as what clears a retained message
        self.dropped = 0  # with QoS 0, while too many waited
        self.connects = 0
        self.sessions_lost = 0


# Each has the label `mqtt`: the name of the process.
METRICS: Metrics[MqttTally] = (
    Metric(
        "mqtt_received_total",
        "Messages of the broker, by their QoS. Each delivery counts.",
        lambda it: dict(enumerate(it.received)),
        ("qos",),
    ),
    Metric(
        "mqtt_messages_total",
        "What became of them.",
        lambda it: {
            each: getattr(it, each) for each in ("taken", "dead_lettered", "empty", "dropped")
        },
        ("outcome",),
    ),
    Metric(
        "mqtt_posts_total",
        "Posts to the service, by the status of the answer; none: no answer.",
        lambda it: it.posts,
        ("status",),
    ),
    Metric(
        "mqtt_redelivered_total", "Messages that the broker has sent before.", lambda it: it.again
    ),
    Metric(
        "mqtt_connects_total", "Connections to the broker that were made.", lambda it: it.connects
    ),
    Metric(
        "mqtt_sessions_lost_total",
        "How often the broker had forgotten us: what waited is lost.",
        lambda it: it.sessions_lost,
    ),
    Metric(
        "mqtt_ignored_filters",
        "Filters of --topic of which the source has ignored the last 20 messages.",
        lambda it: len(it.ignored.all_ignored),
    ),
    Metric("mqtt_service_up", "1 if the service took the last post.", lambda it: it.up),
)
