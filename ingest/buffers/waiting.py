"""The wait of posts for room in a buffer.

Promises: the posts of one sender get room in the order in which they came; senders take turns. Of
the memory for posts that wait, a sender leaves as much free as its own posts take. A post waits at
most `wait_s_max`. A wait may be cancelled at any time: no room is lost, even if it was granted in
the same round of the event loop.
Does not: know how much room there is. The buffer does, and makes the reservations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ingest.buffers.turns import Turns
from ingest.model.block import Reservation
from ingest.model.errors import BufferFull, Stopping
from ingest.model.ports import Sizes
from ingest.system.clock import monotonic_s

PUT_WAIT_S_MAX = 1.0  # a post waits so long for room: short beside the time-outs of clients
RETRY_AFTER_S_MIN, RETRY_AFTER_S_MAX = 1.0, 30.0

Place = Callable[[int, int], Reservation | None]  # rows, bytes; None: there is no room now


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
