"""A group: posts that are published as one message of the stream.

Does not: publish it, or count the room of its posts. The inlet does.
"""

from __future__ import annotations

import asyncio

from ingest.buffers.decision import Decision
from ingest.buffers.shared_block import SharedBlock
from ingest.buffers.stream.commits import Awaited
from ingest.model.block import Block
from ingest.model.errors import NotKept
from ingest.system.clock import monotonic_s


class Group(SharedBlock):
    """The block of some posts, and who waits until the stream has it.

    `promised`: its posts were answered already, so it must not be given up because of an error.
    `began_s`: when its first post came. `received_s`: when that was received; this is earlier if it
    had to wait for room, or was read back from a journal. `waits_since_s`: from then on its time
    counts. All are of the monotonic clock.
    """

    __slots__ = (
        *("awaited", "began_s", "deadline", "failed", "message_id"),
        *("posts", "promised", "received_s", "rows_told", "waits_since_s"),
    )

    def __init__(self, block: Block, rows_max: int, bytes_max: int, *, promised: bool) -> None:
        super().__init__(block, rows_max, bytes_max)
        self.promised = promised
        self.began_s = monotonic_s()
        self.received_s = block.received_s
        self.waits_since_s = self.began_s if block.reloaded else block.received_s
        self.deadline: asyncio.TimerHandle | None = None
        self.awaited: list[Awaited] = []  # the posts that wait for their commit
        self.message_id = ""  # once it has been published
        self.failed = False  # it has been published without success
        self.rows_told = 0  # of the posts whose waiters `told` gets
        self.posts: list[Decision] = []  # those whose task waits

    def stop_timer(self) -> None:
        """Let no deadline end it any more."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def end(self, error: NotKept | None) -> None:
        """Tell all who wait: the stream has it, or the error."""
        posts, self.posts = self.posts, []
        self.tell(error)
        for post in posts:
            post.end(error)
