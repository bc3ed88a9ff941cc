"""Waits that end early: for the first of several works, and for work that a stop cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def first_of(*works: Coroutine[Any, Any, object], within_s: float | None = None) -> None:
    """Return once one of them has ended, or the time is over; the others are cancelled."""
    tasks = [asyncio.create_task(each) for each in works]
    try:
        await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Do the work and return its result; if the event is set, cancel it, and return None."""
    doing = asyncio.create_task(work)
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((doing, stop), return_when=asyncio.FIRST_COMPLETED)
        ended = doing.done()
    finally:
        stop.cancel()
        doing.cancel()  # does nothing if it is done
        await asyncio.gather(doing, return_exceptions=True)
    return doing.result() if ended else None
