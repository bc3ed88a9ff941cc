"""Who waits at a buffer: posts for room, and writers for rows.

Promises: posts get room in the order in which they came, and none overtakes another. A post waits
at most `wait_s_max`. A wait may be cancelled at any time: no room is lost, not even if it was
granted in the same round of the event loop.
Does not: know how much room there is. The buffer knows it, and places the posts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ingest.model.errors import BufferFull, Stopping
from ingest.model.ports import Reservation
from ingest.system.clock import monotonic_s

RETRY_AFTER_S_MIN, RETRY_AFTER_S_MAX = 1.0, 30.0

Place = Callable[[int, int], Reservation | None]  # rows, bytes; None: there is no room now


class WaitingPosts:
    """A queue of posts that wait for room.

    `may_wait` is asked with the bytes of a post whether it may wait: a body that waits needs memory
    too. `oldest_s` returns when the oldest block of the buffer was received, None if it is empty.
    """

    def __init__(
        self,
        wait_s_max: float,
        *,
        may_wait: Callable[[int], bool],
        oldest_s: Callable[[], float | None],
    ) -> None:
        self.posts: deque[_WaitingPost] = deque()
        self.size_bytes = 0  # of the posts
        self.shut = False
        self._wait_s_max = wait_s_max
        self._may_wait = may_wait
        self._oldest_s = oldest_s

    async def wait(self, rows: int, size_bytes: int, place: Place) -> Reservation:
        """Wait until `place` grants room for `rows` readings and `size_bytes` bytes.

        Raises BufferFull after `wait_s_max`, or at once if the post may not wait; Stopping once the
        queue is shut.
        """
        if self.shut:
            raise Stopping("the buffer is shut")
        if self._wait_s_max <= 0 or not self._may_wait(size_bytes):
            raise BufferFull(self._retry_after_s())
        post = _WaitingPost(rows, size_bytes, place)
        self.posts.append(post)
        self.size_bytes += size_bytes
        # Not asyncio.timeout: a timer that ends the wait itself costs less.
        timer = asyncio.get_running_loop().call_later(self._wait_s_max, self._expire, post)
        try:
            return await post.granted
        except asyncio.CancelledError:
            self._leave(post)
            raise
        finally:
            timer.cancel()

    def admit(self) -> None:
        """Grant room to the posts at the head of the queue, as long as there is room."""
        posts = self.posts
        while posts:
            post = posts[0]
            reservation = None
            # A post may be cancelled already while its task has not run since.
            if not (is_cancelled := post.granted.done()):
                reservation = post.place(post.rows, post.size_bytes)
            if reservation is None and not is_cancelled:
                return
            posts.popleft()
            self.size_bytes -= post.size_bytes
            if reservation is not None:
                post.granted.set_result(reservation)

    def shut_out(self) -> None:
        """Let no post wait any more: those that wait get Stopping."""
        self.shut = True
        for post in self.posts:
            if not post.granted.done():
                post.granted.set_exception(Stopping("the buffer is shut"))
        self.posts.clear()
        self.size_bytes = 0

    def _expire(self, post: _WaitingPost) -> None:
        """Refuse a post that has waited long enough."""
        if not post.granted.done():
            post.granted.set_exception(BufferFull(self._retry_after_s()))
            self._remove(post)

    def _remove(self, post: _WaitingPost) -> None:
        self.posts.remove(post)
        self.size_bytes -= post.size_bytes
        self.admit()  # it may have been too large for the room there is, and the next one not

    def _leave(self, post: _WaitingPost) -> None:
        """Take back what a post had that was cancelled: its place, or room granted just now."""
        if post in self.posts:
            self._remove(post)
        elif not post.granted.cancelled() and post.granted.exception() is None:
            post.granted.result().release()

    def _retry_after_s(self) -> float:
        """Half the age of the oldest block: the longer the database is away, the later to retry."""
        oldest_s = self._oldest_s()
        age_s = monotonic_s() - oldest_s if oldest_s is not None else 0.0
        return min(max(age_s / 2, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)


class _WaitingPost:
    __slots__ = ("granted", "place", "rows", "size_bytes")

    def __init__(self, rows: int, size_bytes: int, place: Place) -> None:
        self.rows = rows
        self.size_bytes = size_bytes
        self.place = place
        self.granted: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()


class WaitingWriters:
    """Writers that wait for rows, and how many may be taken from all queues of the buffer.

    A queue changes `rows`, and calls `wake` after it has added some.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.waits: list[tuple[int, asyncio.Future[None]]] = []  # rows, and the wait for them
        self._shut = False

    async def wait_rows(self, rows: int) -> None:
        """Wait until `rows` rows may be taken, or no more will come."""
        if self.rows >= rows or self._shut:
            return
        wait = (rows, asyncio.get_running_loop().create_future())
        self.waits.append(wait)
        try:
            await wait[1]
        finally:
            if wait in self.waits:
                self.waits.remove(wait)

    def wake(self) -> None:
        """Wake the writers whose wait is over."""
        for wait in self.waits[:]:
            if self.rows >= wait[0] or self._shut:
                self.waits.remove(wait)
                if not wait[1].done():
                    wait[1].set_result(None)

    def shut_out(self) -> None:
        """Let no writer wait any more: no more rows will come."""
        self._shut = True
        self.wake()
