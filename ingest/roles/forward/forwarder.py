"""Posts the messages of a consumer to a target, each until the target has it.

    take -> waiting -> a worker: post -> 2xx                                    done
                          ^       |----> no answer, 408, 425, 429, 5xx
                          |       |      |---> too far behind -> skipped        done
                          '------- a pause
                                  '----> 3xx, other 4xx -> dead letters         done

If the target refuses many posts in a row, the target is wrong and not the posts: then they are
tried again, too. Beyond a bound of the lag, messages are passed over.
Promises: a message is acknowledged only when each of its readings is in exactly one of sent,
filtered, dead_lettered and skipped. Of a message that is not acknowledged, all comes again, with
the same keys. While messages wait here, the broker is told so. A stop gives them back.
Does not: keep an order. Several posts are under way, and one that failed comes later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ingest.http_client.client import HttpClient, ServerReply
from ingest.http_client.delivery import PostTally, ServerPosts
from ingest.model.block import Block
from ingest.model.errors import BrokerAway, BrokerRefused, DeadLettersBroken, DeadLettersFull
from ingest.model.ledger import Metric, Metrics
from ingest.model.ports import DeadLetters
from ingest.model.reading import REFUSED_BY_TARGET, Letter
from ingest.roles.forward.posts import Filters, ForwardPost, PostLimits, outgoing
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, WRITER
from ingest.roles.nats.pulling import Delivery, Puller
from ingest.roles.nats.purge import Lag, lag_of, place_to_skip_to
from ingest.roles.nats.stream_state import state_of
from ingest.roles.nats.streams import ACK_WAIT_S, Names, look
from ingest.roles.outlet import NotOurs, decode_message
from ingest.system import clock
from ingest.system.logs import get_logger

LOOK_S = 2.0
LAG, NOT_OURS, MISSING = "lag", "not_ours", "missing"
REFUSED_IN_A_ROW_MAX = 10
QUOTED_CHARACTERS = 200
_AGAIN = frozenset({408, 425, 429})  # of the 4xx, those that speak of this moment only
HELD_BYTES_MAX = 32 * 1024**2
WORKING_S = ACK_WAIT_S / 3
GIVEN_BACK_S = 0.5  # until then our connection is closed, and another process gets them

_log = get_logger("forward")


class _Message(NamedTuple):
    delivery: Delivery
    block: Block


class Forwarder:
    """The path of messages through one process; at most `in_flight` of them are sent at once."""

    def __init__(
        self,
        sender: TargetSender,
        consumer: Puller,
        tally: ForwardTally,
        *,
        filters: Filters,
        limits: PostLimits,
        in_flight: int,
    ) -> None:
        self._sender = sender
        self._delivery = sender.delivery
        self._tally = tally
        self._filters = filters
        self._limits = limits
        self._in_flight = in_flight
        self._from = consumer
        consumer.wanted.set()
        self._held: dict[int, _Message] = {}  # by place; those that wait, and those in work
        self._waiting: deque[_Message] = deque()
        self._held_bytes = 0
        self._arrived = asyncio.Event()
        self._skip_to = 0  # messages up to this place are skipped

    @property
    def held_messages(self) -> int:
        """Messages that are not acknowledged yet."""
        return len(self._held)

    def oldest_us(self) -> int | None:
        """Return when the oldest reading of these messages was received, in Unix microseconds."""
        return min((each.block.received_us for each in self._held.values()), default=None)

    # Messages come in, and leave

    def take(self, delivery: Delivery) -> None:
        """Take a message that was pulled."""
        if self._delivery.stopping:
            self._from.give_back([delivery], GIVEN_BACK_S)
            return
        if delivery.place in self._held:
            return  # it has come again, since we were frozen; what we say of it counts for both
        try:
            block = decode_message(delivery.data)
        except NotOurs as error:  # the writers keep its bytes as a dead letter
            _log.error("forward_not_ours", place=delivery.place, why=str(error))
            self._tally.pass_over(NOT_OURS, 1, 0)
            self._from.done([delivery])
            return
        message = _Message(delivery, block)
        self._held[delivery.place] = message
        self._held_bytes += len(delivery.data)
        if delivery.place <= self._skip_to:
            self._pass_over(message, block.rows)
            return
        self._waiting.append(message)
        self._bound()
        self._arrived.set()

    def skip_to(self, place: int) -> None:
        """Pass over all messages up to a place of the stream, also those that are tried again."""
        if place <= self._skip_to:
            return
        self._skip_to = place
        waiting, self._waiting = self._waiting, deque()
        for each in waiting:
            if each.delivery.place > place:
                self._waiting.append(each)
            else:
                self._pass_over(each, each.block.rows)
        self._delivery.wake()

    def _pass_over(self, message: _Message, readings: int) -> None:
        self._tally.pass_over(LAG, 1, readings)
        self._done(message)

    def _done(self, message: _Message) -> None:
        self._from.done([message.delivery])
        self._forget(message)

    def _forget(self, message: _Message) -> None:
        del self._held[message.delivery.place]
        self._held_bytes -= len(message.delivery.data)
        self._bound()

    def _bound(self) -> None:
        """Pull more messages only while few are held."""
        wanted = self._from.wanted
        few = len(self._held) < 2 * self._in_flight and self._held_bytes < HELD_BYTES_MAX
        if few and not self._delivery.stopping:
            wanted.set()
        else:
            wanted.clear()

    # Work

    async def run(self, stopping: asyncio.Event, aborted: asyncio.Event, stop_s_max: float) -> None:
        """Forward until `stopping` is set. Then posts under way have `stop_s_max` to end.

        They end at once when `aborted` is set. When it returns, each message was acknowledged or
        given back.
        """
        keeping = asyncio.create_task(self._keep())
        keeping.add_done_callback(lambda _: stopping.set())  # else each message came again
        try:
            await self._delivery.run(
                [self._work() for _ in range(self._in_flight)],
                self._stop,
                stopping=stopping,
                aborted=aborted,
                stop_s_max=stop_s_max,
            )
        finally:
            keeping.cancel()
        if keeping.done():
            keeping.result()  # raises the error of a bug

    def _stop(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for each in waiting:
            self._give_back(each)
        self._from.wanted.clear()
        self._arrived.set()

    def _give_back(self, message: _Message) -> None:
        self._from.give_back([message.delivery], GIVEN_BACK_S)
        self._forget(message)

    async def _keep(self) -> None:
        """Tell the broker that we still have what we hold."""
        while True:
            await asyncio.sleep(WORKING_S)
            self._from.working([each.delivery for each in self._held.values()])

    async def _work(self) -> None:
        while not self._delivery.stopping:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._forward(self._waiting.popleft())
            await asyncio.sleep(0)  # messages without a wanted reading wait for nothing

    async def _forward(self, message: _Message) -> None:
        """Send all posts of a message; acknowledge it, or give it back."""
        block = message.block
        left = block.rows
        for each in outgoing(message.delivery.data, block.tuples, self._filters, self._limits):
            if not await self._sender.send(each, block.received_us, lambda: self._wants(message)):
                if self._delivery.stopping:
                    self._give_back(message)
                else:
                    self._pass_over(message, left)
                return
            left -= len(each.readings)
        self._tally.filtered += left
        self._done(message)

    def _wants(self, message: _Message) -> bool:
        return not self._delivery.stopping and message.delivery.place > self._skip_to


def is_refusal(status: int) -> bool:
    """Whether a post would be refused again. A redirect is: readings go where the operator says."""
    return 300 <= status < 500 and status not in _AGAIN


class TargetSender:
    """Sends to one target. `sign(key, body, now_s)` returns headers."""

    def __init__(
        self,
        client: HttpClient,
        dead_letters: DeadLetters,
        tally: ForwardTally,
        *,
        sign: Callable[[str, bytes, float], Mapping[str, str]],
        retry_s_max: float,
    ) -> None:
        self.delivery = ServerPosts(
            client,
            tally,
            retry_s_max=retry_s_max,
            failed=lambda why, n: _log.warning("forward_failed", why=why, similar_suppressed=n),
            back=lambda after_s: _log.info("forward_target_back", after_s=after_s),
        )
        self._dead_letters = dead_letters
        self._tally = tally
        self._sign = sign
        self._refused_in_a_row = 0

    async def send(self, post: ForwardPost, received_us: int, wanted: Callable[[], bool]) -> bool:
        """Return True once the post is taken, or is dead letters; False once it is not wanted."""
        return bool(
            await self.delivery.until_done(
                lambda tries: self._try(post, received_us, tries), wanted
            )
        )

    async def _try(self, post: ForwardPost, received_us: int, tries: int) -> bool | None:
        """Send a post once; return None if a further try is needed."""
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": post.key,
            "webhook-id": post.key,
            **self._sign(post.key, post.body, clock.unix_s()),
        }
        reply = await self.delivery.post(post.body, headers)
        if reply is None:
            return None
        if 200 <= reply.status < 300:
            self._tally.sent += len(post.readings)
            self._refused_in_a_row = 0
            self.delivery.taken()
            return True
        if is_refusal(reply.status):
            return await self._set_aside(post, reply, received_us, tries)
        self.delivery.later(reply, f"it answers {reply.status}")
        return None

    async def _set_aside(
        self, post: ForwardPost, reply: ServerReply, received_us: int, tries: int
    ) -> bool | None:
        """Keep a post as dead letters. Returns None if it has to be tried again."""
        self._refused_in_a_row += 1
        quoted = reply.text.decode(errors="replace")[:QUOTED_CHARACTERS]
        if self._refused_in_a_row > REFUSED_IN_A_ROW_MAX:
            self.delivery.failed(f"it refuses all posts with {reply.status}: {quoted}")
            return None
        letter = Letter(
            reason=REFUSED_BY_TARGET,
            code=f"http_{reply.status}",
            message=f"the target has answered {reply.status}: {quoted}",
            received_us=received_us,
            attempts=tries,
        )
        try:
            await self._dead_letters.append([letter._replace(reading=r) for r in post.readings])
        except (DeadLettersFull, DeadLettersBroken) as error:
            self.delivery.failed(
                f"it answers {reply.status}, and there is no space to keep this: {error}"
            )
            return None
        self._tally.dead_lettered += len(post.readings)
        left_out = self.delivery.occasionally.due(letter.code)
        if left_out is not None:
            _log.error(
                "forward_refused",
                status=reply.status,
                readings=len(post.readings),
                said=quoted,
                similar_suppressed=left_out,
            )
        return True


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
        self.skipped_messages = dict.fromkeys((LAG, NOT_OURS, MISSING), 0)

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
