"""Shares each round of the event loop between the posts and all other work.

One round serves every socket that is ready, and a write to the database needs several rounds. With
thousands of posts at once, one round took 0.4 s, and the committed rate fell to a third. So each
round decodes a bounded number of posts. The other posts wait in a queue for the next rounds.
Promises: posts in the queue are served first come, first served.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

POST_BYTES = 2 * 1024  # the cost of a post without its body, in bytes of body: some 10 us
ROUND_BYTES = 256 * 1024  # some 120 single readings or 24 posts of 100, about 2 ms


class LoopShare:
    """The posts' share of the rounds of one event loop."""

    def __init__(self) -> None:
        self._bytes_left = ROUND_BYTES
        self._queue: deque[tuple[int, Callable[[], bool]]] = deque()
        self._next_is_due = False

    def take(self, body_bytes: int) -> bool:
        """Take the share of a post from this round, if some is left; it passes the queue."""
        if self._bytes_left <= 0:
            return False
        self._bytes_left -= body_bytes + POST_BYTES
        return True

    def enqueue(self, body_bytes: int, begin: Callable[[], bool]) -> None:
        """Call `begin` in a round that has a share left. If it returns False, it used no share."""
        self._queue.append((body_bytes, begin))
        self._schedule()

    async def wait(self, body_bytes: int) -> None:
        """Wait for a round that has a share left; not at all if this one has. Safe to cancel."""
        if self.take(body_bytes):
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> bool:
            if granted.done():  # the wait was cancelled
                return False
            granted.set_result(None)
            return True

        self.enqueue(body_bytes, begin)
        await granted

    def _schedule(self) -> None:
        if not self._next_is_due:
            self._next_is_due = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Start a round; while posts are queued, the next one too, after the sockets are read."""
        self._next_is_due = False
        self._bytes_left = ROUND_BYTES
        if self._queue:
            self._schedule()
        while self._queue and self._bytes_left > 0:
            body_bytes, begin = self._queue.popleft()
            if begin():
                self._bytes_left -= body_bytes + POST_BYTES
