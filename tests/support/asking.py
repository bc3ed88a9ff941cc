"""Asks a server that is starting, or comes back, until it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def first_answer(
    ask: Callable[[], Awaitable[T]], *errors: type[Exception], within_s: float
) -> T:
    """Call `ask` again and again until it raises none of `errors`; return what it returns.

    Raises TimeoutError after `within_s`, and every other error at once.
    """
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await ask()
            except errors:
                await asyncio.sleep(0.02)
