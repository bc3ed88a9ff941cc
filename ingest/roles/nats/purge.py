"""Removes from the stream what all its consumers have done. Every writer runs it.

The stream keeps messages until we remove them, whatever becomes of its consumers: other kinds of
retention lose all of them with a consumer. Several writers may remove side by side.
A forwarder whose target is away for long would fill the stream, which then refuses posts. So beyond
a bound its oldest messages are skipped, until its lag is KEPT of the bound. What the writers have
not done is not skipped: the stream keeps it anyway.
Promises: a message is removed only if all named consumers have done or skipped it, `keep_s` ago,
and the audit has seen to it. If a named consumer is missing, nothing is removed. A consumer that
was made anew has done nothing yet.
Does not: know how long messages were done before this process began. It keeps them longer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ingest.model.errors import BrokerAway, BrokerRefused
from ingest.model.ledger import Metric, Metrics
from ingest.roles.nats import streams
from ingest.roles.nats.connection import WARNING_S, BrokerConnection
from ingest.roles.nats.protocol import STREAM, WRITER
from ingest.roles.nats.stream_state import StreamState, mark_of, state_of
from ingest.roles.nats.streams import READINGS, StreamFault
from ingest.system import clock
from ingest.system.logs import Occasionally, get_logger
from ingest.system.state_folder import MarkFile
from ingest.system.waiting import unless

KEPT = 0.75
ABSENT = 1.25  # times the bound: then this purge passes over messages, since nobody else does
EVERY_S = 10.0
DELIVERED_BYTES = 256 * 1024**2  # or once so many bytes came to our writer
_LOOK_S = 0.5  # how often the bytes are looked at
_SAMPLES_MAX = 1_000

_log = get_logger("broker")


def lag_bytes_max(configured: int, stream_bytes_max: int) -> int:
    """Return the bound of a forwarder: what is configured, or half of the stream."""
    return configured or stream_bytes_max // 2


class Lag(NamedTuple):
    """What the stream has and this forwarder has not done; the bytes are an estimate."""

    messages: int = 0
    size_bytes: int = 0
    first: int = 0  # the place before the first of these messages
    last: int = 0  # the place of the last one


def lag_of(state: StreamState, done_to: int) -> Lag:
    """Return the lag of a consumer that has done all up to a place."""
    first = max(done_to, state.first - 1)
    messages = max(0, state.last - first)
    # All messages count alike, as if they had the same size.
    size_bytes = state.size_bytes * messages // max(1, state.messages)
    return Lag(messages, min(size_bytes, state.size_bytes), first, state.last)


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


class StreamPurge:
    """`forwards`: further consumers that must have done a message.

    `checked_to` says how far the audit has seen to the stream that was made at a time.

    A forwarder whose lag is larger than `forward_lag_bytes_max` does not count. If it runs, it
    skips messages itself, sooner. `delivered_bytes` is how many bytes came to our writer so far.
    What is removed is noted in the `mark` before.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        *,
        forwards: tuple[str, ...],
        keep_s: float,
        checked_to: Callable[[str], int],
        delivered_bytes: Callable[[], int],
        mark: MarkFile,
        forward_lag_bytes_max: int,
    ) -> None:
        self.unforwarded = 0  # messages that we removed though a forwarder had not sent them
        self.faults: tuple[StreamFault, ...] = ()  # why nothing is removed
        self._connection = connection
        self._names = READINGS._replace(others=forwards)
        self._mark = mark
        self._checked_to = checked_to
        self._delivered_bytes = delivered_bytes
        self._forward_lag_bytes_max = forward_lag_bytes_max
        self._delivered_before = 0
        self._kept = KeptPlaces(keep_s)
        self._made = ""
        self._occasionally = Occasionally(WARNING_S)

    async def run(self, stopping: asyncio.Event) -> None:
        """Remove every 10 s, or when much is done, until the event is set."""
        due_s = clock.monotonic_s() + EVERY_S
        while not await clock.sleep_unless(stopping, _LOOK_S):
            much = self._delivered_bytes() - self._delivered_before >= DELIVERED_BYTES
            if much or clock.monotonic_s() >= due_s:
                await unless(stopping, self.purge())
                due_s = clock.monotonic_s() + EVERY_S

    async def purge(self) -> bool:
        """Remove now what may be removed; return whether the broker has answered.

        Call it also at the end of a stop: then the next start has less to check.
        """
        self._delivered_before = self._delivered_bytes()
        try:
            await self._purge()
        except BrokerAway as error:
            if self._occasionally.due("away") is not None:
                _log.warning("stream_not_purged", why=str(error))
            return False
        except BrokerRefused as error:
            self._set_faults(StreamFault("the purge", str(error)))
        return True

    async def _purge(self) -> None:
        found = await streams.look(self._connection, self._names)
        state = state_of(found)
        if state is None:
            return  # the watch says so
        if self._made != state.made:
            self._made = state.made
            self._kept.clear()
        missing = [] if found.consumer else [WRITER]
        done_to = state.done_to
        passed_over: list[int] = []  # where the forwarders are that are too far behind
        for name, forward in found.others.items():
            if forward is None:
                missing.append(name)
                continue
            floor = int(forward["ack_floor"]["stream_seq"])
            lag = lag_of(state, floor)
            place = place_to_skip_to(lag, self._forward_lag_bytes_max, state.done_to)
            if place > floor:
                passed_over.append(lag.first)
                _log.error("forward_passed_over", consumer=name, first=lag.first + 1, last=place)
            done_to = min(done_to, max(floor, place))
        self._set_faults(*map(_missing, missing))
        if missing:
            return
        to = min(self._kept.note(clock.monotonic_s(), done_to), self._checked_to(state.made))
        noted = mark_of(state)._replace(purged_to=max(to, state.first - 1), acknowledged_to=0)
        await self._mark.note(noted)  # before it is done: after a kill this must be no loss
        if to >= state.first:
            await streams.purge(self._connection, to)
            self.unforwarded += sum(max(0, to - done) for done in passed_over)

    def _set_faults(self, *faults: StreamFault) -> None:
        if faults and faults != self.faults:
            _log.error("stream_not_purged", why=[str(each) for each in faults])
        self.faults = faults


def _missing(consumer: str) -> StreamFault:
    return StreamFault(
        f"the consumer {consumer} of {STREAM}",
        "is missing, so nothing is removed from the stream, and it becomes full: `ingest stream "
        "apply` makes it; or change the setting `forwards`",
    )


class KeptPlaces:
    """Remembers when which place was done, so that messages are kept for a while after that."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._samples: deque[tuple[float, int]] = deque()  # when, done up to
        self._to = 0

    def note(self, now_s: float, done_to: int) -> int:
        """Note up to where all is done; return up to where it was done `keep_s` ago."""
        if self._keep_s == 0:
            return done_to
        samples = self._samples
        while samples and samples[-1][1] > done_to:  # a consumer made anew: it does them again
            samples.pop()
        self._to = min(self._to, done_to)
        samples.append((now_s, done_to))
        if len(samples) > 2 and now_s - samples[-3][0] < self._keep_s / _SAMPLES_MAX:
            del samples[-2]  # it only would make the time of this one more exact
        while samples and now_s - samples[0][0] >= self._keep_s:
            self._to = samples.popleft()[1]
        return self._to

    def clear(self) -> None:
        """Forget all: there is another stream."""
        self._samples.clear()
        self._to = 0

    def __len__(self) -> int:
        return len(self._samples)


METRICS: Metrics[StreamPurge] = (
    Metric(
        "stream_unforwarded_total",
        "Messages removed before a forwarder that does not run had sent them.",
        lambda it: it.unforwarded,
    ),
)
