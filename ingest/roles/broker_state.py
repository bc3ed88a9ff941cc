"""Causes that only roles have: why the broker is of no use now, and a process that is away."""

from __future__ import annotations

import math
from collections.abc import Callable

from ingest.model.causes import Cause, Trouble, trouble_of
from ingest.model.errors import BrokerFull, NotKept
from ingest.model.ledger import Metric, Metrics
from ingest.roles.nats.protocol import WRITER
from ingest.roles.nats.publishing import PUBLISH_WAIT_S_MAX
from ingest.roles.nats.stream_state import StreamState
from ingest.roles.nats.streams import StreamFault
from ingest.roles.nats.watch import StreamWatch
from ingest.system.clock import monotonic_s

BROKER_AWAY, BROKER_UNSAFE, BROKER_DISK = "broker_away", "broker_unsafe", "broker_disk"
STREAM_MISSING, STREAM_ALTERED, STREAM_FULL = "stream_missing", "stream_altered", "stream_full"
STREAM_LOST = "stream_lost"
INSTANCE_AWAY = "instance_away"
CAUSES = {
    INSTANCE_AWAY: Cause(
        "a process of the service does not report its state",
        "`up` starts it again by itself; else start it. If this lasts: `{log}`.",
        "ingestinstancedown",
        rank=30,
    ),
    STREAM_LOST: Cause(
        "acknowledged readings are gone from the stream",
        "The log line `stream_messages_removed` or `stream_messages_skipped` says how many. Check "
        "the disk of the broker. If the devices can, let them send the readings of that time "
        "again. Then restart: {restart}.",
        "ingeststreamskipped",
        rank=20,
    ),
    BROKER_AWAY: Cause(
        "the broker does not answer",
        "Start the broker, or repair the network to it: `{run} stream check` says more. The "
        "service continues by itself. A broker that `ingest up` has started is started again.",
        "ingestbrokeraway",
        rank=90,
    ),
    BROKER_DISK: Cause(
        "the broker cannot write to its disk",
        "Free some space on the disk of the broker, or repair it. Then restart nats-server: it "
        "does not recover by itself.",
        "ingestbrokeraway",
        rank=100,
    ),
    BROKER_UNSAFE: Cause(
        "the broker may lose acknowledged readings in a power cut",
        "Use nats-server 2.15.1 or later, with `sync_interval: always` in its block jetstream. "
        "`{run} stream check` says which server differs.",
        "ingestbrokeraway",
        rank=110,
    ),
    STREAM_MISSING: Cause(
        "the stream is missing",
        "Was it deleted? What it held is gone, except what is in the table. "
        "`{run} stream apply` makes a new one.",
        "ingeststreamaltered",
        rank=120,
    ),
    STREAM_ALTERED: Cause(
        "the stream is not as the service needs it",
        "`{run} stream check` prints what differs. Undo that change, or use `{run} stream apply`.",
        "ingeststreamaltered",
        rank=130,
    ),
    STREAM_FULL: Cause(
        "the stream is full",
        "Writers are slower than the posts come in, or the database is away: find out why, or "
        "raise stream_bytes_max if the disk of the broker has space, then `{run} stream apply`.",
        "ingeststreamfilling",
        rank=140,
    ),
}
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

    def trouble(self) -> Trouble:
        """Return why the broker is of no use now, or nothing if it does its work."""
        cause = self._cause()
        state = "full" if cause == STREAM_FULL else "broker_away" if cause else ""
        return trouble_of(CAUSES, cause)._replace(state=state)

    def _cause(self) -> str:
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

    def refusal(self) -> str | None:
        """Return the problem code for every post now, or None if posts are accepted.

        A message that is acknowledged now must not be lost. While the broker is away a post may
        wait for it, as long as a message may; after that no post waits any more.
        """
        is_away = self.away_s >= PUBLISH_WAIT_S_MAX
        return "broker_away" if self.watch.faults or is_away else None


def loss(messages: int) -> Trouble:
    """Return what is wrong if so many messages that were acknowledged are gone."""
    return trouble_of(CAUSES, STREAM_LOST if messages else "")


def _of_faults(faults: tuple[StreamFault, ...]) -> str:
    if not faults:
        return ""
    if any(each.fault == "is missing" for each in faults):
        return STREAM_MISSING
    return STREAM_ALTERED if any("server" not in each.where for each in faults) else BROKER_UNSAFE


METRICS: Metrics[BrokerState] = (
    Metric("broker_up", "1 while the broker is connected.", lambda it: it.away_s == 0),
    Metric(
        "stream_altered",
        "1 while it is not as it must be.",
        lambda it: bool(it.watch.faults),
    ),
    Metric(
        "stream_removed",
        "Messages removed before they were done.",
        lambda it: it.watch.removed,
    ),
)
# What a writer knows of the stream, and how long its oldest message has waited, in seconds.
OF_STREAM: Metrics[tuple[StreamState, float]] = (
    Metric("stream_bytes", "Bytes of the stream.", lambda it: it[0].size_bytes),
    Metric(
        "stream_bytes_max",
        "The setting stream_bytes_max.",
        lambda it: it[0].bytes_max,
    ),
    Metric(
        "stream_messages",
        "Its messages, done ones too.",
        lambda it: it[0].messages,
    ),
    Metric(
        "stream_oldest_age_seconds",
        "Age of the oldest that is not acknowledged.",
        lambda it: it[1],
    ),
    Metric(
        "consumer_pending",
        "Not delivered yet.",
        lambda it: {WRITER: it[0].waiting},
        ("consumer",),
    ),
    Metric(
        "consumer_ack_pending",
        "Delivered, not acknowledged.",
        lambda it: {WRITER: it[0].pending},
        ("consumer",),
    ),
    Metric(
        "consumer_redelivered",
        "Delivered again, not acknowledged.",
        lambda it: {WRITER: it[0].redelivered},
        ("consumer",),
    ),
)
