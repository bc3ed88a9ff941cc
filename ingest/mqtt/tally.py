"""The counters of `ingest mqtt`, and their metrics.

A message that was received ends in exactly one of taken, dead_lettered, empty and dropped. One that
comes again, since it was not acknowledged, counts again.
"""

from __future__ import annotations

from ingest.http_client.delivery import PostTally
from ingest.model.ledger import Metric, Metrics


class MqttTally(PostTally):
    """See PostTally."""

    def __init__(self) -> None:
        super().__init__()
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
    Metric("mqtt_service_up", "1 if the service took the last post.", lambda it: it.up),
)
