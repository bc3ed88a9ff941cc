"""Waits that end early: for the first of several works, or an error; for work that a stop ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

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
