"""A reservation of the inlet of a stream."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from ingest.buffers.bounded_memory import BoundedMemory
from ingest.model.block import Block


class ReservingInlet(Protocol):
    """The parts of its inlet that a reservation uses."""

    memory: BoundedMemory

    def put(self, block: Block, rows: int, size_bytes: int, *, durable: bool) -> Awaitable[None]:
        """Add the block of a reservation of so many rows and bytes."""


class StreamReservation:
    """Room for one block. Put the block, or release the room."""

    __slots__ = ("_inlet", "_rows", "_size_bytes")

    def __init__(self, inlet: ReservingInlet, rows: int, size_bytes: int) -> None:
        self._inlet: ReservingInlet | None = inlet
        self._rows = rows
        self._size_bytes = size_bytes

    def put(self, block: Block, *, durable: bool = True) -> Awaitable[None]:
        """Hand the block over. If it is `durable`, await the message that has it."""
        inlet, self._inlet = self._inlet, None
        assert inlet is not None, "a reservation is used once"
        assert block.rows <= self._rows, "more rows than reserved"
        assert len(block.tuples) <= self._size_bytes, "more bytes than reserved"
        return inlet.put(block, self._rows, self._size_bytes, durable=durable)

    def release(self) -> None:
        """Give the room back. Does nothing after `put`, or when called again."""
        inlet, self._inlet = self._inlet, None
        if inlet is not None:
            inlet.memory.free(self._rows, self._size_bytes)
