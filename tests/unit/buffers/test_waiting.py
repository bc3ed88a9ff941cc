"""Posts that wait for room, whose turn it is; and the buffer in memory."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter

import pytest

from ingest.buffers import waiting as turns_module
from ingest.buffers.memory import BoundedMemory, MemoryBuffer
from ingest.buffers.waiting import Turns, WaitingPosts
from ingest.model.block import Block, Reservation
from ingest.model.errors import BufferFull
from ingest.system.clock import monotonic_s
from tests.contract.buffers import spin
from tests.support.journals import make_block, size_of


class Rig:
    """Ten rows of memory, and the posts that wait for them."""

    def __init__(self, wait_s_max: float = 5.0, *, may_wait: bool = True) -> None:
        self.waiting = WaitingPosts(wait_s_max, may_wait=lambda _: may_wait, oldest_s=lambda: None)
        self.memory = BoundedMemory(10, 1 << 20, self.waiting.admit)
        self.reserved = self.place(10, 10)

    def place(self, rows: int, size_bytes: int) -> Reservation | None:
        """Reserve room at once, if there is some."""
        if not self.memory.take(rows, size_bytes):
            return None
        return Reservation(rows, size_bytes, self._put, self.memory.free)

    async def _put(self, block: Block, _durable: bool) -> None:
        raise AssertionError("nothing is put here")

    def free(self) -> None:
        """Give all room back that was in use from the start."""
        assert self.reserved is not None
        self.reserved.release()

    async def post(self, rows: int, sender: str = "") -> asyncio.Task[object]:
        """Let a post wait."""
        task = asyncio.create_task(self.waiting.wait(rows, rows, self.place, sender=sender))
        await spin()
        return task


async def test_posts_of_one_queue_may_need_different_room() -> None:
    """Each post waits with its own `place`; one that gets no room holds up those behind it."""
    rig = Rig()
    rig.free()
    refused = asyncio.create_task(rig.waiting.wait(1, 1, lambda _rows, _bytes: None))
    await spin()
    behind = await rig.post(1)
    rig.waiting.admit()
    await spin()
    assert not behind.done()
    refused.cancel()
    await spin()
    assert behind.done()
    assert not rig.waiting.posts


async def test_post_that_may_not_wait_is_refused_at_once() -> None:
    """So is every post if `wait_s_max` is 0."""
    for rig in (Rig(may_wait=False), Rig(wait_s_max=0.0)):
        with pytest.raises(BufferFull):
            await rig.waiting.wait(1, 1, rig.place)
        assert rig.waiting.size_bytes == 0


async def test_post_that_got_room_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of posts a second wait for a moment. A timer would keep each of them in memory."""
    expired: list[object] = []
    monkeypatch.setattr(WaitingPosts, "_expire", lambda _, post: expired.append(post))
    rig = Rig(wait_s_max=0.01)
    post = await rig.post(1)
    rig.free()
    await post
    await asyncio.sleep(0.03)
    assert not expired


@pytest.mark.parametrize("by", ["expires", "is shut out"])
async def test_post_cancelled_in_the_round_of_its_refusal_is_cancelled(
    by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio does not report the error of the refusal as never retrieved."""
    rig = Rig()
    post = await rig.post(1)
    if by == "expires":
        rig.waiting._expire(next(iter(rig.waiting.posts)))
    else:
        rig.waiting.shut_out()
    post.cancel()
    await spin()
    assert post.cancelled()
    del post
    await spin()
    assert not caplog.records
    assert rig.waiting.size_bytes == 0


async def test_sender_with_many_posts_gets_half_of_the_room_beside_another_one() -> None:
    """Its posts came first. Of the room that comes free, each of the two gets five rows."""
    rig = Rig()
    many = [await rig.post(1, "many") for _ in range(20)]
    few = [await rig.post(1, "few") for _ in range(8)]
    rig.free()
    await spin()
    assert [sum(each.done() for each in posts) for posts in (many, few)] == [5, 5]
    for each in (*many, *few):
        each.cancel()


async def test_sender_leaves_as_much_of_the_memory_as_its_posts_take() -> None:
    """One alone may let posts of half of it wait; its first one may be larger."""
    waiting = WaitingPosts(
        5.0, may_wait=lambda more: waiting.size_bytes + more <= 100, oldest_s=lambda: None
    )

    def wait(size_bytes: int, sender: str) -> asyncio.Task[object]:
        return asyncio.create_task(
            waiting.wait(1, size_bytes, lambda _rows, _bytes: None, sender=sender)
        )

    posts = [wait(10, "many") for _ in range(20)]
    await spin()
    assert sum(each.done() for each in posts) == 15
    large = wait(50, "other")
    await spin()
    assert not large.done()
    assert waiting.size_bytes == 100
    refused = wait(1, "third")
    await spin()
    assert isinstance(refused.exception(), BufferFull)
    for each in (*posts[:5], large):
        each.cancel()
    await asyncio.gather(*posts, large, return_exceptions=True)
    assert waiting.size_bytes == 0


def served(turns: Turns[int], count: int) -> list[int]:
    """Serve so many."""
    found = []
    for _ in range(count):
        first = turns.first()
        assert first is not None
        turns.serve()
        found.append(first)
    return found


def test_one_sender_keeps_its_order() -> None:
    """Small posts do not overtake large ones."""
    turns = Turns[int]()
    for number in range(100):
        turns.add(number, "one", 1 + number * 37 % 100)
    assert served(turns, 100) == list(range(100))


def test_senders_with_one_post_each_are_served_as_they_came() -> None:
    """So a fleet with a token for each device is served first come, first served."""
    turns = Turns[int]()
    for number in range(100):
        turns.add(number, str(number), 1 + number * 37 % 100)
    assert served(turns, 100) == list(range(100))


def test_bytes_are_shared_and_not_posts() -> None:
    """One sends a thousand bytes a post, the other ten: both get about as many bytes."""
    turns = Turns[int]()
    for number in range(50):
        turns.add(number, "large", 1_000)
    for number in range(50, 2_050):
        turns.add(number, "small", 10)
    large = sum(number < 50 for number in served(turns, 1_010))
    assert 9 <= large <= 11


def test_post_that_was_not_served_does_not_count() -> None:
    """A sender whose posts have all expired is not behind others for it."""
    turns = Turns[int]()
    turns.add(0, "other", 1)
    for number in range(1, 50):
        turns.add(number, "unlucky", 1_000)
    for number in range(1, 50):
        turns.leave(number)
    turns.add(50, "other", 1)
    turns.add(51, "unlucky", 1)
    assert served(turns, 3) == [0, 51, 50]
    assert turns.first() is None


@pytest.mark.parametrize("senders_max", [1, 2, 5, turns_module.SENDERS_MAX])
def test_each_sender_keeps_its_order_whatever_leaves(
    senders_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a post before it has left, and when what senders were given is forgotten."""
    monkeypatch.setattr(turns_module, "SENDERS_MAX", senders_max)
    rng = random.Random(senders_max)
    for _ in range(300):
        turns, done = Turns[int](), dict[str, int]()
        for number in range(60):
            turns.add(number, rng.choice("abc"), rng.choice((1, 2, 50)))
            if turns.posts and rng.random() < 0.4:
                turns.leave(rng.choice(list(turns.posts)))
            if (first := turns.first()) is not None and rng.random() < 0.4:
                sender = turns.posts[first][0]
                assert done.get(sender, -1) < first
                assert first == next(each for each, (of, _) in turns.posts.items() if of == sender)
                done[sender] = first
                turns.serve()


def test_memory_is_bounded_by_what_waits() -> None:
    """Posts that leave in any order, of ever new senders, leave nothing behind."""
    turns, rng = Turns[int](), random.Random(1)
    turns.add(-1, "stays", 10)
    waiting: list[int] = []
    for number in range(30_000):
        turns.add(number, f"sender {number}", 1)
        waiting.append(number)
        if len(waiting) > 20:
            turns.leave(waiting.pop(rng.randrange(len(waiting))))
    assert len(turns._heap) <= 2 * len(turns.posts) + turns_module.SPARE
    assert len(turns._ends) <= turns_module.SENDERS_MAX
    assert len(turns._own) == len(turns.posts) == 21
    assert len(turns._begins) <= 21
    assert Counter(sender for sender, _ in turns.posts.values())["stays"] == 1
    turns.clear()
    assert not turns._own


async def test_put_of_another_size_than_reserved_fails_loudly() -> None:
    """This is a fault of ours and not of the client: room would be lost, or used twice."""
    buffer = MemoryBuffer(rows_max=10, bytes_max=10_000, put_wait_s_max=0)
    exact = size_of(2)
    for rows, size_bytes in ((1, exact[1]), (3, exact[1]), (2, 1), (2, exact[1] + 1)):
        reservation = await buffer.reserve(rows, size_bytes)
        with pytest.raises(AssertionError):
            reservation.put(make_block(2))
        reservation.release()
        assert buffer.stats().size_bytes == 0


async def test_block_settled_twice_fails_loudly() -> None:
    """This is a fault of ours: the room would come free twice."""
    buffer = MemoryBuffer(rows_max=10, bytes_max=10_000, put_wait_s_max=0)
    assert buffer.take_in(make_block(1))
    taken = buffer.take(1)
    buffer.settle(taken)
    with pytest.raises(KeyError):
        buffer.settle(taken)


async def test_refusing_stays_cheap_with_many_blocks_in_hand() -> None:
    """Under overload posts are refused by the thousand while writers hold thousands of blocks."""
    buffer = MemoryBuffer(rows_max=10_000, bytes_max=1 << 26, put_wait_s_max=0)
    for _ in range(10_000):
        block = make_block(1)
        (await buffer.reserve(1, len(block.tuples))).put(block)
    taken = buffer.take(10_000)
    began_s = monotonic_s()
    for _ in range(5_000):
        with pytest.raises(BufferFull):
            await buffer.reserve(1, 1)
    assert monotonic_s() - began_s < 1.0
    buffer.settle(taken)


async def test_thousands_of_posts_that_give_up_together_do_not_stop_the_loop() -> None:
    """While the database is away, all posts of a fleet end their wait at the same time."""
    buffer = MemoryBuffer(rows_max=1, bytes_max=1 << 26, put_wait_s_max=0.05)
    reservation = await buffer.reserve(1, 1)
    posts = [asyncio.create_task(buffer.reserve(1, 1)) for _ in range(3_000)]
    began_s = monotonic_s()
    results = await asyncio.gather(*posts, return_exceptions=True)
    assert all(isinstance(each, BufferFull) for each in results)
    assert monotonic_s() - began_s < 3.0
    reservation.release()
    assert buffer.stats().size_bytes == 0


async def test_settled_blocks_are_not_kept() -> None:
    """Memory comes free with the room: nothing in the buffer still points to a block."""
    buffer = MemoryBuffer(rows_max=100, bytes_max=1 << 26, put_wait_s_max=0)
    before = blocks_alive()
    for reservation in [await buffer.reserve(*size_of(10)) for _ in range(10)]:
        reservation.put(make_block(10))
    taken = buffer.take(60)
    buffer.give_back(taken[3:])
    buffer.settle(taken[:3])
    del taken
    buffer.settle(buffer.take(100))
    assert blocks_alive() == before


def blocks_alive() -> int:
    """Return how many blocks there are in the whole process."""
    gc.collect()
    return sum(type(each) is Block for each in gc.get_objects())
