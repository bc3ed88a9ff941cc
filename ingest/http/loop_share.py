"""Shares each round of the event loop between the posts and all other work.

One round serves every socket that is ready, and a write to the database needs several rounds. With
thousands of posts at once, one round took 0.4 s, and the committed rate fell to a third. So each
round begins a bounded number of posts. The other posts wait in a queue for the next rounds.

A small valid post is done when it has begun: its time is known from its bytes. All other posts go
on in short steps, in the time that each round keeps for steps, after the posts of the round have
begun. So a large post, or one with invalid items, never delays a small one by more than that.
Promises: posts in the queue are served first come, first served. Posts in steps take turns, and
each round does at least one step.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from ingest.system.clock import monotonic_s

POST_BYTES = 2 * 1024  # the cost of a post without its body, in bytes of body: some 10 us
ROUND_BYTES = 256 * 1024  # some 120 single readings or 24 posts of 100, about 2 ms
BEGIN_BYTES = 64 * 1024  # the most that a post can cost before it goes on in steps
STEPS_S = 0.001  # of a round, for the steps of all posts

T = TypeVar("T")


class LoopShare:
    """The posts' share of the rounds of one event loop."""

    def __init__(self) -> None:
        self._bytes_left = ROUND_BYTES
        self._queue: deque[tuple[int, Callable[[], object]]] = deque()
        self._in_steps: deque[tuple[Generator[None, None, Any], asyncio.Future[Any]]] = deque()
        self._put_off: deque[Callable[[], object]] = deque()
        self._next_is_due = False

    def take(self, body_bytes: int) -> bool:
        """Take the share of a post from this round, if some is left; it passes the queue."""
        if self._bytes_left <= 0:
            return False
        self._bytes_left -= min(body_bytes, BEGIN_BYTES) + POST_BYTES
        return True

    def enqueue(self, body_bytes: int, begin: Callable[[], object]) -> None:
        """Call `begin` in a round that has a share left. If it returns False, it used no share."""
        self._queue.append((body_bytes, begin))
        if not self._next_is_due:
            self._schedule()

    def put_off(self, go_on: Callable[[], object]) -> None:
        """Call `go_on`, a short step, in the time for steps of a later round."""
        self._put_off.append(go_on)
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

    async def finish(self, steps: Generator[None, None, T]) -> T:
        """Do the steps in the rounds' time for steps; return the result.

        Raises what a step raises. Safe to cancel.
        """
        finished: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._in_steps.append((steps, finished))
        self._schedule()
        return await finished

    def _schedule(self) -> None:
        if not self._next_is_due:
            self._next_is_due = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Start a round; while posts are at work, the next one too, after the sockets are read."""
        self._next_is_due = False
        self._bytes_left = ROUND_BYTES
        if self._queue or self._in_steps or self._put_off:
            self._schedule()
        while self._queue and self._bytes_left > 0:
            body_bytes, begin = self._queue.popleft()
            if begin() is not False:
                self._bytes_left -= POST_BYTES
                self._bytes_left -= body_bytes if body_bytes < BEGIN_BYTES else BEGIN_BYTES
        if self._in_steps or self._put_off:
            until_s = monotonic_s() + STEPS_S
            for _ in range(len(self._put_off)):
                self._put_off.popleft()()
                if monotonic_s() >= until_s:
                    break
            self._do_steps(until_s)

    def _do_steps(self, until_s: float) -> None:
        """Do steps of one post after the other, at least one step."""
        while self._in_steps:
            steps, finished = self._in_steps.popleft()
            if finished.done():  # the wait was cancelled
                steps.close()
                continue
            try:
                next(steps)
            except StopIteration as end:
                finished.set_result(end.value)
            except Exception as error:  # it is raised where the post waits
                finished.set_exception(error)
            else:
                self._in_steps.append((steps, finished))
            if monotonic_s() >= until_s:
                return
