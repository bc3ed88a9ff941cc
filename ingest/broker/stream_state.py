"""How far the stream and its consumer have come, as numbers of the broker's answers. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ingest.broker.manage import Found

LOOKS_MAX = 256


class StreamState(NamedTuple):
    """Places count from 1 over the whole life of a stream. Without a consumer its numbers are 0."""

    made: str  # when, as the broker says: another stream of this name has another time
    first: int  # place of the first message; of the next one if there is none
    last: int  # place of the newest message, also if it was removed
    messages: int
    size_bytes: int
    bytes_max: int
    replicas: int
    oldest: str  # when the first message came, as the broker says
    leader: str  # the server that has answered; "" if it is the only one
    copies: tuple[str, ...]  # other servers whose copies are up to date
    consumer_made: str
    deliveries: int  # all so far, those of the same message too
    delivered_to: int  # the farthest place that was delivered, or was removed before that
    done_to: int  # all up to here are acknowledged, or were removed
    waiting: int  # messages that were not delivered yet
    pending: int  # delivered and not acknowledged
    redelivered: int  # of these, delivered more than once

    @property
    def end(self) -> int:
        """All up to this place should have been delivered. Then nothing may be unknown."""
        return self.last if self.consumer_made and not self.waiting else self.delivered_to


def state_of(found: Found) -> StreamState | None:
    """Return the numbers; None if there is no stream."""
    if found.stream is None:
        return None
    state, cluster = found.stream["state"], found.stream.get("cluster") or {}
    consumer: Mapping[str, Any] = found.consumer or {}
    delivered = consumer.get("delivered") or {}
    floor = consumer.get("ack_floor") or {}
    first = state["first_seq"]
    return StreamState(
        made=found.stream.get("created", ""),
        first=first if state["messages"] else max(first, state["last_seq"] + 1),
        last=state["last_seq"],
        messages=state["messages"],
        size_bytes=state["bytes"],
        bytes_max=found.stream["config"].get("max_bytes", 0),
        replicas=found.stream["config"].get("num_replicas", 1),
        oldest=state.get("first_ts", ""),
        leader=cluster.get("leader", ""),
        copies=tuple(
            each["name"]
            for each in cluster.get("replicas") or ()
            if each.get("current") and not each.get("offline")
        ),
        consumer_made=consumer.get("created", ""),
        deliveries=delivered.get("consumer_seq", 0),
        delivered_to=max(delivered.get("stream_seq", 0), first - 1) if consumer else 0,
        done_to=floor.get("stream_seq", 0),
        waiting=consumer.get("num_pending", 0),
        pending=consumer.get("num_ack_pending", 0),
        redelivered=consumer.get("num_redelivered", 0),
    )


class Undone:
    """How long the oldest message has waited that no writer has done. Call `age_s` again and again.

    The broker says how far the stream and its consumer are, and not when a message came that is
    not done yet. So the places at each look are remembered, with the time. It is exact to the time
    between two looks, or to a hundredth of the age. What was there before the first look counts
    from that look on. A few hundred looks are remembered, however long it lasts.
    """

    def __init__(self) -> None:
        self._looks: list[tuple[float, int]] = []  # when, and the newest place then
        self._made = ""
        self._pause_s = 0.0  # between two looks that are remembered

    def age_s(self, now_s: float, state: StreamState) -> float:
        """Return for how long the oldest message that is not done has been in the stream."""
        looks = self._looks
        if state.made != self._made:  # another stream: its places begin anew
            self._made = state.made
            looks.clear()
        if not looks or (state.last > looks[-1][1] and now_s - looks[-1][0] >= self._pause_s):
            looks.append((now_s, state.last))
        if not state.waiting and not state.pending:
            looks[:], self._pause_s = [(now_s, state.last)], 0.0
            return 0.0
        while len(looks) > 1 and looks[0][1] <= state.done_to:
            del looks[0]
        if len(looks) > LOOKS_MAX:
            del looks[1::2]
            self._pause_s = 2 * (now_s - looks[0][0]) / LOOKS_MAX
        return now_s - looks[0][0] if looks[0][1] > state.done_to else 0.0
