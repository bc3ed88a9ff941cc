"""Finds messages that no writer was given, over all writers, and reads them again.

A damaged message on the broker's disk is skipped without a word: no error, and the consumer goes on
behind it. So each writer keeps the places that it was given, and tells them to the others once a
second. A place that the consumer has passed and nobody was given is looked at: it is written again,
or it is lost and counted. Only one writer looks and counts: the one with the lowest name.

    given to us, told by others -> settled
    passed 3 s ago, not settled -> the stream does not have it any more     lost
                                -> it can be read, and is not pending      written again -> settled
                                -> no copy can be read                      lost

A writer that begins does not know what was given before. It takes what is done for settled, but for
the last messages. That is a guess, which it tells apart from what it knows: a writer that has been
there for longer does not take it over, and the new one learns from that writer what is not settled.
Promises: each place up to `checked_to` is settled, and the others have been told so. The purge goes
no further. A message may be written twice; the table's key absorbs that. The guess counts only once
all others must have been heard.
Does not: know what writers before it were given, if none of them was heard. Then it reads the last
of these again, up to a bound. For a few seconds after a stream was restored it sees too little.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Protocol

import msgspec

from ingest.broker import manage
from ingest.broker.connection import BrokerConnection
from ingest.broker.envelope import Message
from ingest.broker.roles import GIVEN
from ingest.broker.second_read import SecondRead
from ingest.broker.spans import Span, Spans
from ingest.broker.stream_state import StreamState, state_of
from ingest.broker.waiting import unless
from ingest.model.errors import BrokerAway, BrokerRefused
from ingest.model.metrics import Metric, Metrics
from ingest.system import clock
from ingest.system.logs import Occasionally, get_logger

EVERY_S = 1.0
KNOWN_S = 3.0  # after so long the others have told us; longer than between two looks of the watch
HEARD_S = 3.5  # a writer that tells nothing for so long is gone
BACK_MAX = 1_000  # messages that a first writer reads again, at most, and how many bytes
BACK_BYTES_MAX = 64 * 1024**2
IN_HAND_S = 60.0  # a message that was written again and is not done is written once more
_TOLD_SPANS_MAX = 1_000
_READ_S_MAX, _READ_BYTES_MAX = 0.5, 16 * 1024**2  # in one round
_EARLY_MAX = 100  # writers
_LOOKS_MAX = 8  # in one round, at messages that cannot be written again yet
WARNING_S = 60.0

_log = get_logger("broker")


class Reads(Protocol):
    """What the check needs of a Puller."""

    wanted: asyncio.Event

    def give(self, data: bytes, place: int) -> None:
        """Hand over a message that was read in another way."""

    def report_to(self, given: Callable[[int], None], ended: Callable[[int, bool], None]) -> None:
        """Report each delivery, and the end of each message that was handed over by `give`."""


class Telling(msgspec.Struct, array_like=True):
    """What a writer tells: its name, which stream it means, and its spans of settled places.

    Of the places up to `guessed_to` it knows nothing but these spans.
    """

    name: str
    made: str
    spans: list[tuple[int, int]]
    guessed_to: int = 0


class GivenCheck:
    """The check of one writer, whose messages `reads` pulls."""

    def __init__(self, connection: BrokerConnection, reads: Reads) -> None:
        self.skipped = 0  # messages that are lost, as counted by this writer
        self.read_again = 0  # messages that no writer was given, and that were written again
        self.checked_to = 0
        self._connection = connection
        self._reads = reads
        self._name = os.urandom(8).hex()
        self._others: dict[str, float] = {}  # when each one was heard
        self._made = ""
        self._settled = Spans()  # as we know, and not as we guess
        self._guessed_to = 0  # up to here all counts as settled
        self._is_guess_said = False
        self._listens_since_s = 0.0
        self._early: dict[str, Telling] = {}  # heard before the first look, the last one of each
        self._looks: deque[tuple[float, StreamState]] = deque()  # of the last KNOWN_S
        self._ends_earlier = False
        self._in_hand: dict[int, float] = {}  # read again and not done yet: since when
        self._readable: set[int] = set()  # but not to be written again yet
        self._second = SecondRead(connection)
        self._occasionally = Occasionally(WARNING_S)
        reads.report_to(self.given, self._ended)
        connection.hear(GIVEN, self._heard)
        connection.watch(self._came, self._looks.clear)

    def given(self, place: int) -> None:
        """Note a delivery, of any try. What was read again may come all the same."""
        self._in_hand.pop(place, None)
        self._settled.add(place, place)

    async def run(self, stopping: asyncio.Event) -> None:
        """Tell and check once a second until the event is set. Call `tell` after the last work."""
        while not stopping.is_set():
            if self._connection.up:
                await unless(stopping, self._check())
            await clock.sleep_unless(stopping, EVERY_S)

    @property
    def is_alone(self) -> bool:
        """Whether no other writer was heard lately."""
        now_s = clock.monotonic_s()
        return all(now_s - at_s >= HEARD_S for at_s in self._others.values())

    def tell(self) -> None:
        """Tell the others what is settled; from then on the purge may go so far."""
        told = [(each.first, each.last) for each in islice(self._settled, _TOLD_SPANS_MAX)]
        telling = Telling(self._name, self._made, told, self._guessed_to)
        if self._made and self._connection.send(GIVEN, msgspec.json.encode(telling)):
            has_heard = clock.monotonic_s() - self._listens_since_s >= KNOWN_S
            self.checked_to = self._settled.end_of(self._guessed_to if has_heard else 0)

    def _heard(self, message: Message) -> None:
        try:
            told = msgspec.json.decode(message.data, type=Telling)
        except msgspec.DecodeError:
            return
        if told.name == self._name:
            return
        self._others[told.name] = clock.monotonic_s()
        if self._looks:
            self._learn(told, self._looks[-1][1].last)
            return
        self._early.pop(told.name, None)
        self._early[told.name] = told  # it may be the last word of a writer that we replace
        if len(self._early) > _EARLY_MAX:
            del self._early[next(iter(self._early))]

    def _learn(self, told: Telling, end: int) -> None:
        """Take over what another one knows of the places up to the end of the stream."""
        if told.made != self._made:
            return
        for first, last in told.spans:
            # A restored stream ends earlier. Others may not know that yet.
            if first <= min(last, end):
                self._settled.add(first, min(last, end))
        # If it has been there for longer, what it does not know either was given to nobody.
        self._guessed_to = min(self._guessed_to, told.guessed_to)

    def _came(self) -> None:
        # We may have missed what others told. What was in hand may have been given up.
        self._listens_since_s = clock.monotonic_s()
        self._looks.clear()
        self._in_hand.clear()

    def _ended(self, place: int, done: bool) -> None:
        self._in_hand.pop(place, None)
        if done:
            self._settled.add(place, place)

    async def _check(self) -> bool:
        """Tell, look, and see to what nobody was given; return whether the broker answers."""
        self.tell()
        # Before the look: the stream has these.
        settled_to = max(self._settled.last, self._guessed_to)
        try:
            state = state_of(await manage.look(self._connection))
            if state is not None and state.consumer_made and self._is_same(state, settled_to):
                await self._see_to_unknown(state)
        except (BrokerAway, BrokerRefused) as error:
            if self._occasionally.due(str(error)) is not None:
                _log.warning("stream_check_failed", why=str(error))
            return False
        return True

    def _is_same(self, state: StreamState, settled_to: int) -> bool:
        """Return whether the places are those that we know; begin anew if they are not."""
        if state.made != self._made:
            self._begin(state)
            return True
        if state.last >= settled_to:
            self._ends_earlier = False
            return True
        # The stream was restored. A server that is cut off can say this too, for a moment.
        if self._ends_earlier:
            self._begin(state)
        self._ends_earlier = not self._ends_earlier
        return False

    def _begin(self, state: StreamState) -> None:
        """Begin with a stream: guess that all before the last done messages is settled."""
        average = state.size_bytes // max(1, state.messages)
        back = min(BACK_MAX, BACK_BYTES_MAX // max(1, average))
        self._guessed_to = max(0, state.done_to - back)
        self._is_guess_said = False
        if self._made:  # else these are deliveries between the first one and this look
            self._settled = Spans()
        if state.first > 1:  # what is not there any more is known to those who were there
            self._settled.add(1, state.first - 1)
        self._made = state.made
        self._listens_since_s = clock.monotonic_s()
        self.checked_to = 0
        self._looks.clear()
        self._in_hand.clear()
        self._readable.clear()

    async def _see_to_unknown(self, state: StreamState) -> None:
        now_s = clock.monotonic_s()
        looks = self._looks
        looks.append((now_s, state))
        early, self._early = self._early, {}
        for told in early.values():
            self._learn(told, state.last)
        while len(looks) > 1 and looks[1][0] <= now_s - KNOWN_S:
            looks.popleft()
        then_s, then = looks[0]
        if now_s - then_s < KNOWN_S or not self._is_lowest(now_s):
            return
        if not self._is_guess_said and self._guessed_to >= state.first:
            _log.info("stream_not_checked", first=state.first, last=self._guessed_to)
        self._is_guess_said = True
        unknown = list(self._settled.gaps(self._guessed_to + 1, min(then.end, state.last)))
        for span in unknown:
            if span.first < then.first:
                self._lose(Span(span.first, min(span.last, then.first - 1)), "not in the stream")
        before = self.read_again
        try:
            await self._read_some([each for each in unknown if each.last >= state.first], state)
        finally:
            if self.read_again > before:
                _log.warning("stream_messages_read_again", count=self.read_again - before)

    def _is_lowest(self, now_s: float) -> bool:
        return all(
            self._name < name for name, at_s in self._others.items() if now_s - at_s < HEARD_S
        )

    async def _read_some(self, unknown: list[Span], state: StreamState) -> None:
        """Read unknown messages, as many as fit into one round."""
        until_s = clock.monotonic_s() + _READ_S_MAX
        size_bytes = looks = 0
        self._readable = {each for each in self._readable if each not in self._settled}
        for place in (each for span in unknown for each in range(span.first, span.last + 1)):
            if place < state.first or self._is_in_hand(place):
                continue
            # Pending ones come again by themselves. But a loss must be known soon, in any case.
            looks_only = place > state.done_to or not self._reads.wanted.is_set()
            if looks_only and place in self._readable:
                continue
            looks += looks_only
            is_much = looks > _LOOKS_MAX or size_bytes > _READ_BYTES_MAX
            if is_much or clock.monotonic_s() > until_s:
                return
            data = await self._second.read(place, state)
            if place in self._settled:  # it came meanwhile
                continue
            if data is None:
                self._lose(Span(place, place), "no copy of it can be read")
            elif looks_only:
                self._readable.add(place)
            else:
                size_bytes += len(data)
                self._write_again(place, data)

    def _is_in_hand(self, place: int) -> bool:
        since_s = self._in_hand.get(place)
        return since_s is not None and clock.monotonic_s() - since_s < IN_HAND_S

    def _write_again(self, place: int, data: bytes) -> None:
        self.read_again += 1
        self._in_hand[place] = clock.monotonic_s()
        self._reads.give(data, place)

    def _lose(self, span: Span, why: str) -> None:
        self.skipped += span.places
        self._settled.add(span.first, span.last)
        _log.critical("stream_messages_skipped", places=str(span), count=span.places, why=why)


METRICS: Metrics[GivenCheck] = (
    Metric(
        "stream_skipped_total",
        "Messages that no writer was given, and that cannot be read any more.",
        lambda it: it.skipped,
    ),
)
