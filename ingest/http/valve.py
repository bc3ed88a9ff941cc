"""Whether the socket of one connection is read."""

from __future__ import annotations

import asyncio

# Reasons not to read, as bits. BEHIND: many bytes wait for the request in work. BODY: a body comes
# faster than it is read. MEMORY: a body waits for memory. UNREAD: the client does not read its
# answers. LATER: there are bytes to parse in the next round.
BEHIND, BODY, MEMORY, UNREAD, LATER = 1, 2, 4, 8, 16


class Valve:
    """Shut while there is a reason. aiohttp's StreamReader calls it as its `protocol`."""

    __slots__ = ("_reasons", "transport")

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None  # None: the client is gone
        self._reasons = 0

    @property
    def connected(self) -> bool:
        """Whether the client is there."""
        return self.transport is not None

    def is_shut(self, why: int) -> bool:
        """Whether there is this reason."""
        return bool(self._reasons & why)

    def shut(self, why: int) -> None:
        """Read nothing from now on."""
        if not self._reasons and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
        self._reasons |= why

    def open(self, why: int) -> None:
        """Read again, if there is no other reason."""
        if not self._reasons & why:
            return
        self._reasons &= ~why
        if not self._reasons and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def open_for_all(self) -> None:
        """Forget all reasons."""
        self.open(self._reasons)

    def pause_reading(self) -> None:
        """Called by a body: its reader is slower than its client."""
        self.shut(BODY)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called by a body: its reader has taken some bytes, or it is complete."""
        self.open(BODY)
