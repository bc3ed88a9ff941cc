"""A group: posts that are published as one message of the stream.

Does not: publish it, or count the room of its posts. The inlet does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any

from ingest.buffers.shared_block import SharedBlock
from ingest.model.block import Block
from ingest.model.errors import NotKept
from ingest.model.ledger import Ledger
from ingest.model.ports import Told

Wait = asyncio.Future[None]  # of a post whose task waits


class Group:
    """The shared block of some posts, and who waits until the stream has it.

    `promised`: its posts were answered already, so it must not be given up because of an error.
    """

    __slots__ = (
        *("_told", "_waiters", "_waits", "began_s", "message_id", "promised", "rows_told"),
        "shared",
    )

    def __init__(self, block: Block, rows_max: int, bytes_max: int, *, promised: bool) -> None:
        self.shared = SharedBlock(block, rows_max, bytes_max)
        self.promised = promised
        self.began_s = block.received_s
        self.message_id = ""  # once it has been published
        self.rows_told = 0  # of the posts whose waiters `told` gets
        self._told: Told | None = None
        self._waiters: list[object] = []
        self._waits: list[Wait] = []

    @property
    def block(self) -> Block:
        """The block of all its posts."""
        return self.shared.block

    def add_waiter(self, waiter: object, rows: int, told: Told) -> None:
        """Remember whom to tell of so many rows. All posts of a buffer have the same `told`."""
        self.rows_told += rows
        self._waiters.append(waiter)
        self._told = told

    def add_wait(self) -> Wait:
        """Return a future that ends with the group: for the post that was added last."""
        wait: Wait = asyncio.get_running_loop().create_future()
        self._waits.append(wait)
        return wait

    def end(self, error: NotKept | None) -> None:
        """Tell all who wait: the stream has it, or the error."""
        waiters: Sequence[object]
        waiters, self._waiters = self._waiters, []
        if self._told is not None:
            self._told(waiters, error)
        for wait in self._waits:
            if wait.done():
                continue
            if error is None:
                wait.set_result(None)
            else:
                wait.set_exception(error)
        self._waits.clear()


class Publishing:
    """What a durable post awaits: the end of its group, even if the post is cancelled."""

    def __init__(self, group: Group, ledger: Ledger, rows: int) -> None:
        self._wait = group.add_wait()
        self._ledger = ledger
        self._rows = rows

    def __await__(self) -> Generator[Any, None, None]:
        return self._result().__await__()

    async def _result(self) -> None:
        cancelled = False
        while not self._wait.done():
            try:
                await asyncio.wait((self._wait,))
            except asyncio.CancelledError:
                cancelled = True
        if cancelled and (task := asyncio.current_task()) is not None:
            # Cancel again at the next await. Before that the caller counts what was kept.
            task.uncancel()
            task.cancel()
        self._wait.result()
        # Not before: until now the balance counts these rows in the receiver.
        self._ledger.published += self._rows
