"""Why the broker is of no use now, as the state of a role shows it."""

from __future__ import annotations

import math
from collections.abc import Callable

from ingest.broker.manage import StreamFault
from ingest.broker.roles import WRITER
from ingest.broker.stream_state import StreamState
from ingest.broker.watch import StreamWatch
from ingest.model.causes import (
    BROKER_AWAY,
    BROKER_DISK,
    BROKER_UNSAFE,
    STREAM_ALTERED,
    STREAM_FULL,
    STREAM_MISSING,
)
from ingest.model.errors import BrokerFull, NotKept
from ingest.model.metrics import Metric, Metrics
from ingest.model.ports import Admission
from ingest.system.clock import monotonic_s

FULL_ABOVE = 0.9  # of the bytes of the stream
AWAY_S = 2.0  # a shorter absence, as at the restart of a server, is no state


class BrokerState:
    """What a role says of the broker. For a role that publishes:

    `unanswered_s` returns how long the oldest message has had no answer, `refused` why the last
    message was not kept, None if it was; `acknowledged_s` when the stream has last taken one.
    """

    def __init__(
        self,
        watch: StreamWatch,
        *,
        unanswered_s: Callable[[], float] = float,
        refused: Callable[[], NotKept | None] = lambda: None,
        acknowledged_s: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        self.watch = watch
        self._acknowledged_s = acknowledged_s
        self._unanswered_s = unanswered_s
        self._refused = refused

    def cause(self) -> str:
        """Return a key of causes.CAUSES, or nothing if the broker does its work."""
        watch = self.watch
        if watch.disk_failed:
            return BROKER_DISK
        if self.away_s >= AWAY_S or self._unanswered_s() >= AWAY_S:
            return BROKER_AWAY
        if isinstance(self._refused(), BrokerFull) and self._is_nearly_full():
            return STREAM_FULL
        return _of_faults(watch.faults)

    def _is_nearly_full(self) -> bool:
        """Whether it is so at the last look: nobody publishes any more to find that out."""
        state = self.watch.state
        return state is not None and state.size_bytes > FULL_ABOVE * state.bytes_max

    @property
    def away_s(self) -> float:
        """For how long the broker has not answered, in seconds; 0 if it answers.

        While servers choose leaders, a question of the watch may get no answer, and messages do.
        """
        since_s = self.watch.away_since_s
        return 0.0 if since_s is None else monotonic_s() - max(since_s, self._acknowledged_s())

    @property
    def is_unsafe(self) -> bool:
        """Whether a message that is acknowledged now could be lost."""
        return bool(self.watch.faults)


class BrokerAdmission:
    """Whether a gateway takes posts: implements ports.Admission.

    While the broker is away a post may wait `away_s_max` for it. After that no post waits any more.
    """

    def __init__(self, health: Admission, state: BrokerState, *, away_s_max: float) -> None:
        self._health = health
        self._state = state
        self._away_s_max = away_s_max

    def refusal(self) -> str | None:
        """Return the problem code for every post now, or None if posts are accepted."""
        refusal = self._health.refusal()
        if refusal is None and (self._state.is_unsafe or self._state.away_s >= self._away_s_max):
            return "broker_away"
        return refusal


def _of_faults(faults: tuple[StreamFault, ...]) -> str:
    if not faults:
        return ""
    if any(each.fault == "is missing" for each in faults):
        return STREAM_MISSING
    return STREAM_ALTERED if any("server" not in each.where for each in faults) else BROKER_UNSAFE


METRICS: Metrics[BrokerState] = (
    Metric("broker_up", "1 while there is a connection to the broker.", lambda it: it.away_s == 0),
    Metric(
        "stream_altered",
        "1 while the stream is missing, or is not as it must be.",
        lambda it: bool(it.watch.faults),
    ),
    Metric(
        "stream_removed",
        "Messages that somebody removed before they were done, as seen by processes.",
        lambda it: it.watch.removed,
    ),
)
# What a writer knows of the stream, and how long its oldest message has waited, in seconds.
OF_STREAM: Metrics[tuple[StreamState, float]] = (
    Metric("stream_bytes", "Bytes of the stream.", lambda it: it[0].size_bytes),
    Metric(
        "stream_bytes_max",
        "Limit of stream_bytes (stream_bytes_max); then posts are refused.",
        lambda it: it[0].bytes_max,
    ),
    Metric(
        "stream_messages",
        "Messages in the stream, including those that are done.",
        lambda it: it[0].messages,
    ),
    Metric(
        "stream_oldest_age_seconds",
        "Age of the oldest message that is not acknowledged.",
        lambda it: it[1],
    ),
    Metric(
        "consumer_pending",
        "Messages that have not been delivered yet.",
        lambda it: {WRITER: it[0].waiting},
        ("consumer",),
    ),
    Metric(
        "consumer_ack_pending",
        "Messages that have been delivered and are not acknowledged.",
        lambda it: {WRITER: it[0].pending},
        ("consumer",),
    ),
    Metric(
        "consumer_redelivered",
        "Messages that were delivered again and are not acknowledged.",
        lambda it: {WRITER: it[0].redelivered},
        ("consumer",),
    ),
)
