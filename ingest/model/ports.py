"""The few contracts between the stages of the path, structural: a part fits if it has the shape.

    door --reserve/put--> buffer --take--> writer --write--> sink
                                             `--settle (ack) | give_back (nack)--> buffer

Each contract has one suite in tests/contract that runs over every implementation, fakes included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from ingest.model.block import Block
from ingest.model.letter import Letter


class Reservation(Protocol):
    """Room in a buffer that is promised to one block."""

    def put(self, block: Block, *, durable: bool = True) -> Awaitable[None]:
        """Hand the block over; await the result. The block must not be larger than the reservation.

        A buffer in memory has taken the block when this returns, and cannot fail. A journal has the
        block on the disk once the result has been awaited. If it cannot be written the await raises
        JournalBroken, and nothing of the block is kept. With `durable` not set the block is in
        memory at once, and is written a little later. A cancellation does not interrupt the write:
        it is raised at the caller's next await.
        """

    def release(self) -> None:
        """Give the room back; does nothing after put or a second time."""


class Inlet(Protocol):
    """The buffer as the receiver sees it."""

    async def reserve(self, rows: int, size_bytes: int, *, awaited: bool = False) -> Reservation:
        """Wait for room, first come first served, at most `put_wait_s_max`.

        `awaited`: the post waits until its block is stored, so the block stays in memory and is
        not written to a journal.

        Raises BufferFull when no room came free in time, Stopping once the buffer is shut,
        JournalBroken while the disk takes nothing.
        Safe to cancel: nothing stays reserved.
        """


class BufferStats(NamedTuple):
    """What a buffer holds now. `rows` is all that is not settled, taken blocks included.

    `rows_taken` of them are with a writer, `rows_kept` outlive the process. `rows_max` and
    `bytes_max` bound what is in memory.
    `disk_used` is the share of the disk's bound in use where that decides who gets room, else None.
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
        """The share of the bounds that is in use: at 1 a post must wait."""
        if self.disk_used is not None:
            return self.disk_used
        return max(self.rows / max(1, self.rows_max), self.size_bytes / max(1, self.bytes_max))


class JournalStats(NamedTuple):
    """What the journal's folder holds: bytes and files now, damage met since the start."""

    size_bytes: int = 0
    segments: int = 0
    damaged: int = 0


class Outlet(Protocol):
    """The buffer as a writer sees it. Blocks taken count until settled or given back."""

    @property
    def rows_waiting(self) -> int:
        """Rows that may be taken now."""

    @property
    def shut(self) -> bool:
        """Whether no block will ever come in any more."""

    def first_received_s(self) -> float | None:
        """Return the monotonic time at which the first waiting block was received."""

    async def wait_rows(self, rows: int) -> None:
        """Wait until `rows` rows wait or the buffer is shut. Safe to cancel."""

    def take(self, rows_max: int) -> list[Block]:
        """Take whole blocks in order, at least one if any waits, at most `rows_max` rows."""

    def settle(self, blocks: Sequence[Block]) -> None:
        """Forget blocks that are in the table or dead-lettered; their room comes free (ack)."""

    def give_back(self, blocks: Sequence[Block]) -> None:
        """Put blocks back to the front, in their order (nack). Cannot fail."""

    def stats(self) -> BufferStats:
        """Return what is held now."""


Work = Callable[[asyncio.Event], Coroutine[Any, Any, None]]  # runs until the event is set


class Buffer(Inlet, Outlet, Protocol):
    """The buffer as the service sees it: both ends, the start and the stop."""

    @property
    def levels(self) -> tuple[str, ...]:
        """The acknowledgements that it can give without the database, best first."""

    @property
    def broken(self) -> bool:
        """Whether what it needs to keep readings has failed."""

    def open(self) -> list[Work]:
        """Begin; return the work to be run in the background from now on. Raises StartError."""

    def shut_inlet(self) -> None:
        """Let nothing in any more: waiting posts get Stopping, writers get what is left."""

    async def keep_rest(self) -> None:
        """Keep what waits for the next start, where that is possible; the rest goes on waiting.

        Call it when no writer works any more. It may be called again.
        """

    async def close(self) -> None:
        """Finish what was begun, and let go of everything outside of memory. Repeatable."""

    def journal_stats(self) -> JournalStats:
        """Return what the journal's folder holds; zeros without a journal."""


class Stored(NamedTuple):
    """Rows of one committed write: new in the table, and already there."""

    committed: int
    duplicate: int


class BadRow(NamedTuple):
    """One row (0-based, in the batch) that the database refuses, with its SQLSTATE."""

    row: int
    sqlstate: str
    message: str


SetAside = Callable[[list[BadRow]], Awaitable[None]]


class Sink(Protocol):
    """One line to the database, owned by one writer. Not for concurrent use.

    Every method raises verdict.WriteFailed and nothing else of the driver's. After any doubt the
    connection is gone and the next call opens a new one.
    """

    @property
    def method(self) -> str:
        """`copy` or `insert`, for metrics."""

    @property
    def is_open(self) -> bool:
        """Whether there is a line and, as far as the driver has noticed, the server at its end."""

    async def open(self) -> None:
        """Connect and check the schema, within `connect_s_max`; at once if already open."""

    async def write(self, tuples: Sequence[bytes], rows: int, *, idempotent: bool) -> Stored:
        """Commit all rows, or none that we know of. Opens the connection if there is none."""

    async def write_isolating(
        self, tuples: Sequence[bytes], rows: int, set_aside: SetAside
    ) -> Stored:
        """Find the rows that the database refuses; commit the others in the same transaction.

        Calls `set_aside` once with the bad rows, in order, when all of them are known and before
        the commit (not at all if there are none). If it raises, nothing is committed and its error
        passes through.
        """

    def abort(self) -> None:
        """Cut the line now; a call under way fails with WriteFailed(WAIT, doubtful)."""

    async def close(self) -> None:
        """Close politely, within a second."""


# What /readyz says of the service; health.py has their meaning.
STATES = ("starting", "accepting", "slowed", "on_hold", "full", "disk_low", "draining")


class DeadLetters(Protocol):
    """The dead-letter queue as the path sees it."""

    async def append(self, letters: Sequence[Letter], *, from_receiver: bool = False) -> None:
        """Return once all letters are on disk (fdatasync). All or none is promised.

        Raises DeadLettersFull at the cap (the door's share of it if `from_door`),
        DeadLettersBroken if the disk failed. Once begun it is not cancelled half-way.
        """


class Admission(Protocol):
    """Whether posts are let in at all."""

    def refusal(self) -> str | None:
        """Return the problem code `starting`, `draining` or `disk_low`, or None: come in."""


class Database(Protocol):
    """What the receiver, and the state that /readyz shows, may know of the database."""

    @property
    def hold_reason(self) -> str | None:
        """Why writing is on hold, or None."""

    @property
    def up(self) -> bool:
        """Whether the server answered when last asked."""

    async def wait_hold(self) -> str:
        """Wait until writing is on hold; return the reason. Safe to cancel."""
