"""Any sequence of calls of receiver and writers to a buffer, compared with a small model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ingest.buffers.journal.buffer import JournalBuffer
from ingest.model.block import Block, Reservation
from ingest.model.errors import BufferFull, NotKept, Stopping
from ingest.model.ports import Buffer
from tests.contract.buffers import FACTORIES, MakeBuffer, memory, quiet, spin

ROWS_MAX, BYTES_MAX = 10, 100
SHARED_ROWS_MAX = 6
small_posts = st.lists(  # rows, bytes, and whether it waits for the disk
    st.tuples(st.integers(1, 4), st.integers(1, 15), st.booleans()), min_size=1, max_size=4
)


@dataclass(eq=False)
class Post:
    """A post as the model sees it."""

    rows: int
    size: int
    task: asyncio.Task[Reservation]
    expected: str = "waits"


@dataclass(eq=False)
class Held:
    """A block as the model sees it, of one post or of several; `grows`: more may be added."""

    block: Block  # of the first post
    rows: int
    content: bytes
    received_s: float
    posts: int = 1
    grows: bool = False

    @classmethod
    def of(cls, block: Block, *, grows: bool = False) -> Self:
        """Return a new block as the model sees it."""
        return cls(block, block.rows, block.tuples, block.received_s, grows=grows)

    def takes(self, block: Block) -> bool:
        """Add a post, if there is room for it."""
        if not self.grows or self.rows + block.rows > SHARED_ROWS_MAX:
            return False
        self.rows += block.rows
        self.content += block.tuples
        self.posts += 1
        return True


@dataclass
class Model:
    """What should be in a buffer."""

    queue: deque[Post] = field(default_factory=deque)
    rooms: list[Post] = field(default_factory=list)
    gathering: list[Held] = field(default_factory=list)  # not on the disk yet: in the receiver
    waiting: list[Held] = field(default_factory=list)
    taken: list[list[Held]] = field(default_factory=list)
    kept: list[Held] = field(default_factory=list)  # left to the next process

    @property
    def held(self) -> list[Held]:
        """All blocks that are not settled."""
        return [*self.waiting, *(each for batch in self.taken for each in batch), *self.kept]

    @property
    def rows(self) -> int:
        """Rows that are not settled, or reserved."""
        blocks = [*self.held, *self.gathering]
        return sum(each.rows for each in blocks) + sum(each.rows for each in self.rooms)

    @property
    def size(self) -> int:
        """Bytes that are not settled, or reserved."""
        blocks = [*self.held, *self.gathering]
        return sum(len(each.content) for each in blocks) + sum(each.size for each in self.rooms)

    def fits(self, rows: int, size: int) -> bool:
        """Whether there is room for a post."""
        return self.rows + rows <= ROWS_MAX and self.size + size <= BYTES_MAX

    def admit(self) -> None:
        """Reserve room for posts that wait, in order."""
        while self.queue and self.fits(self.queue[0].rows, self.queue[0].size):
            post = self.queue.popleft()
            post.expected = "room"
            self.rooms.append(post)

    def give_back(self, blocks: list[Held]) -> None:
        """Put blocks to the front; older ones that are there already stay before them."""
        front: list[Held] = []
        for each in blocks:
            while self.waiting and self.waiting[0].received_s < each.received_s:
                front.append(self.waiting.pop(0))
            front.append(each)
        self.waiting = front + self.waiting

    def written(self) -> None:
        """All that was gathered is on the disk now, and grows no more."""
        self.waiting += self.gathering
        self.gathering = []
        for each in self.waiting:
            each.grows = False


class BufferMachine(RuleBasedStateMachine):
    """Drives a buffer and the model. Most steps leave the loop idle; some do not let it run."""

    make: MakeBuffer

    def __init__(self) -> None:
        super().__init__()
        self.loop = uvloop.new_event_loop()
        self.buffer: Buffer = self.loop.run_until_complete(self._made())
        self.has_disk = isinstance(self.buffer, JournalBuffer)
        self.model = Model()
        self.is_shut = False
        self.clock = 0
        self.changed: list[Post] = []  # since the loop was idle
        self.to_be_told: list[int] = []
        self.told: list[int] = []

    async def _made(self) -> Buffer:
        return type(self).make(ROWS_MAX, BYTES_MAX, 1000)

    def _settled(self, *posts: Post, idle: bool = True) -> None:
        """Let the loop finish, then compare what posts got with the model."""
        self.changed += posts
        if not idle:
            return
        self.loop.run_until_complete(quiet(self.buffer))
        if self.has_disk:
            self.model.written()
        assert self.told == self.to_be_told
        for post in self.changed:
            got = "waits"
            if post.task.cancelled():
                got = "cancelled"
            elif post.task.done():
                failure = post.task.exception()
                got = type(failure).__name__ if failure else "room"
            assert got == post.expected
        self.changed.clear()

    def _know(self) -> None:
        """Let posts that were granted room learn of it."""
        if self.changed:
            self._settled()

    def _everybody(self) -> list[Post]:
        return [*self.model.queue, *self.model.rooms]

    def _block(self, rows: int, size: int) -> Block:
        self.clock += 1
        content = bytes([self.clock % 256]) * size
        return Block(content, rows, received_s=self.clock, received_us=0, newest_ts_us=0)

    @rule(rows=st.integers(1, ROWS_MAX + 1), size=st.integers(1, BYTES_MAX // 2))
    def reserve(self, rows: int, size: int) -> None:
        """A post asks for room."""
        model = self.model
        post = Post(rows, size, self.loop.create_task(self._reserve(rows, size)))
        if self.is_shut:
            post.expected = Stopping.__name__
        elif not model.queue and model.fits(rows, size):
            post.expected = "room"
            model.rooms.append(post)
        elif model.size + sum(each.size for each in model.queue) + size > BYTES_MAX:
            post.expected = BufferFull.__name__
        else:
            model.queue.append(post)
        self._settled(post)

    async def _reserve(self, rows: int, size: int) -> Reservation:
        return await self.buffer.reserve(rows, size)

    @rule(data=st.data(), durable=st.booleans())
    def put(self, data: st.DataObject, durable: bool) -> None:
        """A post hands over its block."""
        self._know()
        if not self.model.rooms:
            return
        post = self.model.rooms.pop(data.draw(st.integers(0, len(self.model.rooms) - 1)))
        block = self._block(post.rows, post.size)
        if durable and self.has_disk:
            self.model.written()  # what was gathered before comes first
        self.model.waiting.append(Held.of(block))
        self.loop.run_until_complete(self._put(post, block, durable))
        self._settled(*self._everybody())

    async def _put(self, post: Post, block: Block, durable: bool) -> None:
        await post.task.result().put(block, durable=durable)

    @rule(posts=small_posts, idle=st.booleans())
    def take_in(self, posts: list[tuple[int, int, bool]], idle: bool) -> None:
        """Some small posts come in one round, a part of them to wait for the disk."""
        model = self.model
        for rows, size, durable in posts:
            block = self._block(rows, size)
            fits = not (self.is_shut or model.queue) and model.fits(rows, size)
            if durable and self.has_disk:
                assert self.buffer.take_in(block, self.clock, self._tell) is fits
            else:
                assert self.buffer.take_in(block) is fits
            if not fits:
                continue
            blocks = model.waiting
            if durable and self.has_disk:
                blocks = model.gathering
                self.to_be_told.append(self.clock)
            if not blocks or not blocks[-1].takes(block):
                blocks.append(Held.of(block, grows=True))
        self._settled(idle=idle)

    def _tell(self, waiters: Sequence[int], error: NotKept | None) -> None:
        assert error is None
        self.told += waiters

    @rule(data=st.data(), times=st.integers(1, 2), idle=st.booleans())
    def release(self, data: st.DataObject, times: int, idle: bool) -> None:
        """A post gives its room back."""
        self._know()
        if not self.model.rooms:
            return
        post = self.model.rooms.pop(data.draw(st.integers(0, len(self.model.rooms) - 1)))
        posts = self._everybody()
        self.model.admit()
        for _ in range(times):
            post.task.result().release()
        self._settled(*posts, idle=idle)

    @rule(rows_max=st.integers(1, ROWS_MAX))
    def take(self, rows_max: int) -> None:
        """A writer takes a batch."""
        expected: list[Held] = []
        for each in self.model.waiting:
            if expected and sum(one.rows for one in expected) + each.rows > rows_max:
                break
            expected.append(each)
        taken = self.buffer.take(rows_max)
        assert taken == [each.block for each in expected]
        for block, each in zip(taken, expected, strict=True):
            each.grows = False
            assert (block.rows, block.tuples) == (each.rows, each.content)
            assert block.posts == each.posts
        del self.model.waiting[: len(expected)]
        if expected:
            self.model.taken.append(expected)

    def _cancel(self, post: Post) -> None:
        post.task.cancel()
        post.expected = "cancelled"
        if post in self.model.queue:
            self.model.queue.remove(post)
        else:
            self.model.rooms.remove(post)
        self.model.admit()

    def _settle(self, blocks: list[Held]) -> None:
        self.buffer.settle([each.block for each in blocks])
        self.model.admit()

    @rule(data=st.data(), give_back=st.booleans(), idle=st.booleans())
    def settle(self, data: st.DataObject, give_back: bool, idle: bool) -> None:
        """A writer stores a part of its batch, and gives the rest back or keeps it."""
        if not self.model.taken:
            return
        at = data.draw(st.integers(0, len(self.model.taken) - 1))
        batch = self.model.taken.pop(at)
        stored = [block for block in batch if data.draw(st.booleans())]
        rest = [block for block in batch if block not in stored]
        posts = self._everybody()
        if rest and give_back:
            self.buffer.give_back([each.block for each in rest])
            self.model.give_back(rest)
        elif rest:
            self.model.taken.append(rest)
        self._settle(stored)
        self._settled(*posts, idle=idle)

    @rule(data=st.data(), settle=st.sampled_from(["no", "before", "after"]))
    def cancel(self, data: st.DataObject, settle: str) -> None:
        """A waiting client hangs up, perhaps in the round in which a writer settles a batch."""
        self._know()
        if not self.model.queue:
            return
        post = self.model.queue[data.draw(st.integers(0, len(self.model.queue) - 1))]
        posts = self._everybody()
        batch = self.model.taken.pop() if settle != "no" and self.model.taken else []
        if settle == "before":
            self._settle(batch)
        self._cancel(post)
        if settle != "before":
            self._settle(batch)
        self._settled(*posts)

    @rule(chance=st.integers(0, 9))
    def shut(self, chance: int) -> None:
        """The service stops (seldom, or no other step would be tried)."""
        if chance:
            return
        posts = self._everybody()
        for post in self.model.queue:
            post.expected = Stopping.__name__
        self.model.queue.clear()
        self.is_shut = True
        self.buffer.shut_inlet()
        self._settled(*posts)

    @rule(times=st.integers(1, 2))
    def keep_rest(self, times: int) -> None:
        """The service leaves what waits to the next process; no writer has a block any more."""
        if not self.is_shut or self.model.taken:
            return
        for _ in range(times):
            self.loop.run_until_complete(self.buffer.keep_rest())
        self._settled()
        if self.has_disk:
            self.model.kept += self.model.waiting
            self.model.waiting.clear()

    @invariant()
    def agrees(self) -> None:
        """The buffer's numbers are those of the model, and within its bounds."""
        model, stats = self.model, self.buffer.stats()
        assert stats.rows == sum(block.rows for block in model.held)
        assert stats.rows_kept == sum(block.rows for block in model.kept)
        assert stats.rows_taken + stats.rows_waiting == stats.rows
        assert stats.size_bytes == model.size + sum(each.size for each in model.queue)
        assert stats.rows_waiting == self.buffer.rows_waiting == sum(b.rows for b in model.waiting)
        assert stats.blocks_waiting == len(model.waiting)
        assert stats.posts_waiting == len(model.queue)
        # Posts wait for the disk for some milliseconds; so much too young the first one may be.
        looked_at = [*model.waiting[:1], *model.kept, *(b for batch in model.taken for b in batch)]
        oldest_s = min((each.received_s for each in looked_at), default=None)
        assert stats.oldest_received_s == oldest_s
        first_s = model.waiting[0].received_s if model.waiting else None
        assert self.buffer.first_received_s() == first_s
        assert self.buffer.shut == self.is_shut
        assert model.rows <= ROWS_MAX
        assert stats.size_bytes <= BYTES_MAX

    def teardown(self) -> None:
        """End the waits, close the loop."""
        for post in self.model.queue:
            post.task.cancel()
        self.loop.run_until_complete(spin())
        self.loop.run_until_complete(self.buffer.close())
        self.loop.close()


@pytest.mark.parametrize(
    "times", [1, pytest.param(13, marks=[pytest.mark.slow, pytest.mark.timeout(240)])]
)
@pytest.mark.parametrize("factory", FACTORIES)
def test_buffer_agrees_with_the_model_after_any_steps(
    factory: Any, tmp_path: Path, times: int
) -> None:
    """Bounds, order and all counters agree, for any order of posts, writers and the stop."""
    attributes: dict[str, Any] = {
        "make": staticmethod(partial(factory, tmp_path, shared_rows_max=SHARED_ROWS_MAX))
    }
    machine = type("Machine", (BufferMachine,), attributes)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=times * (60 if factory is memory else 20),  # a folder and a thread each
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
