"""The groups of a gateway on their way into the stream: which is published when, and for how long.

    add -> waits -> (at most `groups_in_flight`) publish -> PubAck      ended
             ^                                     |------> an error    ended, if it is durable
             '--- one of them now and then --- failed <---- an error    if it was promised

A group is some posts that are published as one message. A post that waits for its commit is refused
if no writer stores now; else its message has a mark, and a writer sends its outcome. So these
readings are in the stream as all others, for forwarders and for a rewind.
Promises: a durable group ends at most `wait_s_max` after the receipt of its oldest post, also if it
waits behind others. A group that was promised is tried, with the same id, until the stream has it
or `close` gives it up.
Does not: know the broker's errors; `publish` raises NotKept. It does not count rows or room; the
inlet does. It does not ask for an outcome again: one that gets lost or comes late is not known.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ingest.buffers.memory import SharedBlock
from ingest.buffers.waiting import Decision
from ingest.model.block import Ack, Block, Outcome
from ingest.model.errors import BrokerAway, BrokerOutcomeUnknown, CommitRefused, NotKept
from ingest.roles.nats.connection import WARNING_S, BrokerConnection
from ingest.roles.nats.protocol import AWAITED, COMMIT, Message
from ingest.roles.nats.publishing import NO_HEADERS, Publisher
from ingest.roles.outlet import NotOurs, decode_outcome, encode_message
from ingest.system.clock import monotonic_s
from ingest.system.logs import Occasionally, get_logger

ANSWER_S_MAX = 2.0  # until a writer says whether it stores now
KNOWN_S = 1.0
_DETAILS = {
    "database_away": "no writer stores in the database in time now; nothing of the post is kept",
    "database_on_hold": "nothing of the post is kept",
    "broker_away": BrokerAway.detail,
}
GROUP_BYTES_MAX = 256 * 1024  # a gateway puts so much into one message
GROUPS_IN_FLIGHT = 2  # one is on its way while the next one is stored; more were not faster
AGAIN_S = 0.5  # before a group that was promised is published once more
LEFT_S_MIN = 0.1  # with less time left a durable group is not published: it would be in doubt
_STOPPED = "the gateway stopped before the broker had answered"
_TOO_LATE = "the messages before it took too long"

_log = get_logger("broker")


class Awaited(NamedTuple):
    """A post in a message: its rows are `rows` ones from `first` on."""

    ack: Ack
    first: int
    rows: int


class Commits:
    """What the posts of one gateway wait for.

    Whether a writer stores now is asked once in KNOWN_S, for all posts.
    """

    def __init__(self, connection: BrokerConnection, *, outcome_s_max: float) -> None:
        self._connection = connection
        self._outcome_s_max = outcome_s_max
        self._expected: dict[str, Sequence[Awaited]] = {}  # by the id of the message
        self._refused = ""  # a code, as was said last
        self._known_until_s = 0.0
        self._asking: asyncio.Task[None] | None = None

    def are_taken(self) -> bool:
        """Whether a writer has just said that it stores. False: it is asked now; see again soon.

        Raises CommitRefused.
        """
        if monotonic_s() < self._known_until_s:
            if self._refused:
                raise CommitRefused(self._refused, _DETAILS[self._refused])
            return True
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return False

    async def require_writer(self) -> None:
        """Return once a writer has said that it stores. Raises CommitRefused."""
        while not self.are_taken():
            assert self._asking is not None
            await asyncio.shield(self._asking)

    async def _ask(self) -> None:
        try:
            reply = await self._connection.request(COMMIT, b"", ANSWER_S_MAX)
            said = reply.data.decode(errors="replace")
        except BrokerAway:  # or no writer answers
            said = "database_away" if self._connection.up else "broker_away"
        self._refused = said if said in _DETAILS or not said else "database_away"
        self._known_until_s = monotonic_s() + KNOWN_S

    def expect(self, message_id: str, posts: Sequence[Awaited]) -> None:
        """Resolve the acks of these posts once the outcome of their message comes."""
        self._expected[message_id] = posts
        asyncio.get_running_loop().call_later(
            self._outcome_s_max, self._expected.pop, message_id, None
        )

    def heard(self, message: Message) -> None:
        """Take an outcome that a writer has sent."""
        try:
            message_id, outcome = decode_outcome(message.data)
        except NotOurs:
            return
        for ack, first, rows in self._expected.pop(message_id, ()):
            refusals = tuple(
                each._replace(row=each.row - first)
                for each in outcome.refusals
                if first <= each.row < first + rows
            )
            ack.resolve(Outcome(refusals, outcome.set_aside))


class Group(SharedBlock):
    """The block of some posts, one message, and who waits until the stream has it.

    `promised`: its posts were answered already, so it must not be given up because of an error.
    `began_s`: when its first post came. `received_s`: when that was received; this is earlier if it
    had to wait for room, or was read back from a journal. `waits_since_s`: from then on its time
    counts. All are of the monotonic clock.
    """

    __slots__ = (
        *("awaited", "began_s", "deadline", "failed", "message_id"),
        *("posts", "promised", "received_s", "rows_told", "waits_since_s"),
    )

    def __init__(self, block: Block, rows_max: int, bytes_max: int, *, promised: bool) -> None:
        super().__init__(block, rows_max, bytes_max)
        self.promised = promised
        self.began_s = monotonic_s()
        self.received_s = block.received_s
        self.waits_since_s = self.began_s if block.reloaded else block.received_s
        self.deadline: asyncio.TimerHandle | None = None
        self.awaited: list[Awaited] = []  # the posts that wait for their commit
        self.message_id = ""  # once it has been published
        self.failed = False  # it has been published without success
        self.rows_told = 0  # of the posts whose waiters `told` gets
        self.posts: list[Decision] = []  # those whose task waits

    def stop_timer(self) -> None:
        """Let no deadline end it any more."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def end(self, error: NotKept | None) -> None:
        """Tell all who wait: the stream has it, or the error."""
        posts, self.posts = self.posts, []
        self.tell(error)
        for post in posts:
            post.end(error)


class GroupQueue:
    """The groups that have not ended. `ended` is called once for each; it may add new ones.

    `life` begins the ids of the messages.
    """

    def __init__(
        self,
        publisher: Publisher,
        ended: Callable[[Group, NotKept | None], None],
        *,
        life: str,
        groups_in_flight: int,
        wait_s_max: float,
        commits: Commits,
    ) -> None:
        self.groups: OrderedDict[Group, None] = OrderedDict()  # in the order of their begin
        self.refused: NotKept | None = None  # why the last message was not kept
        self._publisher = publisher
        self._ended = ended
        self._commits = commits
        self._life = life
        self._groups_in_flight = groups_in_flight
        self._wait_s_max = wait_s_max
        self._next: deque[Group] = deque()
        self._under_way: dict[Group, asyncio.Future[Any]] = {}
        self._failed: deque[Group] = deque()  # promised
        self._number = 0
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._has_turn = False  # `_publish_some` comes in the next round
        self._again: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._occasionally = Occasionally(WARNING_S)

    def add(self, group: Group) -> None:
        """Publish a group in one of the next rounds. It may grow until then."""
        self.groups[group] = None
        self._next.append(group)
        if not group.promised:
            self.set_deadline(group)
        self._publish_soon()

    def set_deadline(self, group: Group) -> None:
        """Set when a durable group ends if it could not be published before."""
        group.stop_timer()
        left_s = max(0.0, self._left_s(group) - LEFT_S_MIN)
        group.deadline = self._loop.call_later(left_s, self._expire, group)

    def _left_s(self, group: Group) -> float:
        return self._wait_s_max - (monotonic_s() - group.waits_since_s)

    def _publish_soon(self) -> None:
        """Publish in the next round: all posts of this one come first."""
        if not self._has_turn:
            self._has_turn = True
            self._loop.call_soon(self._publish_some)

    def _publish_some(self) -> None:
        self._has_turn = False
        if self._closed:  # a post that had its room before has come since
            self._give_up()
        while self._next and len(self._under_way) < self._groups_in_flight:
            self._publish(self._next.popleft())

    def _publish(self, group: Group) -> None:
        group.stop_timer()
        left_s = self._wait_s_max if group.promised else self._left_s(group)
        if left_s < LEFT_S_MIN:
            self._end(group, BrokerAway(_TOO_LATE))
            return
        block = group.block
        block.seal()
        if not group.message_id:
            self._number += 1
            block.sequence = self._number
            group.message_id = f"{self._life}-{self._number}"
        if group.awaited:
            self._commits.expect(group.message_id, group.awaited)
        try:
            under_way = self._publisher.publish(
                group.message_id,
                encode_message(block),
                left_s,
                headers={AWAITED: "1"} if group.awaited else NO_HEADERS,
            )
        except Exception as error:  # a bug; nobody must wait for ever
            _log.error("publish_failed", why=repr(error))
            self._end(group, BrokerOutcomeUnknown(repr(error)))
            return
        self._under_way[group] = under_way
        under_way.add_done_callback(lambda done: self._published(group, done))

    def _published(self, group: Group, done: asyncio.Future[Any]) -> None:
        del self._under_way[group]
        self.refused = error = _error_of(done)
        if error is None or self._closed or not group.promised:
            if error is None and group.failed:  # the others may work too
                self._next.extendleft(reversed(self._failed))
                self._failed.clear()
            self._end(group, error)
        else:
            self._complain(error)
            group.failed = True
            self._failed.append(group)
            self._try_one_later()
        if self._next:
            self._publish_soon()

    def _try_one_later(self) -> None:
        # One alone: a full stream must not get all of them again and again. And each in turn: one
        # of them may be refused for good.
        if self._again is None:
            self._again = self._loop.call_later(AGAIN_S, self._try_one)

    def _try_one(self) -> None:
        self._again = None
        if self._failed:
            self._next.appendleft(self._failed.popleft())
            self._publish_soon()
        if self._failed:
            self._try_one_later()

    def _expire(self, group: Group) -> None:
        """End a durable group whose time is over before it could be published."""
        self._next.remove(group)
        self._end(group, BrokerAway(_TOO_LATE))

    def _end(self, group: Group, error: NotKept | None) -> None:
        group.stop_timer()
        group.block.seal()  # it must not grow any more
        del self.groups[group]
        if error is not None:
            self._complain(error)
        self._ended(group, error)
        self._changed.set()

    def _complain(self, error: NotKept) -> None:
        if self._occasionally.due(type(error).__name__) is not None:
            _log.warning("publish_failed", why=str(error))

    async def finish(self) -> None:
        """Return once all groups have ended. Safe to cancel."""
        while self.groups:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """End all groups, and at once each that comes later. Repeatable."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        self._give_up()
        for each in list(self._under_way.values()):
            each.cancel()
        while self._under_way:  # until `_published` has ended them
            self._changed.clear()
            await self._changed.wait()

    def _give_up(self) -> None:
        """Give up what is not under way: a durable post is certainly not kept."""
        while groups := self._failed or self._next:
            self._end(groups.popleft(), BrokerAway(_STOPPED))


def _error_of(done: asyncio.Future[Any]) -> NotKept | None:
    if done.cancelled():
        return BrokerOutcomeUnknown(_STOPPED)
    error = done.exception()
    if error is None or isinstance(error, NotKept):
        return error
    _log.error("publish_failed", why=repr(error))  # a bug: the message may be in the stream
    return BrokerOutcomeUnknown(repr(error))
