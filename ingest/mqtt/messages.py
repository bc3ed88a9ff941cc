"""A message of a broker, and what a connection is asked for and grants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ingest.mqtt.broker_address import MqttAddress

if TYPE_CHECKING:
    from ingest.mqtt.connection import MqttConnection

NEVER_S = 0xFFFFFFFF  # as a session's expiry: it does not end


class MqttWish(NamedTuple):
    """How to connect, and what to subscribe to. Times in seconds; `version` is 5 or 3."""

    address: MqttAddress
    client_id: str
    topics: Sequence[str]
    version: int = 5
    receive_max: int = 1000
    session_s: int = NEVER_S
    keepalive_s: int = 30
    connect_s_max: float = 5.0


class MqttSessionFacts(NamedTuple):
    """What the broker has granted. `qos` is the lowest of all filters."""

    is_old: bool  # the broker has kept the session, with messages that wait
    session_s: int
    qos: int


@dataclass(slots=True, eq=False)
class MqttMessage:
    """A message: its payload, and how to acknowledge it. `packet_id` is 0 with QoS 0."""

    topic: str
    payload: bytes
    received_us: int
    packet_id: int = 0
    connection: MqttConnection | None = None
    is_again: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether we still have to care for it: else the broker sends it again."""
        return self.packet_id == 0 or (self.connection is not None and self.connection.is_open)
