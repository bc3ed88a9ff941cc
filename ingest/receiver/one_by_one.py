"""Lets one large post at a time be decoded. Those that wait do so by turns of their senders.

Of two senders that always have posts, each gets half of the time, however many posts wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ingest.buffers.turns import Turns


class OneByOne:
    """One turn at a time."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting = Turns[asyncio.Future[None]]()

    @asynccontextmanager
    async def turn(self, sender: str, size_bytes: int) -> AsyncIterator[None]:
        """Wait for a turn, which lasts until the context ends. Safe to cancel."""
        if self._is_taken:
            await self._wait(sender, size_bytes)
        self._is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, sender: str, size_bytes: int) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(place, sender, size_bytes)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self._pass_on()  # it had just got the turn
            elif place in self._waiting.posts:
                self._waiting.leave(place)
            raise

    def _pass_on(self) -> None:
        self._is_taken = False
        while (place := self._waiting.first()) is not None:
            self._waiting.serve()
            if not place.done():  # else it was cancelled
                self._is_taken = True
                place.set_result(None)
                return
