"""Delivers to one server, each post until it is taken: the pauses, and what is known of the server.

    try -> an answer that ends it                          done
     ^---- no answer, or `later`: a pause <---'

Promises: pauses grow and have full jitter. A `Retry-After` is kept by all posts, up to
`retry_s_max`. When a post is taken again, those that pause try at once. A stop waits for tries that
are under way, for a while, and for nothing else.
Does not: know what a status means, or what becomes of a post that is refused.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from ingest.http_client.client import HttpClient, ServerReply, retry_after_s
from ingest.model.errors import NoReply
from ingest.system import clock
from ingest.system.logs import Occasionally
from ingest.system.waiting import backoff_s

AGAIN_S_MIN = 0.2  # the bound of the first pause
WARNING_S = 60.0

T = TypeVar("T")


class PostTally:
    """Plain numbers of one event loop. They start at 0 with each process."""

    def __init__(self) -> None:
        self.posts: defaultdict[str, int] = defaultdict(int)  # by status; `none`: no answer
        self.up = False  # whether the server took the last post


class ServerPosts:
    """The posts to one server. Times in seconds.

    `failed(why, left_out)` is called when the server takes nothing, but not each time: the same
    cause was left out so often before. `back(after_s)` is called when it takes posts again.
    """

    def __init__(
        self,
        client: HttpClient,
        tally: PostTally,
        *,
        retry_s_max: float,
        failed: Callable[[str, int], None],
        back: Callable[[float], None],
    ) -> None:
        self.trouble = ""  # why nothing is taken, in words; empty if the last post was taken
        self.stopping = False  # no more tries
        self.occasionally = Occasionally(WARNING_S)
        self._client = client
        self._tally = tally
        self._retry_s_max = retry_s_max
        self._tell_failed = failed
        self._tell_back = back
        self._not_before_s = 0.0  # the server has asked for a pause until then
        self._again = asyncio.Event()  # set once, to wake all who pause; then replaced
        self._failing_since_s: float | None = None

    async def run(
        self,
        works: Iterable[Coroutine[Any, Any, None]],
        stop: Callable[[], None],
        *,
        stopping: asyncio.Event,
        aborted: asyncio.Event,
        stop_s_max: float,
    ) -> None:
        """Run `works` until `stopping` is set, then call `stop`, after which they end.

        Tries under way have `stop_s_max` to end; they end at once when `aborted` is set.
        """
        tasks = [asyncio.create_task(each) for each in works]
        told = asyncio.create_task(stopping.wait())
        await asyncio.wait([told, *tasks], return_when=asyncio.FIRST_COMPLETED)
        self.stopping = True
        stop()
        self.wake()
        ended = asyncio.create_task(asyncio.wait(tasks))
        ended.add_done_callback(lambda _: aborted.set())
        await clock.sleep_unless(aborted, stop_s_max)
        self._client.abort()
        await ended
        told.cancel()
        for each in tasks:
            each.result()  # raises the error of a bug

    async def until_done(
        self, attempt: Callable[[int], Awaitable[T | None]], wanted: Callable[[], bool]
    ) -> T | None:
        """Call `attempt` with the number of the try, until it returns something; return that.

        Returns None once it is not wanted, which is asked before each try. A try is not
        interrupted, but by a stop.
        """
        tries = 0
        pause_s = 0.0
        while True:
            await self._pause(pause_s, wanted)
            if self.stopping or not wanted():
                return None
            tries += 1
            if (result := await attempt(tries)) is not None:
                return result
            pause_s = backoff_s(tries - 1, first_s=AGAIN_S_MIN, cap_s=self._retry_s_max)

    async def _pause(self, pause_s: float, wanted: Callable[[], bool]) -> None:
        """Wait: until another post was taken, and at least as long as the server has asked for."""
        until_s = clock.monotonic_s() + pause_s
        while not self.stopping and wanted():
            left_s = max(until_s, self._not_before_s) - clock.monotonic_s()
            if left_s <= 0:
                return
            if await self.woken(left_s):
                until_s = 0.0

    async def woken(self, delay_s: float) -> bool:
        """Sleep; return whether a post was taken again meanwhile, or somebody has called `wake`."""
        return await clock.sleep_unless(self._again, delay_s)

    def wake(self) -> None:
        """Let all posts that pause look whether they are wanted, and try again."""
        self._again.set()
        self._again = asyncio.Event()

    async def post(self, body: bytes, headers: Mapping[str, str]) -> ServerReply | None:
        """Post once; return the answer, or None."""
        try:
            reply = await self._client.post(body, headers)
        except NoReply as error:
            self.unanswered(str(error))
            return None
        self._tally.posts[str(reply.status)] += 1
        return reply

    def unanswered(self, why: str) -> None:
        """Note that a try has brought no answer."""
        self._tally.posts["none"] += 1
        self.failed(why)

    def later(self, reply: ServerReply, why: str) -> None:
        """Note an answer after which the same post is tried again."""
        self.failed(why)
        wait_s = retry_after_s(reply.retry_after, clock.unix_s(), self._retry_s_max)
        self._not_before_s = max(self._not_before_s, clock.monotonic_s() + wait_s)

    def taken(self) -> None:
        """Note that a post was taken."""
        self._tally.up = True
        self.trouble = ""
        if self._failing_since_s is not None:
            after_s = round(clock.monotonic_s() - self._failing_since_s, 1)
            self._failing_since_s = None
            self._tell_back(after_s)
            self.wake()

    def failed(self, why: str) -> None:
        """Note that nothing is taken now."""
        if self.stopping:
            return  # it was perhaps ended by us
        self._tally.up = False
        self.trouble = why
        if self._failing_since_s is None:
            self._failing_since_s = clock.monotonic_s()
        if (left_out := self.occasionally.due(why)) is not None:
            self._tell_failed(why, left_out)
