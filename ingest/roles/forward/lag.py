"""How far a forwarder has come: what it has counted, and how far it is behind.

Once a message is done, each of its readings is in exactly one of sent, filtered, dead_lettered and
skipped. Beyond a bound of the lag the forwarder passes over messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ingest.http_client.delivery import PostTally
from ingest.model.errors import BrokerAway, BrokerRefused
from ingest.model.ledger import Metric, Metrics
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.logins import STREAM, WRITER
from ingest.roles.nats.purge import Lag, lag_of, place_to_skip_to
from ingest.roles.nats.stream_state import state_of
from ingest.roles.nats.streams import Names, look
from ingest.system import clock
from ingest.system.logs import get_logger

LOOK_S = 2.0
LAG, NOT_OURS, MISSING = "lag", "not_ours", "missing"
SKIPPED = (LAG, NOT_OURS, MISSING)

_log = get_logger("forward")


class LagWatch:
    """Looks at the stream again and again. `skip_to(place)` passes over messages."""

    def __init__(
        self,
        connection: BrokerConnection,
        consumer: str,
        *,
        bytes_max: int,
        skip_to: Callable[[int], None],
    ) -> None:
        self.lag = Lag()
        self.missing = ""  # what does not exist, in words; empty if all does
        self.looked = False  # whether the broker has answered at all
        self.bytes_max = bytes_max
        self._connection = connection
        self._names = Names(STREAM, consumer, (WRITER,))
        self._skip_to = skip_to
        self._skipped_to = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Look until the event is set."""
        while not stopping.is_set():
            await self.look()
            await clock.sleep_unless(stopping, LOOK_S)

    async def look(self) -> None:
        """Look once. If the broker does not answer, nothing changes."""
        try:
            found = await look(self._connection, self._names)
        except (BrokerAway, BrokerRefused):
            return  # the connection says so
        self.looked = True
        state, writers = state_of(found), found.others.get(WRITER)
        if state is None:
            self.missing = f"there is no stream {STREAM}: `ingest stream apply` makes it"
            return
        if found.consumer is None:
            self.missing = (
                f"the stream has no consumer {self._names.consumer}: name this forwarder in the "
                "setting `forwards` of all parts, then run `ingest stream apply`"
            )
            return
        self.missing = ""
        self.lag = lag = lag_of(state, state.done_to)
        floor = None if writers is None else int(writers["ack_floor"]["stream_seq"])
        place = place_to_skip_to(lag, self.bytes_max, floor)
        if place > self._skipped_to:
            self._skipped_to = place
            _log.error(
                "forward_skipped",
                first=lag.first + 1,
                last=place,
                lag_bytes=lag.size_bytes,
                lag_bytes_max=self.bytes_max,
            )
            self._skip_to(place)


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
