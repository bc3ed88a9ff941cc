"""What a post waits for: the acknowledgement of its block, and what may become of the block.

Does not: decide anything, or know who waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple


class Refusal(NamedTuple):
    """One row of a block that the database refused and that is now in the dead-letter queue."""

    row: int
    sqlstate: str
    message: str


class Outcome(NamedTuple):
    """What became of a block: the rows refused one by one, or all of it set aside for later."""

    refusals: tuple[Refusal, ...] = ()
    set_aside: bool = False


class Ack:
    """Travels with a block and is resolved once: after commit, or after the dead-letter fsync."""

    __slots__ = ("_calls", "_outcome")

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._calls: list[Callable[[], None]] = []

    def resolve(self, outcome: Outcome) -> None:
        """Tell whoever waits. A second call is our own mistake and fails loudly."""
        assert self._outcome is None, "an ack is resolved once"
        self._outcome = outcome
        for call in self._calls:
            call()

    @property
    def outcome(self) -> Outcome | None:
        """What became of the block, once it is known."""
        return self._outcome

    @property
    def resolved(self) -> bool:
        """Whether the outcome is known."""
        return self._outcome is not None

    def when_resolved(self, call: Callable[[], None]) -> None:
        """Have `call` called, by whoever resolves; it must only take note. Before that only."""
        assert self._outcome is None, "it is known already"
        self._calls.append(call)

    async def wait(self) -> Outcome:
        """Wait for the outcome. Cancelling the wait changes nothing for the block."""
        if self._outcome is None:
            known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_resolved(lambda: None if known.done() else known.set_result(None))
            await known
        assert self._outcome is not None, "waited for"
        return self._outcome
