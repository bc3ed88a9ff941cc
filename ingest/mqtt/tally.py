"""The counters of `ingest mqtt`. admin/mqtt_exposition.py shows them as metrics.

A message that was received ends in exactly one of taken, dead_lettered, empty and dropped. One that
comes again, since it was not acknowledged, counts again.
"""

from __future__ import annotations

from typing import NamedTuple

from ingest.http_client.delivery import DeliveryTally


class MqttTally(DeliveryTally):
    """See DeliveryTally."""

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


class MqttFigures(NamedTuple):
    """What the metrics show beside the counters."""

    connected: bool = False
    held_messages: int = 0
    set_aside_messages: int = 0
    oldest_age_s: float = 0.0  # of the messages that are held
    dead_letters: int = 0
    dead_letter_bytes: int = 0
