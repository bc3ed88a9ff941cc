"""The contracts between the parts of the path, as Protocols: a part fits if it has these methods.

    receiver --take_in | reserve, put--> buffer --take--> writer --write--> sink
                                                            `--settle | give_back--> buffer

Each contract has a suite in tests/contract, which runs over every implementation, fakes included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from ingest.model.block import Block, Refusal, Reservation
from ingest.model.errors import NotKept
from ingest.model.reading import Letter

# Called with the waiters of a block, in the order of their posts. Their block is on the disk, or it
# is not kept if there is an error.
Told = Callable[[Sequence[Any], NotKept | None], None]
Sizes = Sequence[tuple[int, int]]  # of some blocks: rows and bytes of each
Work = Callable[[asyncio.Event], Coroutine[Any, Any, None]]  # runs until the event is set
SetAside = Callable[[list[Refusal]], Awaitable[None]]

# The states of the service that /readyz shows; app/health.py has their meaning.
STATES = (
    *("starting", "accepting", "slowed", "on_hold", "full", "disk_low", "broker_away"),
    "draining",
)


class Inlet(Protocol):
    """The buffer as the receiver sees it."""

    def take_in(self, block: Block, waiter: object = None, told: Told | None = None) -> bool:
        """Keep the block of a post at once. Returns False if that is not possible now.

        After False nothing is kept: call `reserve`, which may wait, or raises the reason. After
        True the caller must not use the block any more: it may be a part of another one. Without
        `told` it is in memory when this returns. With `told` it is kept once `told` is called
        without an error. That happens in a later round, with this waiter among others.
        All posts of a buffer have the same `told`, which must not fail.
        """

    async def reserve(
        self, rows: int, size_bytes: int, *, awaited: bool = False, sender: str = ""
    ) -> Reservation:
        """Wait for room, at most PUT_WAIT_S_MAX. Senders (as in Block) that wait take turns.

        `awaited`: the post waits until its block is in the table. So the block stays in memory and
        is not written to a journal.

        Raises BufferFull if no room became free in time, Stopping once the buffer is shut,
        JournalBroken while the disk cannot be written. Safe to cancel: nothing stays reserved.
        """

    def reserve_all(self, sizes: Sizes, *, awaited: bool = False) -> list[Reservation] | None:
        """Reserve room for all blocks of a post at once, one reservation for each.

        Returns None if there is no room for all of them now, or another post waits for room; then
        nothing is reserved. Raises Stopping and JournalBroken as `reserve` does.
        """


class BufferStats(NamedTuple):
    """The content of a buffer now.

    `rows` counts all rows that are not settled. `rows_taken` of them are with a writer. `rows_kept`
    of them survive the end of the process. `rows_max` and `bytes_max` bound the content in memory.
    `disk_used`: how much of its space on the disk is in use, as a share. None if the space in
    memory decides whether a post must wait.
    """

    rows: int
    rows_max: int
    size_bytes: int
    bytes_max: int
    rows_waiting: int
    blocks_waiting: int
    posts_waiting: int
    oldest_received_s: float | None
    rows_taken: int = 0
    rows_kept: int = 0
    disk_used: float | None = None

    @property
    def used(self) -> float:
        """The used share of the bounds. At 1 a post must wait."""
        if self.disk_used is not None:
            return self.disk_used
        return max(self.rows / max(1, self.rows_max), self.size_bytes / max(1, self.bytes_max))


class JournalStats(NamedTuple):
    """The journal's folder: bytes and files now, damage found since the start."""

    size_bytes: int = 0
    segments: int = 0
    damaged: int = 0


class Outlet(Protocol):
    """The buffer as a writer sees it. A block that was taken keeps its room until it is settled."""

    @property
    def rows_waiting(self) -> int:
        """Rows that may be taken now."""

    @property
    def commit_awaited(self) -> bool:
        """Whether a post waits for the commit of a block, and no writer has blocks now."""

    @property
    def shut(self) -> bool:
        """Whether the buffer accepts no more blocks."""

    def first_received_s(self) -> float | None:
        """Return the monotonic time of receipt of the first block that waits, None if none does."""

    async def wait_rows(self, rows: int) -> None:
        """Return once at least `rows` rows can be taken, `commit_awaited`, or the buffer is shut.

        Safe to cancel.
        """

    def take(self, rows_max: int) -> list[Block]:
        """Take whole blocks in order, at least one if any waits, at most `rows_max` rows."""

    def settle(self, blocks: Sequence[Block]) -> None:
        """Remove blocks that are in the table or dead-lettered; their room becomes free."""

    def give_back(self, blocks: Sequence[Block]) -> None:
        """Put blocks back to the front of the queue, in their order. Cannot fail."""

    def stats(self) -> BufferStats:
        """Return the content now."""


class Buffer(Inlet, Outlet, Protocol):
    """The buffer as the service sees it: inlet and outlet, start and stop."""

    @property
    def levels(self) -> tuple[str, ...]:
        """The acknowledgements that the buffer gives without the database, best first."""

    @property
    def broken(self) -> str:
        """Why the disk or another part that the buffer needs has failed; "": it has not."""

    def open(self) -> list[Work]:
        """Start; return the work that must run in the background from now on. Raises StartError."""

    def shut_inlet(self) -> None:
        """Accept no more blocks. Waiting posts get Stopping; writers get the remaining blocks."""

    async def keep_rest(self) -> None:
        """Keep waiting blocks for the next start, if the buffer can; other blocks go on waiting.

        Call it when all writers have ended. Repeatable.
        """

    async def close(self) -> None:
        """Finish work that has begun; close files and threads. Repeatable."""

    def journal_stats(self) -> JournalStats:
        """Return the state of the journal's folder; zeros without a journal."""


class Stored(NamedTuple):
    """Rows of one committed write: those new in the table, and those already there."""

    committed: int
    duplicate: int


class Sink(Protocol):
    """One connection to the database, owned by one writer. Not for concurrent use.

    It is given rows as block.py encodes them: PostgreSQL's binary COPY, without its head.
    Every method raises causes.WriteFailed in place of the driver's errors. If the state of the
    connection is not certain, the connection is closed and the next call opens a new one.
    """

    @property
    def method(self) -> str:
        """`copy` or `insert`, for metrics."""

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, and the driver has not noticed its end."""

    async def open(self) -> None:
        """Connect and check the schema, within `connect_s_max`. Does nothing if already open."""

    async def write(self, tuples: Sequence[bytes], rows: int, *, idempotent: bool) -> Stored:
        """Commit all rows, or raise WriteFailed. Opens the connection if there is none."""

    async def takes_any(self, rows: Sequence[bytes], *, like_stored: bool = False) -> bool:
        """Whether the table takes one of these rows as a new row. Nothing is stored.

        With `like_stored` one more row is tried: a row of the table with another value, or a row of
        our own if the table is empty.
        """

    async def write_isolating(
        self, tuples: Sequence[bytes], rows: int, set_aside: SetAside, *, at_fault: bool = False
    ) -> Stored:
        """Find the rows that the database refuses; commit the others in the same transaction.

        With `at_fault` a failure with `may_be_row` counts as a refused row too.
        Calls `set_aside` once with all refused rows, in order, before the commit; not at all if
        there are none. If `set_aside` raises, nothing is committed and its error is raised.
        """

    def abort(self) -> None:
        """Break the connection now; a running call fails with WriteFailed(WAIT, doubtful)."""

    async def close(self) -> None:
        """End the session and close the connection, within a second."""


class DeadLetters(Protocol):
    """The dead-letter queue as the path sees it."""

    async def append(self, letters: Sequence[Letter], *, sender: str | None = None) -> None:
        """Return once all letters are on disk (fdatasync); all are kept, or none is promised.

        `sender` is the sender of a post with invalid items, as in Block; None: from a writer.
        Raises DeadLettersFull at the bound (ShareUsed at that of a sender), DeadLettersBroken if
        the disk failed, and for a sender BufferFull if the disk is too slow for what comes. A
        cancellation does not interrupt a write.
        """


class Admission(Protocol):
    """Decides whether the service accepts posts."""

    def refusal(self) -> str | None:
        """Return the code of a problem such as `starting` or `draining`, or None to accept."""


class Database(Protocol):
    """The database state as the receiver and /readyz see it."""

    @property
    def hold_reason(self) -> str | None:
        """Why writes are paused, or None."""

    @property
    def up(self) -> bool | None:
        """Whether the server answered the last time; None if there is none."""

    @property
    def cause(self) -> str:
        """Why readings are not written now, as a key of causes.CAUSES; empty if they are."""

    async def wait_hold(self) -> str:
        """Wait until writes are paused; return the reason. Safe to cancel."""
