"""The inlet of a gateway: posts are gathered into groups, and each group is one message.

    take_in, put -> the last group -> (at most `groups_in_flight` of them) publish -> PubAck -> told

While messages are under way the next group grows. So a post waits for at most one message before
its own, and the broker syncs its disk once for all posts of a group.

Promises: a durable post is told once the stream has it, or why not, at most `wait_s_max` after its
receipt. A buffered post is tried until the stream has it, or the gateway stops. No room is used
twice: it comes free when the message is in the stream.
Does not: have an outlet; the stream is one. When a group is published: see group_queue.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from copy import copy

from ingest.buffers.memory import COMPLETED, BlockQueue, MemoryInlet, WaitingWriters
from ingest.buffers.waiting import Decision
from ingest.model.block import Block, Reservation
from ingest.model.errors import NotKept
from ingest.model.ledger import Ledger
from ingest.model.ports import BufferStats, Sizes, Told
from ingest.roles.group_queue import Awaited, Commits, Group, GroupQueue
from ingest.roles.nats.publishing import Publisher
from ingest.system.clock import monotonic_s


class StreamInlet(MemoryInlet):
    """The buffer of a gateway: a ports.Inlet. `life` begins the ids of its messages."""

    levels: tuple[str, ...] = ("durable", "buffered")

    def __init__(
        self,
        publisher: Publisher,
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
        commits: Commits,
    ) -> None:
        super().__init__(rows_max, bytes_max, put_wait_s_max)
        self._commits = commits
        self._ledger = ledger
        self._group_rows_max = group_rows_max
        self._group_bytes_max = group_bytes_max
        self._late_s = wait_s_max / 2
        self.queue = GroupQueue(
            publisher,
            self._ended,
            life=life,
            groups_in_flight=groups_in_flight,
            wait_s_max=wait_s_max,
            commits=commits,
        )
        self._durable: Group | None = None  # the last one, which may still grow
        self._buffered: Group | None = None
        self._rows_promised = 0
        self._left = BlockQueue(WaitingWriters())  # promised, and given up by `close`

    # Posts come in

    def take_in(self, block: Block, waiter: object = None, told: Told | None = None) -> bool:
        """Add a post to the last group, at once: see ports.Inlet."""
        waiting, memory = self.waiting, self.memory
        rows, size_bytes = block.rows, len(block.tuples)
        if waiting.posts or waiting.shut or not memory.take(rows, size_bytes):
            return False
        if told is None:
            self._promise(block)
        else:
            group = self._add_durable(block)
            group.rows_told += rows
            group.waiters.append(waiter)
            group.told = told  # all posts of a buffer have the same
        return True

    async def reserve(
        self, rows: int, size_bytes: int, *, awaited: bool = False, sender: str = ""
    ) -> Reservation:
        """Wait for room: see ports.Inlet. Raises BufferFull, Stopping, and CommitRefused."""
        if awaited:
            await self._commits.require_writer()
        return await super().reserve(rows, size_bytes, awaited=awaited, sender=sender)

    def reserve_all(self, sizes: Sizes, *, awaited: bool = False) -> list[Reservation] | None:
        """Reserve room for all blocks of a post at once: see ports.Inlet, and `reserve`."""
        if awaited and not self._commits.are_taken():
            return None
        return super().reserve_all(sizes, awaited=awaited)

    def _put(self, block: Block, durable: bool) -> Awaitable[None]:
        """Add the block of a reservation to the last group."""
        posted = block.rows
        group_block = copy(block)  # it grows, and the caller still looks at its own
        if not durable:
            self._promise(group_block)
            return COMPLETED
        decision = Decision(posted, self._confirm)
        group = self._add_durable(group_block)
        group.posts.append(decision)
        if block.ack is not None:
            group.awaited.append(Awaited(block.ack, group.block.rows - posted, posted))
        return decision

    def _confirm(self, rows: int) -> None:
        self._ledger.published += rows

    def _promise(self, block: Block) -> None:
        """Add a block whose post is answered before the stream has it."""
        self._rows_promised += block.rows
        last = self._buffered
        if last is None or not last.takes(block):
            self._buffered = self._begin(block, promised=True)

    def _add_durable(self, block: Block) -> Group:
        if not block.reloaded and monotonic_s() - block.received_s > self._late_s:
            # It had to wait for room, and has little time left. That would end the posts of others.
            return self._begin(block, promised=False)
        last = self._durable
        if last is None or not last.takes(block):
            last = self._durable = self._begin(block, promised=False)
        elif block.received_s < last.waits_since_s and not block.reloaded:
            last.waits_since_s = block.received_s  # it had to wait for room
            self.queue.set_deadline(last)
        return last

    def _begin(self, block: Block, *, promised: bool) -> Group:
        group = Group(block, self._group_rows_max, self._group_bytes_max, promised=promised)
        self.queue.add(group)
        return group

    def _ended(self, group: Group, error: NotKept | None) -> None:
        """The stream has the group, or it is given up."""
        if group is self._durable:
            self._durable = None
        elif group is self._buffered:
            self._buffered = None
        block = group.block
        if error is None:
            self._ledger.published += block.rows if group.promised else group.rows_told
        elif group.promised:
            self._left.append(block)
        if group.promised:
            self._rows_promised -= block.rows
        self.memory.free(block.rows, group.size_bytes)
        group.end(error)

    # State

    @property
    def stuck_s(self) -> float:
        """How long the oldest message has had no answer, in seconds; 0 if there is none."""
        first = next(iter(self.queue.groups), None)
        return 0.0 if first is None else monotonic_s() - first.began_s

    def stats(self) -> BufferStats:
        """Return the content. Rows of posts that wait for the stream count in the receiver."""
        memory = self.memory
        return BufferStats(
            rows=self._rows_promised + self._left.rows,
            rows_max=memory.rows_max,
            size_bytes=memory.size_bytes + self.waiting.size_bytes,
            bytes_max=memory.bytes_max,
            rows_waiting=self._rows_promised,
            blocks_waiting=len(self.queue.groups),
            posts_waiting=len(self.waiting.posts),
            oldest_received_s=self._oldest_s(),
        )

    def _oldest_s(self) -> float | None:
        # Each refused post asks for it. A group that began later has hardly an older post.
        first = next(iter(self.queue.groups), None)
        return None if first is None else first.received_s

    # End

    def shut_inlet(self) -> None:
        """Accept no more posts. Those that wait for room get Stopping."""
        self.waiting.shut_out()

    async def finish(self) -> None:
        """Return once all messages are in the stream, or were given up. Safe to cancel."""
        await self.queue.finish()

    async def close(self) -> None:
        """Give up all messages: durable posts are told, buffered ones are left. Repeatable.

        A post that comes later is given up too: it may have had its room before.
        """
        self.shut_inlet()
        await self.queue.close()

    def take(self, rows_max: int) -> list[Block]:
        """Take blocks that `close` has left, whole, at least one if there is any."""
        return self._left.take(rows_max)

    def settle(self, blocks: Sequence[Block]) -> None:
        """Forget blocks that were taken: they are kept elsewhere now, or lost."""
        self._left.settle(blocks)
