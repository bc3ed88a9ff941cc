"""A group: posts that are published as one message of the stream.

Does not: publish it, or count the room of its posts. The inlet does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from ingest.buffers.shared_block import SharedBlock
from ingest.buffers.stream.commits import Awaited
from ingest.model.block import Block
from ingest.model.errors import NotKept
from ingest.model.ledger import Ledger
from ingest.model.ports import Told
from ingest.system.clock import monotonic_s


class Group:
    """The shared block of some posts, and who waits until the stream has it.

    `promised`: its posts were answered already, so it must not be given up because of an error.
    `began_s`: when its first post came. `received_s`: when that was received; this is earlier if it
    had to wait for room, or was read back from a journal. `waits_since_s`: from then on its time
    counts. All are of the monotonic clock.
    """

    __slots__ = (
        *("_posts", "_told", "_waiters", "began_s", "deadline", "failed", "message_id"),
        *("awaited", "promised", "received_s", "rows_told", "shared", "waits_since_s"),
    )

    def __init__(self, block: Block, rows_max: int, bytes_max: int, *, promised: bool) -> None:
        self.shared = SharedBlock(block, rows_max, bytes_max)
        self.promised = promised
        self.began_s = monotonic_s()
        self.received_s = block.received_s
        self.waits_since_s = self.began_s if block.reloaded else block.received_s
        self.deadline: asyncio.TimerHandle | None = None
        self.awaited: list[Awaited] = []  # the posts that wait for their commit
        self.message_id = ""  # once it has been published
        self.failed = False  # it has been published without success
        self.rows_told = 0  # of the posts whose waiters `told` gets
        self._told: Told | None = None
        self._waiters: list[object] = []
        self._posts: list[Publishing] = []

    @property
    def block(self) -> Block:
        """The block of all its posts."""
        return self.shared.block

    def add_waiter(self, waiter: object, rows: int, told: Told) -> None:
        """Remember whom to tell of so many rows. All posts of a buffer have the same `told`."""
        self.rows_told += rows
        self._waiters.append(waiter)
        self._told = told

    def add_post(self, post: Publishing) -> None:
        """Remember a post whose task waits."""
        self._posts.append(post)

    def stop_timer(self) -> None:
        """Let no deadline end it any more."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def end(self, error: NotKept | None) -> None:
        """Tell all who wait: the stream has it, or the error."""
        # A list that is not kept: nobody's request may stay in memory because of a group.
        waiters, self._waiters = self._waiters, []
        posts, self._posts = self._posts, []
        if self._told is not None:
            self._told(waiters, error)
        for post in posts:
            post.end(error)


class Publishing:
    """What a durable post awaits: the end of its group, even if the post is cancelled."""

    __slots__ = ("_ended", "_error", "_ledger", "_ready", "_rows")

    def __init__(self, ledger: Ledger, rows: int) -> None:
        self._ledger = ledger
        self._rows = rows
        self._ended = False
        self._error: NotKept | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, error: NotKept | None) -> None:
        """The group has ended."""
        self._ended = True
        self._error = error
        if not self._ready.done():
            self._ready.set_result(None)

    def __await__(self) -> Generator[Any, None, None]:
        return self.wait().__await__()

    async def wait(self) -> None:
        """Return once the stream has the post. Raises NotKept."""
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
        # Not before: until now the balance counts these rows in the receiver.
        self._ledger.published += self._rows
