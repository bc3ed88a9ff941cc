"""What a durable post awaits: whether its block is kept.

Promises: the wait does not end before that is known, even if the post is cancelled: a write that is
under way cannot be stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from ingest.model.errors import NotKept


class Decision:
    """The wait of one post with so many rows.

    `confirmed` gets the rows when its task goes on and the block is kept. Until then the balance
    counts them in the receiver.
    """

    __slots__ = ("_confirmed", "_ended", "_error", "_ready", "rows")

    def __init__(self, rows: int, confirmed: Callable[[int], None]) -> None:
        self.rows = rows
        self._confirmed = confirmed
        self._ended = False
        self._error: NotKept | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, error: NotKept | None) -> None:
        """It is decided: the block is kept, or there is an error."""
        self._ended = True
        self._error = error
        if not self._ready.done():
            self._ready.set_result(None)

    def __await__(self) -> Generator[Any, None, None]:
        return self.wait().__await__()

    async def wait(self) -> None:
        """Return once the block is kept. Raises NotKept."""
        cancelled = False
        while not self._ended:
            try:
                await self._ready
            except asyncio.CancelledError:
                cancelled = True
                self._ready = asyncio.get_running_loop().create_future()
        if cancelled and (task := asyncio.current_task()) is not None:
            # Cancel again at the next await. Before that the caller counts what was kept.
            task.uncancel()
            task.cancel()
        error = self._error
        if error is not None:
            # An exception of its own: a shared one would collect the frames of all posts.
            raise type(error)(*error.args)
        self._confirmed(self.rows)
