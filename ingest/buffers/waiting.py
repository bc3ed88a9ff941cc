"""The wait of posts: for room in a buffer, by turns, and for what becomes of a block on the disk.

Promises: the posts of one sender get room in the order in which they came; senders take turns. Of
the memory for posts that wait, a sender leaves as much free as its own posts take. A post waits at
most `wait_s_max`. A wait may be cancelled at any time: no room is lost, even if it was granted in
the same round of the event loop.
Does not: know how much room there is. The buffer does, and makes the reservations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

from ingest.model.block import Reservation
from ingest.model.errors import BufferFull, NotKept, Stopping
from ingest.model.ports import Sizes
from ingest.system.clock import monotonic_s

PUT_WAIT_S_MAX = 1.0  # a post waits so long for room: short beside the time-outs of clients
RETRY_AFTER_S_MIN, RETRY_AFTER_S_MAX = 1.0, 30.0
SENDERS_MAX = 10_000  # of more, what they were given is forgotten: then all are equal again
SPARE = 64
Place = Callable[[int, int], Reservation | None]  # rows, bytes; None: there is no room now
Post = TypeVar("Post", bound=Hashable)


class WaitingPosts:
    """A queue of posts that wait for room.

    `may_wait` is called with the bytes of a post and returns whether it may wait: its body needs
    memory too. `oldest_s` returns when the oldest block of the buffer was received, or None.
    """

    def __init__(
        self,
        wait_s_max: float,
        *,
        may_wait: Callable[[int], bool],
        oldest_s: Callable[[], float | None],
    ) -> None:
        self._turns = Turns[_WaitingPost]()
        self.posts = self._turns.posts
        self.size_bytes = 0  # of the posts
        self.shut = False
        self._wait_s_max = wait_s_max
        self._may_wait = may_wait
        self._oldest_s = oldest_s

    async def wait(
        self, rows: int, size_bytes: int, place: Place, *, sender: str = ""
    ) -> Reservation:
        """Wait until `place` returns a reservation of `rows` rows and `size_bytes` bytes.

        `sender` is that of Block; "" is bound to no share. Raises BufferFull after `wait_s_max`, or
        at once if the post may not wait; Stopping once the queue is shut.
        """
        if self.shut:
            raise Stopping("the buffer is shut")
        if not self.posts:
            reservation = place(rows, size_bytes)
            if reservation is not None:
                return reservation
        if self._wait_s_max <= 0 or not self._has_place(size_bytes, sender):
            raise BufferFull(self._retry_after_s())
        loop = asyncio.get_running_loop()
        post = _WaitingPost(rows, size_bytes, place, loop.create_future())
        self._turns.add(post, sender, size_bytes)
        self.size_bytes += size_bytes
        # A timer that ends the wait itself costs less than asyncio.timeout.
        timer = loop.call_later(self._wait_s_max, self._expire, post)
        try:
            return await post.granted
        except asyncio.CancelledError:
            self._leave(post)
            raise
        finally:
            timer.cancel()

    def _has_place(self, size_bytes: int, sender: str) -> bool:
        """Whether there is memory for one more post of a sender that waits.

        The first one of a sender needs its own bytes only: it may be larger than half of all.
        """
        own_bytes = self._turns.own_bytes(sender) if sender else 0
        return self._may_wait(size_bytes + (own_bytes + size_bytes if own_bytes else 0))

    def place_all(self, sizes: Sizes, place: Place) -> list[Reservation] | None:
        """Reserve room for all blocks of a post now; None if there is none, or a post waits.

        Raises Stopping once the queue is shut.
        """
        if self.shut:
            raise Stopping("the buffer is shut")
        if self.posts:
            return None
        reserved: list[Reservation] = []
        for rows, size_bytes in sizes:
            reservation = place(rows, size_bytes)
            if reservation is None:
                for each in reserved:
                    each.release()
                return None
            reserved.append(reservation)
        return reserved

    def admit(self) -> None:
        """Grant room to the posts whose turn it is, as long as there is room."""
        if not self.posts:
            return
        turns = self._turns
        while (post := turns.first()) is not None:
            if not post.granted.done():  # else it was cancelled, and its task has not run yet
                reservation = post.place(post.rows, post.size_bytes)
                if reservation is None:
                    return
                post.granted.set_result(reservation)
            turns.serve()
            self.size_bytes -= post.size_bytes

    def shut_out(self) -> None:
        """Let no post wait any more. Those that wait get Stopping."""
        self.shut = True
        for post in self.posts:
            if not post.granted.done():
                post.granted.set_exception(Stopping("the buffer is shut"))
        self._turns.clear()
        self.size_bytes = 0

    def _expire(self, post: _WaitingPost) -> None:
        """Refuse a post that has waited long enough."""
        if not post.granted.done():
            post.granted.set_exception(BufferFull(self._retry_after_s()))
            self._remove(post)

    def _remove(self, post: _WaitingPost) -> None:
        self._turns.leave(post)
        self.size_bytes -= post.size_bytes
        self.admit()  # this post may have been too large for the free room, and the next one not

    def _leave(self, post: _WaitingPost) -> None:
        """Remove a post that was cancelled, or release the room that it was granted just now."""
        if post in self.posts:
            self._remove(post)
        elif not post.granted.cancelled() and post.granted.exception() is None:
            post.granted.result().release()

    def _retry_after_s(self) -> float:
        """Return half the age of the oldest block.

        The longer the database is away, the later clients come back.
        """
        oldest_s = self._oldest_s()
        age_s = monotonic_s() - oldest_s if oldest_s is not None else 0.0
        return min(max(age_s / 2, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)


@dataclass(eq=False, slots=True)
class _WaitingPost:
    rows: int
    size_bytes: int
    place: Place
    granted: asyncio.Future[Reservation]


class Turns(Generic[Post]):
    """In which order posts that wait get room: the senders take turns. `posts`: oldest first.

    The posts of one sender keep their order. Among senders, the one that was given fewer bytes is
    next. So a sender with a thousand posts gets no more than one with a few: half, if these are
    two. (It is start-time fair queueing: a post begins where the post before of its sender ends,
    but not before the one that was served last.)
    The memory is bounded by the posts that wait, and by SENDERS_MAX. A call costs O(log n).
    """

    def __init__(self) -> None:
        self.posts: dict[Post, tuple[str, int]] = {}  # of each: the sender, and its bytes
        self._heap: list[tuple[int, int, Post]] = []  # where it begins, its number
        self._ends: dict[str, int] = {}  # of a sender: where its last post ends
        self._begins: dict[str, int] = {}  # and where it begins: no later one may begin before it
        self._own: dict[str, int] = {}  # bytes that wait, of a sender
        self._now = self._floor = 0
        self._number = 0

    def own_bytes(self, sender: str) -> int:
        """Return how many bytes of a sender wait."""
        return self._own.get(sender, 0)

    def add(self, post: Post, sender: str, size_bytes: int) -> None:
        """Add a post behind the others of its sender."""
        if len(self._ends) >= SENDERS_MAX and sender not in self._ends:
            self._ends.clear()
            self._begins.clear()
            self._floor = max((each[0] for each in self._heap), default=0)
        # A post before it may have left since, and counts no more; the others keep their order.
        own = max(self._ends.get(sender, 0), self._begins.get(sender, 0))
        begin = self._begins[sender] = max(self._now, self._floor, own)
        self._ends[sender] = begin + size_bytes
        self._own[sender] = self._own.get(sender, 0) + size_bytes
        self._number += 1
        self.posts[post] = sender, size_bytes
        heappush(self._heap, (begin, self._number, post))

    def first(self) -> Post | None:
        """Return the post whose turn it is."""
        heap = self._heap
        while heap and heap[0][2] not in self.posts:
            heappop(heap)  # it has left
        return heap[0][2] if heap else None

    def serve(self) -> None:
        """Remove the first one: it was given room."""
        self._now, _, post = heappop(self._heap)
        self._forget(post)

    def leave(self, post: Post) -> None:
        """Remove a post that was given nothing. It does not count for its sender."""
        sender, size_bytes = self._forget(post)
        if sender in self._ends:
            self._ends[sender] -= size_bytes
        if len(self._heap) > 2 * len(self.posts) + SPARE:
            self._heap = [each for each in self._heap if each[2] in self.posts]
            heapify(self._heap)

    def clear(self) -> None:
        """Remove all posts."""
        self.posts.clear()
        self._own.clear()
        self._begin_again()

    def _forget(self, post: Post) -> tuple[str, int]:
        sender, size_bytes = self.posts.pop(post)
        own_bytes = self._own.pop(sender, 0) - size_bytes
        if own_bytes > 0:
            self._own[sender] = own_bytes
        else:
            self._begins.pop(sender, None)
        if not self.posts:
            self._begin_again()
        return sender, size_bytes

    def _begin_again(self) -> None:
        self._heap.clear()
        self._ends.clear()
        self._begins.clear()
        self._now = self._floor = 0


class Decision:
    """What a durable post with so many rows awaits: whether its block is kept.

    The wait does not end before that is known, even if the post is cancelled: a write that is under
    way cannot be stopped. `confirmed` gets the rows when its task goes on and the block is kept.
    Until then the balance counts them in the receiver.
    """

    __slots__ = ("_confirmed", "_ended", "_error", "_ready", "rows")

    def __init__(self, rows: int, confirmed: Callable[[int], None]) -> None:
        self.rows = rows
        self._confirmed = confirmed
        self._ended = False
        self._error: NotKept | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, error: NotKept | None) -> None:
        """It is decided: the block is kept, or there is an error."""
        self._ended = True
        self._error = error
        if not self._ready.done():
            self._ready.set_result(None)

    def __await__(self) -> Generator[Any, None, None]:
        return self.wait().__await__()

    async def wait(self) -> None:
        """Return once the block is kept. Raises NotKept."""
        cancelled = False
        while not self._ended:
            try:
                await self._ready
            except asyncio.CancelledError:
                cancelled = True
                self._ready = asyncio.get_running_loop().create_future()
        if cancelled and (task := asyncio.current_task()) is not None:
            # Cancel again at the next await. Before that the caller counts what was kept.
            task.uncancel()
            task.cancel()
        error = self._error
        if error is not None:
            # An exception of its own: a shared one would collect the frames of all posts.
            raise type(error)(*error.args)
        self._confirmed(self.rows)
