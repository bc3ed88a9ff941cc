"""Waits that end early: for one of two events, and for work that a stop cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def either(one: asyncio.Event, other: asyncio.Event, within_s: float | None = None) -> None:
    """Return once one of the two is set, or the time is over."""
    tasks = [asyncio.create_task(each.wait()) for each in (one, other)]
    try:
        await asyncio.wait(tasks, timeout=within_s, return_when="FIRST_COMPLETED")
    finally:
        for each in tasks:
            each.cancel()


async def unless(stopping: asyncio.Event, work: Coroutine[Any, Any, bool]) -> bool:
    """Do the work and return its result; if the event is set, cancel it, and return False."""
    doing = asyncio.create_task(work)
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((doing, stop), return_when="FIRST_COMPLETED")
    finally:
        stop.cancel()
        doing.cancel()  # does nothing if it is done
        await asyncio.gather(doing, return_exceptions=True)
    return not doing.cancelled() and doing.result()
