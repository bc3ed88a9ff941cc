"""The acknowledgement of a block, and the possible outcomes of the block.

Does not: decide an outcome, or know which part waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple


class Refusal(NamedTuple):
    """One row that the database refuses, with the SQLSTATE: by its index in the batch or the block.

    `constraint` is the name of the violated constraint, if the server gave one. `no_partition`: the
    table has no partition for the row; with `too_old` it gets none later, either.
    """

    row: int
    sqlstate: str
    message: str
    constraint: str | None = None
    no_partition: bool = False
    too_old: bool = False

    @property
    def comes_back(self) -> bool:
        """Whether it can be stored once a partition has been made."""
        return self.no_partition and not self.too_old


class Outcome(NamedTuple):
    """The outcome of a block: the refused rows, or the whole block set aside for later."""

    refusals: tuple[Refusal, ...] = ()
    set_aside: bool = False

    @property
    def coming_back(self) -> frozenset[int]:
        """The refused rows that are sent again by themselves."""
        return frozenset(each.row for each in self.refusals if each.comes_back)


class Ack:
    """It belongs to a block and is resolved once: after commit, or after the dead-letter fsync."""

    __slots__ = ("_calls", "_outcome")

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._calls: list[Callable[[], None]] = []

    def resolve(self, outcome: Outcome) -> None:
        """Set the outcome and call all callbacks. A second call is a fault of ours and fails."""
        assert self._outcome is None, "an ack is resolved once"
        self._outcome = outcome
        for call in self._calls:
            call()

    @property
    def outcome(self) -> Outcome | None:
        """The outcome of the block, None while it is not known."""
        return self._outcome

    @property
    def resolved(self) -> bool:
        """Whether the outcome is known."""
        return self._outcome is not None

    def when_resolved(self, call: Callable[[], None]) -> None:
        """Add a callback for `resolve`. It must be short. Not allowed once the outcome is known."""
        assert self._outcome is None, "it is known already"
        self._calls.append(call)

    async def wait(self) -> Outcome:
        """Wait for the outcome. Cancelling the wait changes nothing for the block."""
        if self._outcome is None:
            known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_resolved(lambda: None if known.done() else known.set_result(None))
            await known
        assert self._outcome is not None, "the wait ends when the outcome is known"
        return self._outcome
