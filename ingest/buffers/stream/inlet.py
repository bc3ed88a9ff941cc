"""The inlet of a gateway: posts are gathered into groups, and each group is one message.

    take_in, put -> the last group -> (at most `groups_in_flight` of them) publish -> PubAck -> told

While messages are under way the next group grows. So a post waits for at most one message before
its own, and the broker syncs its disk once for all posts of a group.

Promises: a durable post is told once the stream has it, or why not. A buffered post is tried until
the stream has it, or the gateway stops. No room is used twice: it comes free when the message is in
the stream. A post waits at most `wait_s_max` for its message, also for those before it.
Does not: know the broker's errors; `publish` raises NotKept. It has no outlet: the stream is one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from copy import copy
from functools import partial
from itertools import islice
from typing import Any, Protocol

from ingest.buffers.bounded_memory import COMPLETED, BoundedMemory
from ingest.buffers.stream.commits import CommitRequests
from ingest.buffers.stream.group import Group, Publishing
from ingest.buffers.stream.messages import encode_message
from ingest.buffers.stream.reservation import StreamReservation
from ingest.buffers.waiting import WaitingPosts
from ingest.model.block import Block
from ingest.model.errors import BrokerAway, BrokerOutcomeUnknown, NotKept
from ingest.model.ledger import Ledger
from ingest.model.ports import BufferStats, Reservation, Told
from ingest.system.clock import monotonic_s
from ingest.system.logs import Occasionally, get_logger

AGAIN_S = 0.5  # before a group that was promised is published once more
WARNING_S = 60.0
_STOPPED = "the gateway stopped before the broker had answered"

_log = get_logger("broker")


class Publishes(Protocol):
    """Publishes messages; see broker/publishing.py."""

    def publish(
        self, message_id: str, payload: bytes, within_s: float | None = None
    ) -> asyncio.Future[Any]:
        """Return a future that ends when the stream has the message; it raises NotKept."""


class StreamInlet:
    """The buffer of a gateway: implements ports.Inlet. `life` begins the ids of its messages."""

    levels: tuple[str, ...] = ("durable", "buffered")

    def __init__(
        self,
        publisher: Publishes,
        ledger: Ledger,
        *,
        life: str,
        rows_max: int,
        bytes_max: int,
        put_wait_s_max: float,
        group_rows_max: int,
        group_bytes_max: int,
        groups_in_flight: int,
        wait_s_max: float,
        commits: CommitRequests | None = None,
    ) -> None:
        self._publisher = publisher
        self._commits = commits
        self._ledger = ledger
        self._life = life
        self._group_rows_max = group_rows_max
        self._group_bytes_max = group_bytes_max
        self._groups_in_flight = groups_in_flight
        self._wait_s_max = wait_s_max
        self._waiting = WaitingPosts(
            put_wait_s_max, may_wait=self._may_wait, oldest_s=self._oldest_s
        )
        self.memory = BoundedMemory(self._promise, rows_max, bytes_max, self._waiting.admit)
        self._groups: deque[Group] = deque()  # not published yet, in order
        self._under_way: dict[Group, asyncio.Future[Any]] = {}
        self._failed: dict[Group, asyncio.TimerHandle] = {}  # promised: they are tried again
        self._last: dict[bool, Group | None] = {True: None, False: None}  # by `promised`
        self._rows_promised = 0
        self._number = 0
        self.refused: NotKept | None = None  # why the last message was not kept
        self._left: deque[Block] = deque()  # promised, and given up by `close`
        self._rows_taken = 0  # of these, by `take`
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.Handle | None = None
        self._changed = asyncio.Event()
        self._occasionally = Occasionally(WARNING_S)

    # Posts come in

    def take_in(self, block: Block, waiter: object = None, told: Told | None = None) -> bool:
        """Add a post to the last group, at once: see ports.Inlet."""
        waiting, memory = self._waiting, self.memory
        if waiting.posts or waiting.shut or not memory.fits(block.rows, len(block.tuples)):
            return False
        rows = block.rows  # before it becomes a part of another block
        memory.add(rows, len(block.tuples))
        if told is None:
            self._promise(block)
        else:
            self._add(block, promised=False).add_waiter(waiter, rows, told)
        return True

    async def reserve(self, rows: int, size_bytes: int, *, awaited: bool = False) -> Reservation:
        """Wait for room: see ports.Inlet. Raises BufferFull and Stopping.

        A block that is `awaited` goes to a writer, and not into the stream.
        """
        waiting, place = self._waiting, partial(self._place, awaited)
        if not (waiting.posts or waiting.shut):
            reservation = place(rows, size_bytes)
            if reservation is not None:
                return reservation
        return await waiting.wait(rows, size_bytes, place)

    def _place(self, awaited: bool, rows: int, size_bytes: int) -> Reservation | None:
        if not self.memory.fits(rows, size_bytes):
            return None
        self.memory.add(rows, size_bytes)
        return StreamReservation(self, rows, size_bytes, awaited=awaited)

    def ask(self, block: Block, rows: int, size_bytes: int) -> Awaitable[None]:
        """Send the block of a reservation to a writer; await that it has it."""
        assert self._commits is not None, "this inlet gives no `committed`"
        return self._commits.ask(block, partial(self.memory.free, rows, size_bytes))

    def put(self, block: Block, rows: int, size_bytes: int, *, durable: bool) -> Awaitable[None]:
        """Add the block of a reservation to the last group."""
        if not durable:
            self.memory.accept(copy(block), rows, size_bytes)
            return COMPLETED
        posted = block.rows
        surplus, surplus_bytes = rows - posted, size_bytes - len(block.tuples)
        block = copy(block)  # the group's block grows, and the caller still looks at its own
        publishing = Publishing(self._add(block, promised=False), self._ledger, posted)
        if surplus or surplus_bytes:  # the post had invalid items, which are not in the block
            self.memory.free(surplus, surplus_bytes)
        return publishing

    def _promise(self, block: Block) -> None:
        """Add a block whose post is answered before the stream has it."""
        self._rows_promised += block.rows
        self._add(block, promised=True)

    def _add(self, block: Block, *, promised: bool) -> Group:
        last = self._last[promised]
        if last is not None and last.shared.takes(block):
            return last
        group = Group(block, self._group_rows_max, self._group_bytes_max, promised=promised)
        self._last[promised] = group
        self._groups.append(group)
        if self._turn is None:
            # All posts of this round come first.
            self._turn = self._loop.call_soon(self._publish_some)
        return group

    # Messages go out

    def _publish_some(self) -> None:
        self._turn = None
        while self._groups and len(self._under_way) < self._groups_in_flight:
            self._publish(self._groups.popleft())

    def _publish(self, group: Group) -> None:
        left_s = self._wait_s_max
        if not group.promised:
            left_s -= monotonic_s() - group.began_s
            if left_s <= 0:
                self._end(group, BrokerAway("the messages before it took too long"))
                return
        block = group.block
        block.seal()
        if not group.message_id:
            self._number += 1
            block.sequence = self._number
            group.message_id = f"{self._life}-{self._number}"
        under_way = self._publisher.publish(group.message_id, encode_message(block), left_s)
        self._under_way[group] = under_way
        under_way.add_done_callback(lambda done: self._published(group, done))

    def _published(self, group: Group, done: asyncio.Future[Any]) -> None:
        self._under_way.pop(group, None)
        self.refused = error = _error_of(done)
        if error is None or done.cancelled() or not group.promised:
            self._end(group, error)
        else:
            self._complain(error)
            self._failed[group] = self._loop.call_later(AGAIN_S, self._again, group)
        if not self._closed:
            self._publish_some()

    def _again(self, group: Group) -> None:
        """Publish a group that was promised once more, with the same id."""
        del self._failed[group]
        self._groups.appendleft(group)
        self._publish_some()

    def _end(self, group: Group, error: NotKept | None) -> None:
        """The stream has the group, or it is given up."""
        block = group.block
        block.seal()
        if error is None:
            self._ledger.published += block.rows if group.promised else group.rows_told
        else:
            self._complain(error)
            if group.promised:
                self._left.append(block)
        if group.promised:
            self._rows_promised -= block.rows
        self.memory.free(block.rows, group.shared.size_bytes)
        group.end(error)
        self._changed.set()

    def _complain(self, error: NotKept) -> None:
        if self._occasionally.due(type(error).__name__) is not None:
            _log.warning("publish_failed", why=str(error))

    # State

    @property
    def stuck_s(self) -> float:
        """How long the oldest post has waited for its message, in seconds; 0 if none waits."""
        oldest_s = self._oldest_s()
        return 0.0 if oldest_s is None else monotonic_s() - oldest_s

    def stats(self) -> BufferStats:
        """Return the content. Rows of posts that wait for the stream count in the receiver."""
        memory, waiting = self.memory, self._waiting
        groups = (*self._under_way, *self._failed, *self._groups)
        return BufferStats(
            rows=self._rows_promised + self._rows_taken + sum(block.rows for block in self._left),
            rows_max=memory.rows_max,
            size_bytes=memory.size_bytes + waiting.size_bytes,
            bytes_max=memory.bytes_max,
            rows_waiting=self._rows_promised,
            blocks_waiting=len(groups),
            posts_waiting=len(waiting.posts),
            oldest_received_s=self._oldest_s(),
        )

    def _oldest_s(self) -> float | None:
        groups = (*self._under_way, *self._failed, *islice(self._groups, 1))
        return min((group.began_s for group in groups), default=None)

    def _may_wait(self, size_bytes: int) -> bool:
        memory = self.memory
        return memory.size_bytes + self._waiting.size_bytes + size_bytes <= memory.bytes_max

    # End

    def shut_inlet(self) -> None:
        """Accept no more posts. Those that wait for room get Stopping."""
        self._waiting.shut_out()

    async def finish(self) -> None:
        """Return once all messages are in the stream, or were given up. Safe to cancel."""
        while self._under_way or self._failed or self._groups:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Give up all messages: durable posts are told, buffered ones are left. Repeatable."""
        self.shut_inlet()
        self._closed = True
        if self._turn is not None:
            self._turn.cancel()
        for again in self._failed.values():
            again.cancel()
        # A message that was tried may be in the stream. One that was not is certainly not kept.
        tried, self._failed = list(self._failed), {}
        for group in tried:
            self._end(group, BrokerOutcomeUnknown(_STOPPED))
        while self._groups:
            self._end(self._groups.popleft(), BrokerAway(_STOPPED))
        under_way = list(self._under_way.values())
        for each in under_way:
            each.cancel()
        if under_way:
            await asyncio.wait(under_way)
        assert not self._under_way, "each has been ended"

    def take(self, rows_max: int) -> list[Block]:
        """Take blocks that `close` has left, whole, at least one if there is any."""
        taken: list[Block] = []
        rows = 0
        while self._left and (not taken or rows + self._left[0].rows <= rows_max):
            taken.append(self._left.popleft())
            rows += taken[-1].rows
        self._rows_taken += rows
        return taken

    def settle(self, blocks: Sequence[Block]) -> None:
        """Forget blocks that were taken: they are kept elsewhere now, or lost."""
        self._rows_taken -= sum(block.rows for block in blocks)


def _error_of(done: asyncio.Future[Any]) -> NotKept | None:
    if done.cancelled():
        return BrokerOutcomeUnknown(_STOPPED)
    error = done.exception()
    if error is None or isinstance(error, NotKept):
        return error
    _log.error("publish_failed", why=repr(error))  # a bug: the message may be in the stream
    return BrokerOutcomeUnknown(repr(error))
