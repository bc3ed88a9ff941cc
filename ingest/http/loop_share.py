"""Shares each turn of the event loop between the posts and everything else.

A turn serves every socket that is ready, and a write to the database needs several turns: with
thousands of posts at once, one turn took 0.4 s, and the committed rate fell to a third. So only so
many posts are decoded in a turn; the others keep their order and have theirs in the turns to come.
Promises: first come, first served, among those that stand in the line.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

POST_BYTES = 2 * 1024  # what a post costs besides its body, in bytes of body: some 10 us
ROUND_BYTES = 256 * 1024  # some 120 single readings or 24 posts of 100, about 2 ms


class LoopShare:
    """Belongs to one event loop. `if not turns.take(size): await turns.wait(size)`."""

    def __init__(self) -> None:
        self._bytes_left = ROUND_BYTES
        self._queue: deque[tuple[int, Callable[[], bool]]] = deque()
        self._next_is_due = False

    def take(self, body_bytes: int) -> bool:
        """Take a post's share of this turn, if some is left: before those in the line."""
        if self._bytes_left <= 0:
            return False
        self._spend(body_bytes)
        return True

    def enqueue(self, body_bytes: int, begin: Callable[[], bool]) -> None:
        """Have `begin` called in a turn with room for the post; False from it: not needed now."""
        self._queue.append((body_bytes, begin))
        self._schedule()

    async def wait(self, body_bytes: int) -> None:
        """Wait for a turn with room for the post. Safe to cancel."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> bool:
            if granted.done():  # its client is gone
                return False
            granted.set_result(None)
            return True

        self.enqueue(body_bytes, begin)
        await granted

    def _spend(self, body_bytes: int) -> None:
        self._bytes_left -= body_bytes + POST_BYTES

    def _schedule(self) -> None:
        if not self._next_is_due:
            self._next_is_due = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Begin a turn, when somebody waits for it; sockets are looked at before the next one."""
        self._next_is_due = False
        self._bytes_left = ROUND_BYTES
        if self._queue:
            self._schedule()
        while self._queue and self._bytes_left > 0:
            body_bytes, begin = self._queue.popleft()
            if begin():
                self._spend(body_bytes)
