"""Waits that end early, pauses of long work, and how long to wait before the next try.

`backoff_s` is for tries at a server that others use too. Its jitter is full, not equal: after a
failover every writer of every instance tries again at the same moment, and random delays over the
whole window spread these reconnects best.
`Backoff` is for something of our own that has to be started again: each pause is twice the last.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable
from typing import Any, TypeVar

from ingest.system.clock import monotonic_s

# After so long the event loop gets a pause of the same length. If the work went on at once, the
# journal's thread would get no interpreter lock (see SWITCH_S), and posts waited up to 0.5 s.
SLICE_S = 0.002
STEADY_S = 60.0  # what has run for so long after a pause was good: pauses begin anew

T = TypeVar("T")


async def first_of(*works: Coroutine[Any, Any, object], within_s: float | None = None) -> bool:
    """Return once one of them has ended; the others are cancelled. False: the time was over."""
    tasks = [asyncio.create_task(each) for each in works]
    try:
        done, _ = await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_slices(items: Iterable[T]) -> AsyncIterator[T]:
    """Give all items; let the event loop and other threads do their work after each SLICE_S."""
    since_s = monotonic_s()
    for item in items:
        yield item
        if monotonic_s() - since_s > SLICE_S:
            await asyncio.sleep(SLICE_S)
            since_s = monotonic_s()


async def together(*works: Awaitable[object]) -> None:
    """Do all of it side by side. The first error ends the others, and is raised."""
    tasks = [asyncio.ensure_future(each) for each in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless(stopping: asyncio.Event, work: Awaitable[T], *, grace_s: float = 0.0) -> T | None:
    """Do the work and return its result; once the event is set, cancel it, and return None.

    From then on it has `grace_s` to end by itself.
    """
    doing = asyncio.ensure_future(work)
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((doing, stop), return_when=asyncio.FIRST_COMPLETED)
        if grace_s:
            await asyncio.wait((doing,), timeout=grace_s)
        ended = doing.done()
    finally:
        stop.cancel()
        doing.cancel()  # does nothing if it is done
        await asyncio.gather(doing, return_exceptions=True)
    return doing.result() if ended else None


def backoff_s(attempt: int, *, first_s: float, cap_s: float) -> float:
    """Return a random delay in seconds below min(cap_s, first_s * 2**attempt); attempt from 0.

    At least a tenth of the ceiling: several delays near zero would flood a server that is down.
    """
    ceiling_s = min(cap_s, first_s * 2.0 ** min(attempt, 40))
    return random.uniform(ceiling_s / 10, ceiling_s)


class Backoff:
    """Pauses in seconds between starts of one thing: `first_s`, then twice the last, to `cap_s`."""

    def __init__(self, first_s: float, cap_s: float) -> None:
        self._first_s = self._next_s = first_s
        self._cap_s = cap_s
        self._steady_at_s = 0.0

    def next_s(self) -> float:
        """Return how long to wait before the next start. Call it when one has ended or failed."""
        now_s = monotonic_s()
        pause_s = self._first_s if now_s > self._steady_at_s else self._next_s
        self._next_s = min(2 * pause_s, self._cap_s)
        self._steady_at_s = now_s + pause_s + STEADY_S
        return pause_s
