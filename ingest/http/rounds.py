"""The rounds of the event loop, shared between the posts and all other work; and bodies in them.

One round serves every socket that is ready, and a write to the database needs several rounds. With
thousands of posts at once, one round took 0.4 s, and the committed rate fell to a third. So each
round begins a bounded number of posts. The others wait in a queue, first come, first served.
A small valid post is done when it has begun: its time is known from its bytes. All other posts go
on in short steps, in the time that each round keeps for steps, after the posts of the round have
begun. So none of them delays a small one by more than that. The loop does not sleep until its steps
are done, and small posts wait for the journal's thread: see LONG_S.
Promises: senders with posts in steps take turns, and so do the posts of each. Each round does at
least one step. Work that was put off has its turns by network in the same way, so a flood from one
network delays another one by a step. Of this, every second step is of work that has begun, if there
is any: else a thousand handshakes at once would all begin, and none end in its time.
All bodies in memory are bounded together, whether they are being received, wait for their round or
are decompressed; large decompressed ones by INFLATED_MAX of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from typing import Any, NamedTuple, TypeVar, cast

from ingest.http.bodies import Bodies, encoding_of, expected_bytes, inflated, light
from ingest.http.request_and_answer import Request
from ingest.model.errors import Refused
from ingest.system.clock import monotonic_s
from ingest.system.process_setup import sharing_soon

POST_BYTES = 2 * 1024  # the cost of a post without its body, in bytes of body: some 10 us
ROUND_BYTES = 256 * 1024  # some 120 single readings or 24 posts of 100, about 2 ms
BEGIN_BYTES = 64 * 1024  # the most that a post can cost before it goes on in steps
STEPS_S = 0.001  # of a round, for the steps of all posts
# Of it, for work that was put off. These are two to four steps of handshakes (0.16 to 0.4 ms each).
# With one step a round, a full handshake cost half as much again: many rounds had no other work.
PUT_OFF_S = 0.0007
# If the steps of a post take longer, other threads get the interpreter sooner until it is done.
# Those of 5,000 readings of JSON take some 3 ms. While many of those come the journal's thread may
# wait: so its groups are larger, and cost less.
LONG_S = 0.01
THREADS = 2  # for bodies that are not light
INFLATED_MAX = 2 * THREADS  # one in each thread, and as many that wait for a round
# A body that is smaller when it is decompressed is decoded in the round in which it is
# decompressed. It is not one of INFLATED_MAX.
UNCOUNTED_BYTES = 16 * 1024

T = TypeVar("T")
_Steps = dict[str, dict[Callable[[], object], None]]


class LoopShare:
    """The posts' share of the rounds of one event loop.

    `begun` is called with the bytes of a body that is in memory while it waits, before its post
    begins.
    """

    def __init__(self, begun: Callable[[int], object] = lambda _body_bytes: None) -> None:
        self._begun = begun
        self._bytes_left = ROUND_BYTES
        self._queue: deque[tuple[int, Callable[[], object], int]] = deque()
        self._in_steps: dict[str, dict[_InSteps, None]] = {}  # of each sender; the next is first
        # Of each network, too: what goes on, and what begins. They take turns.
        self._put_off: tuple[_Steps, _Steps] = ({}, {})
        self._begins_next = False
        self._next_is_due = False

    def enqueue(
        self, body_bytes: int, begin: Callable[[], object], *, counted_bytes: int = 0
    ) -> None:
        """Call `begin` in a round that has a share left. If it returns False, it used no share.

        `counted_bytes` of the body are in memory meanwhile.
        """
        self._queue.append((body_bytes, begin, counted_bytes))
        if not self._next_is_due:
            self._schedule()

    def put_off(self, go_on: Callable[[], object], network: str, *, begins: bool = False) -> None:
        """Call `go_on`, a short step of this network, in the time that rounds keep for steps.

        One that waits already keeps its place. `begins`: it is the first step of its work.
        """
        self._put_off[begins].setdefault(network, {})[go_on] = None
        self._schedule()

    def forget(self, go_on: Callable[[], object], network: str) -> None:
        """Do not call it, if it was put off and has not been called yet."""
        for put_off in self._put_off:
            steps = put_off.get(network, {})
            steps.pop(go_on, None)
            if not steps:
                put_off.pop(network, None)

    async def wait(self, body_bytes: int) -> None:
        """Wait for a round that has a share left; not at all if this one has. Safe to cancel."""
        if self._bytes_left > 0:  # it passes the queue
            self._bytes_left -= min(body_bytes, BEGIN_BYTES) + POST_BYTES
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> bool:
            if granted.done():  # the wait was cancelled
                return False
            granted.set_result(None)
            return True

        self.enqueue(body_bytes, begin)
        await granted

    async def finish(self, steps: Generator[None, None, T], sender: str = "") -> T:
        """Do the steps in the rounds' time for steps; return the result.

        Raises what a step raises. Safe to cancel.
        """
        with ExitStack() as until_done:
            post = _InSteps(steps, until_done, sender)
            self._in_steps.setdefault(sender, {})[post] = None
            self._schedule()
            return cast("T", await post.finished)

    def _schedule(self) -> None:
        if not self._next_is_due:
            self._next_is_due = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Start a round; while posts are at work, the next one too, after the sockets are read."""
        self._next_is_due = False
        self._bytes_left = ROUND_BYTES
        if self._queue or self._in_steps or any(self._put_off):
            self._schedule()
        while self._queue and self._bytes_left > 0:
            body_bytes, begin, counted_bytes = self._queue.popleft()
            if counted_bytes:
                self._begun(counted_bytes)
            if begin() is not False:
                self._bytes_left -= POST_BYTES
                self._bytes_left -= body_bytes if body_bytes < BEGIN_BYTES else BEGIN_BYTES
        if self._in_steps or any(self._put_off):
            began_s = now_s = monotonic_s()
            while (go_on := self._next_put_off()) is not None:
                go_on()
                now_s = monotonic_s()
                if now_s - began_s >= PUT_OFF_S:
                    break
            self._do_steps(now_s, began_s + STEPS_S)

    def _next_put_off(self) -> Callable[[], object] | None:
        self._begins_next = begins = not self._begins_next
        return _next_of(self._put_off[begins]) or _next_of(self._put_off[not begins])

    def _do_steps(self, now_s: float, until_s: float) -> None:
        """Do steps of one post after the other, at least one step."""
        while (post := _next_of(self._in_steps)) is not None:
            if post.finished.done():  # the wait was cancelled
                post.steps.close()
                continue
            began_s = now_s
            try:
                next(post.steps)
            except StopIteration as end:
                post.finished.set_result(end.value)
            except Exception as error:  # it is raised where the post waits
                post.finished.set_exception(error)
            else:
                self._in_steps.setdefault(post.sender, {})[post] = None
            now_s = monotonic_s()
            post.took(now_s - began_s)
            if now_s >= until_s:
                return


class _InSteps:
    """A post in steps. `until_done` ends when nobody waits for it any more."""

    __slots__ = ("finished", "sender", "steps", "took_s", "until_done")

    def __init__(
        self, steps: Generator[None, None, Any], until_done: ExitStack, sender: str
    ) -> None:
        self.sender = sender
        self.steps = steps
        self.until_done = until_done
        self.finished: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.took_s = 0.0

    def took(self, step_s: float) -> None:
        """Note the time of a step. If all took long, other threads get the interpreter sooner."""
        before_s, self.took_s = self.took_s, self.took_s + step_s
        if before_s <= LONG_S < self.took_s:
            self.until_done.enter_context(sharing_soon())


def _next_of(waiting: dict[str, dict[T, None]]) -> T | None:
    """Take the first work of the sender whose turn it is; the sender is the last one then."""
    for sender, works in waiting.items():
        work = next(iter(works))
        del works[work], waiting[sender]
        if works:
            waiting[sender] = works
        return work
    return None


class BodyLimits(NamedTuple):
    """The largest body of a page, as it was sent and decompressed."""

    body_bytes_max: int
    inflated_bytes_max: int


class PlainBodies:
    """The bodies of one data port. A page may have other limits than these, up to `largest`.

    `loop_share` decides in which round of the event loop their posts begin and go on.
    """

    def __init__(
        self,
        *,
        body_bytes_max: int,
        body_s_max: float,
        all_bytes_max: int,
        inflated_bytes_max: int,
        largest: int = 0,
    ) -> None:
        self.limits = BodyLimits(body_bytes_max, inflated_bytes_max)
        self._bodies = Bodies(
            body_bytes_max=max(body_bytes_max, largest),
            body_s_max=body_s_max,
            all_bytes_max=all_bytes_max,
        )
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="inflate")
        self._inflated = asyncio.Semaphore(INFLATED_MAX)
        self.loop_share = LoopShare(self._bodies.count_out)

    def enqueue(self, body_bytes: int, begin: Callable[[], object]) -> bool:
        """Call `begin` in a later round. Returns False if too many bodies are in memory already.

        The body of a queued request counts as in memory until then.
        """
        if not self._bodies.count_in(body_bytes):
            return False
        self.loop_share.enqueue(body_bytes, begin, counted_bytes=body_bytes)
        return True

    @asynccontextmanager
    async def body(
        self, request: Request, limits: BodyLimits | None = None
    ) -> AsyncIterator[bytes]:
        """Give the decompressed body; it counts as in memory until the context ends.

        Raises Refused, or ConnectionError if the client is gone. Safe to cancel.
        """
        encoding = encoding_of(request.headers.get("Content-Encoding"))
        body_bytes_max, inflated_bytes_max = limits or self.limits
        async with self._bodies.received(request, body_bytes_max) as body:
            if encoding is None:
                await self.loop_share.wait(len(body))
                yield body
                return
            expected = expected_bytes(body, encoding)
            if expected <= UNCOUNTED_BYTES:
                await self.loop_share.wait(expected)
                small = light(body, encoding, inflated_bytes_max, UNCOUNTED_BYTES)
                if small is not None:
                    yield small
                    return
            async with self._inflated:
                whole = light(body, encoding, inflated_bytes_max)
                if whole is None:
                    whole = await asyncio.get_running_loop().run_in_executor(
                        self._threads, inflated, body, encoding, inflated_bytes_max
                    )
                await self.loop_share.wait(len(whole))
                yield whole

    async def finish(
        self, steps: Generator[None, None, T], uncounted_bytes: int, sender: str = ""
    ) -> T:
        """Do the steps of a post in the next rounds; return the result. Senders take turns.

        `uncounted_bytes` of its body are in memory and not counted: they are, until the end. Raises
        Refused, also if there is no room for them. Safe to cancel.
        """
        if not self._bodies.count_in(uncounted_bytes):
            raise Refused("buffer_full", "too many bodies at once", retry_after_s=2)
        try:
            return await self.loop_share.finish(steps, sender)
        finally:
            self._bodies.count_out(uncounted_bytes)

    def close(self) -> None:
        """End the threads; blocks for the bodies in work only (milliseconds)."""
        self._threads.shutdown(cancel_futures=True)
