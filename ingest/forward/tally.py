"""The counters of a forwarder. admin/forward_exposition.py shows them as metrics.

Once a message is done, each of its readings is in exactly one of sent, filtered, dead_lettered and
skipped.
"""

from __future__ import annotations

from typing import NamedTuple

from ingest.http_client.delivery import DeliveryTally

LAG, NOT_OURS, MISSING = "lag", "not_ours", "missing"
SKIPPED = (LAG, NOT_OURS, MISSING)


class ForwardTally(DeliveryTally):
    """See DeliveryTally."""

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
