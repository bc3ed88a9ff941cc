"""Pages of the admin port that cannot starve the data port, however often they are asked for.

Promises: a page is made for all who wait for it at that moment, one at a time. It is made anew
after SHARE times as long as it took, at most after a second, so it takes a twentieth of the time at
most; it is compressed in a thread. An answer is never older than its request. Few requests are in
work at once, so that the port keeps connections for the probes.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Hashable
from http import HTTPStatus

from ingest.http.request import Request
from ingest.http.response import Answer
from ingest.http.routes import Route, answered
from ingest.model.errors import Refused
from ingest.system.clock import monotonic_s

SHARE = 20
PAUSE_S_MAX = 1.0
KEPT = 4  # answers to different queries
WAITING_MAX = 16  # different queries of a page at once
GZIP_LEVEL = 6

See = Callable[[Request], Hashable]


class Few:
    """Lets few requests of some pages be in work at once; refuses more with 503 `busy`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0

    def bounded(self, page: Route) -> Route:
        """Return the page with the bound."""

        async def answer(request: Request, query: str, received_s: float) -> Answer:
            if self._inside >= self._most:
                raise Refused("busy", f"{self._most} requests are in work", retry_after_s=2)
            self._inside += 1
            try:
                return await answered(page, request, query, received_s)
            finally:
                self._inside -= 1

        return Route(page.methods, answer)


class _Shared:
    """One page. `see` refuses who may not see it, and returns what the page shows depends on."""

    def __init__(self, page: Route, see: See, *, compress: bool) -> None:
        self._page = page
        self._see = see
        self._compress = compress
        self._waiting: dict[Hashable, int] = {}  # how many requests, by what they ask for
        self._made: dict[Hashable, tuple[float, Answer]] = {}
        self._making = asyncio.Lock()
        self._next_s = 0.0

    async def answer(self, request: Request, query: str, received_s: float) -> Answer:
        small = self._compress and "gzip" in request.headers.get("Accept-Encoding", "")
        key = (query, small, self._see(request))
        if key not in self._waiting and len(self._waiting) >= WAITING_MAX:
            raise Refused("busy", "other queries of this page are waited for", retry_after_s=2)
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            async with self._making:
                began_s, answer = self._made.get(key, (0.0, None))
                if answer is None or began_s < received_s:
                    answer = await self._make(key, request, query, small=small)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        return answer

    async def _make(self, key: Hashable, request: Request, query: str, *, small: bool) -> Answer:
        await asyncio.sleep(max(0.0, self._next_s - monotonic_s()))
        began_s = monotonic_s()
        try:
            answer = await answered(
                self._page, request.without(("accept-encoding",)), query, began_s
            )
            if small and answer.status == HTTPStatus.OK:
                answer.body = await asyncio.to_thread(gzip.compress, answer.body, GZIP_LEVEL)
                answer.headers += b"Content-Encoding: gzip\r\n"
        finally:
            ended_s = monotonic_s()
            self._next_s = ended_s + min(PAUSE_S_MAX, SHARE * (ended_s - began_s))
        self._made[key] = (began_s, answer)
        while len(self._made) > KEPT:
            del self._made[next(iter(self._made))]
        return answer


def shared(page: Route, see: See, *, compress: bool = True) -> Route:
    """Return a page that is made for many requests at once, and compressed for who accepts it."""
    return Route(page.methods, _Shared(page, see, compress=compress).answer)
