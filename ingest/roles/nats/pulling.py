"""Pulls messages of a consumer, and tells the broker what became of each.

One pull request is open at a time. It ends when it is used up, when its time is over, when the
broker says so, when there was no sign of the broker for a while, and with the connection. Then the
next one is sent, if `wanted` is set.
Promises: a message that is not acknowledged comes again, here or at another reader. What is said
while the connection is away is sent on the next one. Skipped messages are reported. What is said of
messages of a stream that was deleted is not said of those that have their places in a new one.
Does not: know whether the broker has heard what was said just before a connection ended, or has
forgotten it when it was killed. Such a message comes again, even with `tries` 1. It does not
acknowledge by itself, or bound the memory of what it has handed over: clear `wanted`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from ingest.model.errors import BrokerAway, BrokerRefused
from ingest.roles.nats import streams
from ingest.roles.nats.connection import WARNING_S, BrokerConnection
from ingest.roles.nats.protocol import AWAITED, STREAM, Message, delivered_as
from ingest.roles.nats.stream_state import StreamState, state_of
from ingest.roles.nats.streams import Names
from ingest.system import clock
from ingest.system.logs import Occasionally, get_logger
from ingest.system.waiting import first_of

EXPIRES_S = 5.0
HEARTBEAT_S = 1.0
SILENCE_S_MAX = 3.0
AGAIN_S_MAX = 0.5

_DONE, _LATER, _WORKING, _NEVER = b"+ACK", b"-NAK", b"+WPI", b"+TERM"

_USED_UP = frozenset({"Batch Completed", "Message Size Exceeds MaxBytes"})

_log = get_logger("broker")


class Delivery(NamedTuple):
    """A message of the stream. `tries`: how often it was delivered, this time included.

    Without an `ack_subject` it was not delivered, but read again. The broker waits for no word.
    """

    data: bytes
    place: int  # in the stream
    tries: int
    ack_subject: str
    made: str = ""  # when the stream was made, as the broker says: another one has another time
    awaited: str = ""  # the id of the message, if its gateway waits for the outcome


class SkipCheck:
    """Finds messages that the one reader of a consumer was never given. No I/O.

    Each delivery has two numbers: its place in the stream, and its place among the deliveries of
    its consumer. Of two first deliveries that follow each other, the places in the stream follow
    each other too; if they do not, the messages between them were skipped. What several readers
    were given it does not see. Call `delivered` for each delivery, in order. What was skipped is
    told as a range of places.
    """

    def __init__(self) -> None:
        self._last_delivery = 0
        self._last_place: int | None = None  # of the last first delivery; None: not known

    def begin(self, last_delivery: int, last_place: int) -> None:
        """Begin behind the last delivery of the consumer, as the broker says."""
        self._last_delivery = last_delivery
        self._last_place = last_place

    def ended(self, last_delivery: int, last_place: int, end: int) -> range | None:
        """Note that nothing is left to deliver, up to the place `end`; return what was skipped."""
        if last_delivery == self._last_delivery and self._last_place is not None:
            last_place = max(last_place, self._last_place)  # what was reported is not said again
        if last_place >= end:
            return None
        self.begin(last_delivery, end)
        return range(last_place + 1, end + 1)

    def delivered(self, delivery: int, place: int, *, is_first: bool) -> range | None:
        """Note a delivery; return what was skipped before it."""
        follows = delivery == self._last_delivery + 1
        last_place = self._last_place
        self._last_delivery = delivery
        if not is_first:
            if not follows:  # another reader was given the deliveries between
                self._last_place = None
            return None
        self._last_place = place
        if follows and last_place is not None and place > last_place + 1:
            return range(last_place + 1, place)
        return None


class Pull(NamedTuple):
    """The bounds of one pull request. No message may be larger than `bytes_max`."""

    messages_max: int = 256
    bytes_max: int = 16 * 1024**2


class Puller:
    """Reads one consumer, the only one of its connection. `take` must not raise.

    `skipped` gets the places of messages that were never delivered, if it reads the consumer alone.
    With several readers each one needs an Audit.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        *,
        consumer: str,
        take: Callable[[Delivery], None],
        skipped: Callable[[range], None] = lambda _: None,
        pull: Pull = Pull(),  # noqa: B008  immutable
    ) -> None:
        self.wanted = asyncio.Event()
        self.delivered_bytes = 0  # so far
        self._connection = connection
        self._consumer = consumer
        self.take = take
        # Of an Audit: the place of each delivery; and of a message that it has handed over, whether
        # it is done, or must be given again.
        self.given: Callable[[int], None] = lambda _: None
        self.ended: Callable[[int, bool], None] = lambda _, __: None
        self._skipped = skipped
        self._pull = pull
        self._check = SkipCheck()
        self._made = ""  # of the stream that we pull from
        self._sure = asyncio.Event()  # it is still there
        self._asking: asyncio.Task[None] | None = None
        self._unsent: list[tuple[Delivery, bytes]] = []
        self._over = asyncio.Event()
        self._left = 0
        self._last_sign_s = 0.0
        self._pause_s = 0.0
        self._is_quiet = False
        self._occasionally = Occasionally(WARNING_S)
        connection.deliver_to(self._deliver, STREAM)
        connection.watch(self._ask, self._went)

    async def run(self, stopping: asyncio.Event) -> None:
        """Pull until the event is set."""
        while not stopping.is_set():
            if not self._connection.up:
                await clock.sleep_unless(stopping, AGAIN_S_MAX * random.uniform(0.1, 1))
                continue
            if not self._sure.is_set():
                self._ask()
                await first_of(self._sure.wait(), stopping.wait(), within_s=AGAIN_S_MAX)
                continue
            if not self.wanted.is_set():
                await first_of(self.wanted.wait(), stopping.wait())
                continue
            await self._pull_once(stopping)
            if self._pause_s:
                self._ask()
            if self._is_quiet and self._connection.up:
                await self._check_end()
            await clock.sleep_unless(stopping, self._pause_s * random.uniform(0.1, 1))

    async def _check_end(self) -> None:
        """See whether the last messages of the stream were skipped, if nothing is left to pull."""
        try:
            state, last = await self._look()
        except BrokerAway:
            return
        if state.waiting or not state.deliveries:
            return
        if found := self._check.ended(state.deliveries, last["stream_seq"], state.last):
            self._skipped(found)

    async def _look(self) -> tuple[StreamState, Mapping[str, int]]:
        """Ask for the stream, and the last delivery. Raises BrokerAway, also if there is none."""
        try:
            found = await streams.look(self._connection, Names(STREAM, self._consumer))
        except BrokerRefused as error:
            raise BrokerAway(str(error)) from error
        state = state_of(found)
        if state is None or found.consumer is None:
            raise BrokerAway("the stream or its consumer is missing")
        return state, found.consumer["delivered"]

    async def _pull_once(self, stopping: asyncio.Event) -> None:
        """Send one request, and return when it is over."""
        self._over.clear()
        self._pause_s = 0.0
        self._is_quiet = False
        self._left = self._pull.messages_max
        self._last_sign_s = clock.monotonic_s()
        request = {
            "batch": self._pull.messages_max,
            "max_bytes": self._pull.bytes_max,
            "expires": int(EXPIRES_S * 1e9),
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
        }
        try:
            token = self._connection.call(
                f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{self._consumer}",
                msgspec.json.encode(request),
                self._status,
                pulls=True,
            )
        except BrokerAway:
            self._pause_s = AGAIN_S_MAX
            return
        try:
            while not self._over.is_set() and not stopping.is_set():
                silent_s = clock.monotonic_s() - self._last_sign_s
                if silent_s >= SILENCE_S_MAX:
                    self._pause_s = AGAIN_S_MAX
                    return
                await first_of(
                    self._over.wait(), stopping.wait(), within_s=SILENCE_S_MAX - silent_s
                )
        finally:
            self._connection.forget(token)

    def _status(self, message: Message) -> None:
        self._last_sign_s = clock.monotonic_s()
        if message.status == "100":  # a heartbeat
            return
        why = message.headers.get("Description", message.status)
        if message.status in {"404", "408"}:  # nothing more was there
            self._is_quiet = True
        elif why not in _USED_UP:
            self._pause_s = AGAIN_S_MAX
            self._complain(why)
        self._over.set()

    def _deliver(self, message: Message) -> None:
        self._last_sign_s = clock.monotonic_s()
        tries, place, delivery = delivered_as(message.reply_to)
        if found := self._check.delivered(delivery, place, is_first=tries == 1):
            self._skipped(found)
        self.given(place)
        self.delivered_bytes += len(message.data)
        self._left -= 1
        headers = message.headers
        awaited = headers.get("Nats-Msg-Id", "") if AWAITED in headers else ""
        self.take(Delivery(message.data, place, tries, message.reply_to, self._made, awaited))
        if self._left == 0:
            self._over.set()

    def done(self, deliveries: Iterable[Delivery]) -> None:
        """Acknowledge: these never come again."""
        self._say(deliveries, _DONE)

    def working(self, deliveries: Iterable[Delivery]) -> None:
        """Say that we still have them, so that they do not come again for another `ack_wait`."""
        self._say(deliveries, _WORKING)

    def give_back(self, deliveries: Iterable[Delivery], after_s: float = 0.0) -> None:
        """Let another reader have them, at once, or after a while.

        Who stops should take a while that is longer than its connection: a pull request that is
        open would get them at once.
        """
        delay = b' {"delay":%d}' % int(after_s * 1e9) if after_s else b""
        self._say(deliveries, _LATER + delay)

    def drop(self, deliveries: Iterable[Delivery]) -> None:
        """Never deliver them again, although they are not done."""
        self._say(deliveries, _NEVER)

    def _say(self, deliveries: Iterable[Delivery], word: bytes) -> None:
        for each in deliveries:
            if not each.ack_subject:
                if word is not _WORKING:
                    self.ended(each.place, not word.startswith(_LATER))
            elif each.made != self._made:
                continue  # the broker would take it as said of another message
            elif self._sure.is_set() and self._connection.send(each.ack_subject, word):
                continue
            elif word is not _WORKING:
                self._unsent.append((each, word))

    def _went(self) -> None:
        self._sure.clear()
        self._over.set()

    def _ask(self) -> None:
        """Ask whether the stream is still the same one. Until then nothing is said or pulled."""
        self._sure.clear()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_until_sure())

    async def _ask_until_sure(self) -> None:
        while self._connection.up and not self._sure.is_set():
            try:
                state, last = await self._look()
            except BrokerAway as error:
                self._complain(str(error))
                await asyncio.sleep(AGAIN_S_MAX * random.uniform(0.1, 1))
            else:
                if not self._made:  # what was delivered before us
                    # Of a consumer that has delivered nothing, that ends before the first message.
                    before = last["stream_seq"] if state.deliveries else max(0, state.first - 1)
                    self._check.begin(state.deliveries, before)
                self._made = state.made
                self._sure.set()
        unsent, self._unsent = self._unsent, []
        for each, word in unsent:
            self._say((each,), word)

    def _complain(self, why: str) -> None:
        if self._occasionally.due(why) is not None:
            _log.warning("broker_pull_failed", consumer=self._consumer, why=why)
