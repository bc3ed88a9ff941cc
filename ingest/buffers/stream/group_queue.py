"""The groups of a gateway on their way into the stream: which is published when, and for how long.

    add -> waits -> (at most `groups_in_flight`) publish -> PubAck      ended
             ^                                     |------> an error    ended, if it is durable
             '--- one of them now and then --- failed <---- an error    if it was promised

Promises: a durable group ends at most `wait_s_max` after the receipt of its oldest post, also if it
waits behind others. A group that was promised is tried, with the same id, until the stream has it
or `close` gives it up.
Does not: know the broker's errors; `publish` raises NotKept. It does not count rows or room.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from ingest.broker.publishing import NO_HEADERS, Publisher
from ingest.broker.roles import AWAITED
from ingest.buffers.stream.commits import Commits
from ingest.buffers.stream.group import Group
from ingest.buffers.stream.messages import encode_message
from ingest.model.errors import BrokerAway, BrokerOutcomeUnknown, NotKept
from ingest.system.clock import monotonic_s
from ingest.system.logs import Occasionally, get_logger

GROUP_BYTES_MAX = 256 * 1024  # a gateway puts so much into one message
GROUPS_IN_FLIGHT = 2  # one is on its way while the next one is stored; more were not faster
AGAIN_S = 0.5  # before a group that was promised is published once more
LEFT_S_MIN = 0.1  # with less time left a durable group is not published: it would be in doubt
WARNING_S = 60.0
_STOPPED = "the gateway stopped before the broker had answered"
_TOO_LATE = "the messages before it took too long"

_log = get_logger("broker")


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
