"""The counters of a forwarder, and their metrics.

Once a message is done, each of its readings is in exactly one of sent, filtered, dead_lettered and
skipped.
"""

from __future__ import annotations

from ingest.http_client.server_posts import PostTally
from ingest.model.metrics import Metric, Metrics

LAG, NOT_OURS, MISSING = "lag", "not_ours", "missing"
SKIPPED = (LAG, NOT_OURS, MISSING)


class ForwardTally(PostTally):
    """See PostTally."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0  # readings, as all of these
        self.filtered = 0
        self.dead_lettered = 0
        self.skipped = 0
        # The causes are there from the start: Prometheus cannot see the first step of a new series.
        self.skipped_messages = dict.fromkeys(SKIPPED, 0)

    def pass_over(self, why: str, messages: int, readings: int) -> None:
        """Count messages that are not sent. Of `missing` ones the readings are not known."""
        self.skipped_messages[why] += messages
        self.skipped += readings


# Each has the label `forward`: the name of the forwarder.
METRICS: Metrics[ForwardTally] = (
    Metric(
        "forward_readings_total",
        "Readings of the stream, by what became of them. Each delivery counts.",
        lambda it: {
            each: getattr(it, each) for each in ("sent", "filtered", "dead_lettered", "skipped")
        },
        ("outcome",),
    ),
    Metric(
        "forward_skipped_total",
        "Messages that were skipped: too far behind, not ours, or missing.",
        lambda it: it.skipped_messages,
        ("why",),
    ),
    Metric(
        "forward_posts_total",
        "Posts to the target, by the status of the answer; none: no answer.",
        lambda it: it.posts,
        ("status",),
    ),
    Metric("forward_up", "1 if the target took the last post.", lambda it: it.up),
)
