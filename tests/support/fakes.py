"""Fakes of the receiver's partners: small, and true to the contracts in ingest/model/ports.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ingest.model.block import Block, Reservation
from ingest.model.errors import BufferFull, JournalBroken
from ingest.model.moments import decode_readings
from ingest.model.ports import Sizes, Told
from ingest.model.reading import Letter, Reading


class FakeInlet:
    """A buffer without bounds; a test can make it refuse (`error`) or wait (`open`)."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.reserved = 0
        self.waiting = 0
        self.durable: list[bool] = []
        self.awaited: list[bool] = []
        self.error: Exception | None = None
        self.put_error: Exception | None = None
        self.kept_first = 0  # so many blocks are kept before `put_error` is raised
        self.open = asyncio.Event()
        self.open.set()

    def take_in(self, block: Block, waiter: object = None, told: Told | None = None) -> bool:
        """Take the block if it is `open` and there is no `error`; tell it a little later."""
        if not self.open.is_set() or self.error is not None:
            return False
        broken = self.put_error if told is not None else None
        if broken is None:
            self.blocks.append(block)
            self.durable.append(told is not None)
            self.awaited.append(False)
        else:
            assert isinstance(broken, JournalBroken)
        if told is not None:
            asyncio.get_running_loop().call_soon(told, [waiter], broken)
        return True

    async def reserve(
        self, rows: int, size_bytes: int, *, awaited: bool = False, sender: str = ""
    ) -> Reservation:
        """Return a reservation once `open` is set, or raise `error`."""
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1
        if self.error is not None:
            raise self.error
        self.reserved += 1
        self.awaited.append(awaited)
        return Reservation(rows, size_bytes, self._put, self._free)

    def reserve_all(self, sizes: Sizes, *, awaited: bool = False) -> list[Reservation] | None:
        """Return a reservation for each block, None if it is not `open`, or raise `error`."""
        if not self.open.is_set() or isinstance(self.error, BufferFull):
            return None
        if self.error is not None:
            raise self.error
        self.reserved += len(sizes)
        self.awaited += [awaited] * len(sizes)
        return [Reservation(*size, self._put, self._free) for size in sizes]

    async def _put(self, block: Block, durable: bool) -> None:
        """Take the block, or raise `put_error`."""
        self.reserved -= 1
        if self.put_error is not None and len(self.blocks) >= self.kept_first:
            raise self.put_error
        self.blocks.append(block)
        self.durable.append(durable)

    def _free(self, _rows: int, _bytes: int) -> None:
        self.reserved -= 1

    @property
    def readings(self) -> list[Reading]:
        """All readings that were put."""
        return [reading for block in self.blocks for reading in decode_readings(block.tuples)]


class FakeDeadLetters:
    """A dead-letter queue in a list that can fail (`error`) or be slow (`open`)."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.waiting = 0
        self.error: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def append(self, letters: Sequence[Letter], *, sender: str | None = None) -> None:
        """Keep the letters once `open` is set, or raise `error`."""
        assert sender is not None
        self.waiting += 1
        await self.open.wait()
        self.waiting -= 1
        if self.error is not None:
            raise self.error
        live = {each.reading for each in self.letters if each.reading}
        self.letters += [each for each in letters if each.reading not in live]


class FakeAdmission:
    """Admits every post, or refuses with `code`."""

    def __init__(self) -> None:
        self.code: str | None = None

    def refusal(self) -> str | None:
        """Return the code."""
        return self.code


class FakeDatabase:
    """A database state in which writes can be paused (on hold)."""

    def __init__(self) -> None:
        self.hold_reason: str | None = None
        self.up = True
        self._held = asyncio.Event()

    @property
    def cause(self) -> str:
        """Return why nothing is written."""
        return self.hold_reason or ("" if self.up else "unreachable")

    def hold(self, reason: str) -> None:
        """Pause writes."""
        self.hold_reason = reason
        self._held.set()

    async def wait_hold(self) -> str:
        """Wait for `hold`."""
        await self._held.wait()
        return self.hold_reason or ""
