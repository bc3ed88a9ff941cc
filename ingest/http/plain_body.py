"""From a request to its whole, decompressed body, in the round in which it may be decoded.

Promises: all bodies in memory are bounded together, whether they are being received, wait for their
round or are decompressed. Bodies as posted are bounded by `all_bytes_max`, large decompressed ones
by INFLATED_MAX of them. A body over the bound waits unread, or is refused with 503.
Does not: parse a body.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

from ingest.http.bodies import Bodies
from ingest.http.inflate import encoding_of, expected_bytes, inflated, light
from ingest.http.loop_share import LoopShare
from ingest.http.request import Request
from ingest.model.errors import Refused

THREADS = 2  # for bodies that are not light
INFLATED_MAX = 2 * THREADS  # one in each thread, and as many that wait for a round
# A body that is smaller when it is decompressed is decoded in the round in which it is
# decompressed. It is not one of INFLATED_MAX.
UNCOUNTED_BYTES = 16 * 1024
T = TypeVar("T")


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
