"""From a request to its whole, plain body, at the moment when it may be decoded.

Promises: all bodies that are received, wait for their turn of the loop or have been inflated are
bounded together: those that are in memory as posted by `all_bytes_max`, the large inflated ones by
INFLATED_MAX of them. What is over the bound waits unread, or is refused with 503.
Does not: look into a body.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from ingest.http.bodies import Bodies
from ingest.http.inflate import THREADS, Inflater, claimed_bytes, gunzip, is_gzip, is_light
from ingest.http.loop_share import LoopShare
from ingest.http.request import WholeRequest

INFLATED_MAX = 2 * THREADS  # one in each thread, and as many that wait for the loop


class PlainBodies:
    """The bodies of one data port."""

    def __init__(
        self, *, body_bytes_max: int, body_s_max: float, all_bytes_max: int, inflated_bytes_max: int
    ) -> None:
        self._inflated_bytes_max = inflated_bytes_max
        self._bodies = Bodies(
            body_bytes_max=body_bytes_max, body_s_max=body_s_max, all_bytes_max=all_bytes_max
        )
        self._inflater = Inflater(inflated_bytes_max, waiting_bytes_max=all_bytes_max)
        self._inflated = asyncio.Semaphore(INFLATED_MAX)
        self._loop_share = LoopShare()

    def enqueue(self, body_bytes: int, begin: Callable[[], bool]) -> bool:
        """Have `begin` called in a later turn. False: too many bodies wait already.

        What waits counts as held. `begin` says whether its post is still there.
        """
        if not self._bodies.hold(body_bytes):
            return False

        def begin_in_round() -> bool:
            self._bodies.let_go(body_bytes)
            return begin()

        self._loop_share.enqueue(body_bytes, begin_in_round)
        return True

    def whole_body(self, request: WholeRequest) -> bytes:
        """Return the body of a request whose turn has come. Raises Refused if it is too large."""
        self._bodies.check(request.content.total_bytes)
        return request.content.read_nowait()

    @asynccontextmanager
    async def body(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """Give the plain body; it counts as held until the context is left.

        Raises Refused, or ConnectionError if the client is gone. Safe to cancel.
        """
        gzipped = is_gzip(request.headers.get("Content-Encoding"))
        async with self._bodies.received(request) as body:
            if not gzipped:
                await self._wait_for_round(len(body))
                yield body
            elif is_light(body):
                await self._wait_for_round(claimed_bytes(body))
                yield gunzip(body, self._inflated_bytes_max)
            else:
                async with self._inflated:
                    inflated = await self._inflater.inflate(body)
                    await self._wait_for_round(len(inflated))
                    yield inflated

    async def _wait_for_round(self, size_bytes: int) -> None:
        if not self._loop_share.take(size_bytes):
            await self._loop_share.wait(size_bytes)

    def close(self) -> None:
        """Let the threads go; blocks for the bodies in work only (milliseconds)."""
        self._inflater.close()
