"""Finds messages that no writer was given, and reads them again, from another copy if need be.

nats-server passes over a message that is damaged on its disk without a word, though other servers
may have it whole. So writers tell each other once a second which places of the stream they were
given. One of them, the auditor, compares that with what the consumer has passed:

    passed, and given to nobody -> open -> given after all, to whoever
                                       -> it can be read: written again, by the auditor
                                       -> the leader cannot read it: another server leads
                                       -> no server can read it: lost

The auditor is the writer with the lowest name of those that know up to where all was seen to. It
tells that too, so another one goes on where it has ended. If nobody knows it, the one with the
lowest name of all begins, and the last done messages are read again, up to a bound. It may only not
have heard the others: what has an earlier begin is taken over then, with what is open there.
Promises: the purge goes no further than `checked_to`: all up to there was given, or seen to, and
the others were told so. A message may be written twice; the table's key absorbs that.
Does not: see what was removed (stream_state.py does), or that a message is damaged which must be
given once more.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque

import msgspec

from ingest.model.errors import BrokerAway, BrokerRefused
from ingest.model.ledger import Metric, Metrics
from ingest.roles.nats import streams
from ingest.roles.nats.connection import WARNING_S, BrokerConnection
from ingest.roles.nats.protocol import GIVEN, Message
from ingest.roles.nats.pulling import Delivery, Puller
from ingest.roles.nats.stream_state import StreamState, state_of
from ingest.roles.nats.streams import Found
from ingest.system import clock
from ingest.system.logs import Occasionally, get_logger
from ingest.system.state_folder import MarkFile
from ingest.system.waiting import unless

EVERY_S = 1.0
HEARD_S = 2.5  # after so long each writer has told us; one that tells nothing for so long is gone
BACK_MAX = 1_000  # done messages that are read again if nobody knows of them, and their bytes
BACK_BYTES_MAX = 64 * 1024**2
TOLD_MAX = 50_000  # places in one message
_PASSED_MAX = 20_000  # places in one round
_BEHIND_MAX = 100_000  # places: more than that would have to be read again
_READ_S_MAX = 0.5  # in one round: then it is looked again whether it is still the same stream
_READS_MAX = 16  # at once
LEADER_S = 10.0  # between two changes of the leader: publishing waits for each of them

_log = get_logger("broker")


class Telling(msgspec.Struct, array_like=True):
    """What a writer tells of the stream that was made at `made`.

    All behind `since` and up to `seen_to` was given or seen to, but for the `open` places.
    `seen_to` -1: that is not known. `given` are further places.
    """

    name: str
    made: str
    since: int
    seen_to: int
    open: list[int]
    given: list[int]


class Audit:
    """The part of one writer, whose messages `puller` pulls. The purge keeps the `mark`."""

    def __init__(self, connection: BrokerConnection, puller: Puller, mark: MarkFile) -> None:
        self.skipped = 0  # messages that are lost, as counted by this writer
        self.read_again = 0  # messages that no writer was given, and that were written again
        self.checked_to = 0
        self._connection = connection
        self._puller = puller
        self._mark = mark
        self._name = os.urandom(8).hex()
        self._others: dict[str, float] = {}  # when each was heard
        self._knowing: set[str] = set()  # those of them that know `seen_to`
        self._made = ""
        self._suspects = False  # the last look has shown another stream, or a restored one
        self._since = 0
        self._seen_to = -1
        self._open: dict[int, set[str]] = {}  # places, and which servers cannot read them
        self._in_hand: set[int] = set()  # open ones that were written again, and are not done
        self._given: set[int] = set()
        self._looks: deque[tuple[float, StreamState]] = deque()  # of the last HEARD_S
        self._leader_due_s = 0.0
        self._occasionally = Occasionally(WARNING_S)
        puller.given, puller.ended = self._on_given, self._on_ended
        connection.hear(GIVEN, self._heard)
        connection.watch(self._looks.clear, lambda: None)  # we may have missed what others told

    async def run(self, stopping: asyncio.Event) -> None:
        """Tell and check once a second until the event is set. Call `tell` after the last work."""
        await asyncio.gather(self._tell_often(stopping), self._check_often(stopping))

    async def _tell_often(self, stopping: asyncio.Event) -> None:
        """Tell, also while the broker's answers take long: who is silent is taken for gone."""
        while not await clock.sleep_unless(stopping, EVERY_S):
            self.tell()

    async def _check_often(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            if self._connection.up:
                await unless(stopping, self._check())
            await clock.sleep_unless(stopping, EVERY_S)

    def checked_in(self, made: str) -> int:
        """Return `checked_to` if it is a place of the stream that was made then, and 0 if not."""
        return self.checked_to if made == self._made else 0

    @property
    def others(self) -> set[str]:
        """The names of the other writers that were heard lately."""
        since_s = clock.monotonic_s() - HEARD_S
        return {name for name, at_s in self._others.items() if at_s > since_s}

    @property
    def _auditor(self) -> str:
        """The name of the auditor; nothing if nobody knows up to where all was seen to."""
        ours = {self._name} if self._seen_to >= 0 else set()
        return min(ours | self._knowing & self.others, default="")

    @property
    def _is_auditor(self) -> bool:
        return self._auditor == self._name

    def tell(self) -> None:
        """Tell the others what is known; from then on the purge may go so far."""
        if self._suspects:  # who has forgotten it already must not learn it again
            return
        while self._is_auditor and self._seen_to + 1 in self._given:
            self._given.discard(self._seen_to + 1)
            self._seen_to += 1
        still_open, given = sorted(self._open), sorted(self._given)[:TOLD_MAX]
        told_to = still_open[TOLD_MAX] - 1 if len(still_open) > TOLD_MAX else self._seen_to
        told = Telling(self._name, self._made, self._since, told_to, still_open[:TOLD_MAX], given)
        if self._connection.send(GIVEN, msgspec.json.encode(told)):
            self.checked_to = still_open[0] - 1 if still_open else self._seen_to

    def _heard(self, message: Message) -> None:
        try:
            told = msgspec.json.decode(message.data, type=Telling)
        except msgspec.DecodeError:
            return
        if told.name == self._name or told.made != self._made:
            return
        self._others[told.name] = clock.monotonic_s()
        if told.seen_to >= 0:
            self._knowing.add(told.name)
            if self._knows_more(told):
                self._since, self._seen_to = told.since, told.seen_to
                self._open = {each: set() for each in told.open}
        self._given.update(told.given)
        for place in told.given:
            self._open.pop(place, None)
        self._forget_seen()

    def _knows_more(self, told: Telling) -> bool:
        """Whether to go on from there. An earlier begin counts more than a bit of progress."""
        ahead = told.seen_to - self._seen_to
        if self._seen_to < 0:
            return True
        if told.since == self._since:
            return ahead >= (told.name != self._auditor)
        # Who was away for long is too far behind.
        return ahead >= -_BEHIND_MAX if told.since < self._since else ahead > _BEHIND_MAX

    def _forget_seen(self) -> None:
        self._given = {each for each in self._given if each > self._seen_to or each in self._open}

    def _on_given(self, place: int) -> None:
        self._open.pop(place, None)
        self._given.add(place)

    def _on_ended(self, place: int, done: bool) -> None:
        """A message that was written again is done, or must be given once more."""
        self._in_hand.discard(place)
        if done:
            self._open.pop(place, None)

    async def _check(self) -> bool:
        """Look, and see to what nobody was given; return whether the broker answers."""
        known_to = max(self._seen_to, *self._given, 0)  # before the look: the stream has these
        try:
            state = state_of(await streams.look(self._connection))
            if state is None or not state.consumer_made:
                return True
            differs = state.made != self._made or state.last < known_to
            is_sure = differs and self._suspects
            self._suspects = differs and not is_sure
            if is_sure:
                self._begin(state.made)
            elif differs:
                self.checked_to = 0
            else:
                await self._see(state)
        except (BrokerAway, BrokerRefused) as error:
            if self._occasionally.due(str(error)) is not None:
                _log.warning("stream_check_failed", why=str(error))
            return False
        return True

    def _begin(self, made: str) -> None:
        """Forget what is known: two looks have shown another stream, or a restored one.

        A server that was cut off from the others may give an old answer once.
        """
        if self._made:  # else these were given between the first message and this look
            self._given.clear()
        self._made, self._seen_to = made, -1
        self._open.clear()
        self._looks.clear()

    async def _see(self, state: StreamState) -> None:
        now_s, looks = clock.monotonic_s(), self._looks
        looks.append((now_s, state))
        while len(looks) > 1 and looks[1][0] <= now_s - HEARD_S:
            looks.popleft()
        then_s, then = looks[0]
        if now_s - then_s < HEARD_S:
            return
        if self._seen_to < 0 and self._name < min(self.others, default="~"):
            average_bytes = max(1, then.size_bytes // max(1, then.messages))
            back = min(BACK_MAX, BACK_BYTES_MAX // average_bytes)
            self._seen_to = max(0, then.first - 1, then.done_to - back)
            noted = self._mark.read()
            if noted.made == self._made:  # a killed server may bring back what was purged
                self._seen_to = max(self._seen_to, min(noted.purged_to, then.done_to))
            self._since = self._seen_to
        elif self._is_auditor:
            # Of what was passed then the others have told since.
            self._pass(max(self._seen_to, then.first - 1), min(then.end, state.last))
            await self._read_open(state)

    def _pass(self, seen_to: int, to: int) -> None:
        """See which places behind `seen_to`, and up to `to`, nobody was given."""
        passed = range(seen_to + 1, min(to, seen_to + _PASSED_MAX) + 1)
        self._open |= {each: set() for each in passed if each not in self._given}
        self._seen_to = seen_to + len(passed)
        self._forget_seen()

    async def _read_open(self, state: StreamState) -> None:
        """Read open messages, as many as fit into one round. Pending ones come by themselves."""
        until_s = clock.monotonic_s() + _READ_S_MAX
        before = self.read_again
        ready = sorted(each for each in self._open.keys() - self._in_hand if each <= state.done_to)
        for at in range(0, len(ready), _READS_MAX):
            if clock.monotonic_s() > until_s or (at and not self._puller.wanted.is_set()):
                break
            some = ready[at : at + _READS_MAX]
            reading = (streams.message(self._connection, each) for each in some)
            for place, data in zip(some, await asyncio.gather(*reading), strict=True):
                await self._take(place, data, state.leader)
        if self.read_again > before:
            _log.warning("stream_messages_read_again", count=self.read_again - before)

    async def _take(self, place: int, data: bytes | None, leader: str) -> None:
        if place not in self._open:  # it came meanwhile
            return
        if data is None:
            await self._not_read(place, leader)
        elif self._puller.wanted.is_set():  # else there is no room now
            self.read_again += 1
            self._in_hand.add(place)
            self._puller.take(Delivery(data, place, 2, ""))

    async def _not_read(self, place: int, leader: str) -> None:
        """The leader's copy of a message is damaged. Only the leader answers: let another lead."""
        state = state_of(Found(await streams.look_at_stream(self._connection), None))
        if state is None or state.leader != leader or place not in self._open:
            return  # it is not known who has answered, or it came meanwhile
        cannot = self._open[place]
        cannot.add(leader)
        if place < state.first or len(cannot) >= state.replicas:
            del self._open[place]
            self.skipped += 1
            _log.critical("stream_messages_skipped", place=place, why="no copy of it can be read")
            return
        others = [each for each in state.copies if each not in cannot]
        if others and clock.monotonic_s() >= self._leader_due_s:
            self._leader_due_s = clock.monotonic_s() + LEADER_S
            _log.error("stream_copy_damaged", server=leader, place=place)
            await streams.lead_from(self._connection, others[0])


METRICS: Metrics[Audit] = (
    Metric(
        "stream_skipped_total",
        "Messages that cannot be read any more: a loss.",
        lambda it: it.skipped,
    ),
)
