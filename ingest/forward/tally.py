"""The counters of a forwarder, and its metrics.

Once a message is done, each of its readings is in exactly one of sent, filtered, dead_lettered and
skipped.
"""

from __future__ import annotations

from typing import NamedTuple

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


class ForwardFigures(NamedTuple):
    """What the metrics show beside the counters. Lag: what the stream has and is not done yet."""

    lag_messages: int = 0
    lag_bytes: int = 0
    lag_bytes_max: int = 0
    held_messages: int = 0
    oldest_age_s: float = 0.0  # of the readings in these messages
    dead_letters: int = 0
    dead_letter_bytes: int = 0


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
OF_NOW: Metrics[ForwardFigures] = (
    Metric("forward_held_messages", "Messages pulled and not done.", lambda it: it.held_messages),
    Metric(
        "forward_oldest_age_seconds",
        "Age of the oldest reading in them.",
        lambda it: it.oldest_age_s,
    ),
    Metric(
        "forward_lag_messages",
        "Messages of the stream that are not done.",
        lambda it: it.lag_messages,
    ),
    Metric("forward_lag_bytes", "About the bytes of these messages.", lambda it: it.lag_bytes),
    Metric(
        "forward_lag_bytes_max",
        "With a larger lag, messages are skipped (forward_lag_bytes_max).",
        lambda it: it.lag_bytes_max,
    ),
    Metric(
        "forward_dlq_readings", "Open dead letters of the forwarder.", lambda it: it.dead_letters
    ),
    Metric(
        "forward_dlq_bytes",
        "Bytes of the files of its dead letters.",
        lambda it: it.dead_letter_bytes,
    ),
)
