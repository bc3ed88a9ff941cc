"""Any sequence of calls of receiver and writers to a buffer, compared with a small model."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ingest.model.block import Block
from ingest.model.errors import BufferFull, Stopping
from ingest.model.ports import Buffer, Reservation
from tests.contract.buffers import FACTORIES, MakeBuffer, memory, spin

ROWS_MAX, BYTES_MAX = 10, 100


@dataclass(eq=False)
class Post:
    """A post as the model sees it."""

    rows: int
    size: int
    task: asyncio.Task[Reservation]
    expected: str = "waits"


@dataclass
class Model:
    """What should be in a buffer."""

    queue: deque[Post] = field(default_factory=deque)
    rooms: list[Post] = field(default_factory=list)
    waiting: list[Block] = field(default_factory=list)
    taken: list[list[Block]] = field(default_factory=list)

    @property
    def held(self) -> list[Block]:
        """All blocks that are not settled."""
        return [*self.waiting, *(block for batch in self.taken for block in batch)]

    @property
    def rows(self) -> int:
        """Rows that are not settled, or reserved."""
        return sum(each.rows for each in self.held) + sum(each.rows for each in self.rooms)

    @property
    def size(self) -> int:
        """Bytes that are not settled, or reserved."""
        return sum(len(b.tuples) for b in self.held) + sum(each.size for each in self.rooms)

    def fits(self, post: Post) -> bool:
        """Whether there is room for a post."""
        return self.rows + post.rows <= ROWS_MAX and self.size + post.size <= BYTES_MAX

    def admit(self) -> None:
        """Reserve room for posts that wait, in order."""
        while self.queue and self.fits(self.queue[0]):
            post = self.queue.popleft()
            post.expected = "room"
            self.rooms.append(post)


class BufferMachine(RuleBasedStateMachine):
    """Drives a buffer and the model; every step leaves the loop idle."""

    make: MakeBuffer

    def __init__(self) -> None:
        super().__init__()
        self.loop = uvloop.new_event_loop()
        self.buffer: Buffer = self.loop.run_until_complete(self._made())
        self.model = Model()
        self.is_shut = False
        self.clock = 0.0

    async def _made(self) -> Buffer:
        return type(self).make(ROWS_MAX, BYTES_MAX, 1000)

    def _settled(self, *posts: Post) -> None:
        """Let the loop finish, then compare what posts got with the model."""
        self.loop.run_until_complete(spin())
        for post in posts:
            got = "waits"
            if post.task.cancelled():
                got = "cancelled"
            elif post.task.done():
                failure = post.task.exception()
                got = type(failure).__name__ if failure else "room"
            assert got == post.expected

    def _everybody(self) -> list[Post]:
        return [*self.model.queue, *self.model.rooms]

    @rule(rows=st.integers(1, ROWS_MAX + 1), size=st.integers(1, BYTES_MAX // 2))
    def reserve(self, rows: int, size: int) -> None:
        """A post asks for room."""
        model = self.model
        post = Post(rows, size, self.loop.create_task(self._reserve(rows, size)))
        if self.is_shut:
            post.expected = Stopping.__name__
        elif not model.queue and model.fits(post):
            post.expected = "room"
            model.rooms.append(post)
        elif model.size + sum(each.size for each in model.queue) + size > BYTES_MAX:
            post.expected = BufferFull.__name__
        else:
            model.queue.append(post)
        self._settled(post)

    async def _reserve(self, rows: int, size: int) -> Reservation:
        return await self.buffer.reserve(rows, size)

    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        """A post hands over its block, of the size reserved or smaller."""
        if not self.model.rooms:
            return
        post = self.model.rooms.pop(data.draw(st.integers(0, len(self.model.rooms) - 1)))
        rows = data.draw(st.integers(1, post.rows))
        size = data.draw(st.integers(1, post.size))
        self.clock += 1
        block = Block(bytes(size), rows, received_s=self.clock, received_us=0, newest_ts_us=0)
        self.model.waiting.append(block)
        posts = self._everybody()
        self.model.admit()
        self.loop.run_until_complete(self._put(post, block))
        self._settled(*posts)

    async def _put(self, post: Post, block: Block) -> None:
        await post.task.result().put(block)

    @rule(data=st.data(), times=st.integers(1, 2))
    def release(self, data: st.DataObject, times: int) -> None:
        """A post gives its room back."""
        if not self.model.rooms:
            return
        post = self.model.rooms.pop(data.draw(st.integers(0, len(self.model.rooms) - 1)))
        posts = self._everybody()
        self.model.admit()
        for _ in range(times):
            post.task.result().release()
        self._settled(*posts)

    @rule(rows_max=st.integers(1, ROWS_MAX))
    def take(self, rows_max: int) -> None:
        """A writer takes a batch."""
        expected: list[Block] = []
        for block in self.model.waiting:
            if expected and sum(each.rows for each in expected) + block.rows > rows_max:
                break
            expected.append(block)
        assert self.buffer.take(rows_max) == expected
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

    def _settle(self, blocks: list[Block]) -> None:
        self.buffer.settle(blocks)
        self.model.admit()

    @rule(data=st.data(), give_back=st.booleans())
    def settle(self, data: st.DataObject, give_back: bool) -> None:
        """A writer stores a part of its batch, and gives the rest back or keeps it."""
        if not self.model.taken:
            return
        at = data.draw(st.integers(0, len(self.model.taken) - 1))
        batch = self.model.taken.pop(at)
        stored = [block for block in batch if data.draw(st.booleans())]
        rest = [block for block in batch if block not in stored]
        posts = self._everybody()
        if rest and give_back:
            self.buffer.give_back(rest)
            self.model.waiting = sorted([*self.model.waiting, *rest], key=lambda b: b.received_s)
        elif rest:
            self.model.taken.append(rest)
        self._settle(stored)
        self._settled(*posts)

    @rule(data=st.data(), settle=st.sampled_from(["no", "before", "after"]))
    def cancel(self, data: st.DataObject, settle: str) -> None:
        """A waiting client hangs up, perhaps in the round in which a writer settles a batch."""
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

    @invariant()
    def agrees(self) -> None:
        """The buffer's numbers are those of the model, and within its bounds."""
        model, stats = self.model, self.buffer.stats()
        assert stats.rows == sum(block.rows for block in model.held)
        assert stats.size_bytes == model.size + sum(each.size for each in model.queue)
        assert stats.rows_waiting == self.buffer.rows_waiting == sum(b.rows for b in model.waiting)
        assert stats.blocks_waiting == len(model.waiting)
        assert stats.posts_waiting == len(model.queue)
        assert stats.oldest_received_s == min((b.received_s for b in model.held), default=None)
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


@pytest.mark.parametrize("factory", FACTORIES)
def test_buffer_agrees_with_the_model_after_any_steps(factory: Any, tmp_path: Path) -> None:
    """Bounds, order and all counters agree, for any order of posts, writers and the stop."""
    attributes: dict[str, Any] = {"make": staticmethod(partial(factory, tmp_path))}
    machine = type("Machine", (BufferMachine,), attributes)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=150 if factory is memory else 40,  # a folder and a thread each
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
