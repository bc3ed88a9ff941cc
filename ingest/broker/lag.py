"""How far a forwarder is behind, and what is skipped so that it never fills the stream. No I/O.

The stream keeps a message until the writers and each named forwarder have done it. A forwarder
whose target is away for long would fill it, and the stream would then refuse posts. So beyond a
bound its oldest messages are skipped, until the lag is KEPT of the bound. Messages that the
writers have not done are not skipped: the stream keeps them anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

KEPT = 0.75
ABSENT = (
    1.25  # times the bound: then the writers' purge passes over messages, since nobody else does
)


def lag_bytes_max(configured: int, stream_bytes_max: int) -> int:
    """Return the bound of a forwarder: what is configured, or half of the stream."""
    return configured or stream_bytes_max // 2


class Lag(NamedTuple):
    """What the stream has and this forwarder has not done; the bytes are an estimate."""

    messages: int = 0
    size_bytes: int = 0
    first: int = 0  # the place before the first of these messages
    last: int = 0  # the place of the last one


def lag_of(stream: Mapping[str, Any], consumer: Mapping[str, Any]) -> Lag:
    """Return the lag from what the broker says of the stream and of a consumer."""
    state = stream["state"]
    first = max(consumer["ack_floor"]["stream_seq"], state["first_seq"] - 1)
    messages = max(0, state["last_seq"] - first)
    # All messages count alike, as if they had the same size.
    size_bytes = state["bytes"] * messages // max(1, state["messages"])
    return Lag(messages, min(size_bytes, state["bytes"]), first, state["last_seq"])


def place_to_skip_to(lag: Lag, bytes_max: int, writers_floor: int | None) -> int:
    """Return the place up to which messages are skipped; 0 if none are.

    Up to `writers_floor` the writers are done; None: there are no writers.
    """
    if lag.size_bytes <= bytes_max:
        return 0
    kept = int(lag.messages * bytes_max * KEPT / lag.size_bytes)
    place = lag.last - kept
    if writers_floor is not None:
        place = min(place, writers_floor)
    return place if place > lag.first else 0
