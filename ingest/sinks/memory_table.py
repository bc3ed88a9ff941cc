"""A table in memory in place of PostgreSQL, for the tests of programs that use the pipeline.

Promises: a row that is there already is not stored again, as in the table with its key.
Does not: refuse a row, fail, or outlive the process.
"""

from __future__ import annotations

from collections.abc import Sequence

from ingest.model.moments import decode_readings
from ingest.model.ports import SetAside, Stored
from ingest.model.reading import Reading


class MemoryTable:
    """Implements ports.Sink. `rows` has what is stored, in the order in which it came."""

    method = "copy"

    def __init__(self) -> None:
        self.rows: dict[Reading, None] = {}
        self.is_open = False

    async def open(self) -> None:
        """Be open; see ports.Sink."""
        self.is_open = True

    async def write(self, tuples: Sequence[bytes], rows: int, *, idempotent: bool) -> Stored:
        """Store the rows that are new; see ports.Sink. Takes 2 us a row in the event loop."""
        self.is_open = True
        before = len(self.rows)
        self.rows.update(dict.fromkeys(decode_readings(b"".join(tuples))))
        new = len(self.rows) - before
        return Stored(new, rows - new)

    async def takes_any(self, rows: Sequence[bytes], *, like_stored: bool = False) -> bool:
        """Whether one of the rows is new; see ports.Sink."""
        return like_stored or any(each not in self.rows for each in decode_readings(b"".join(rows)))

    async def write_isolating(
        self, tuples: Sequence[bytes], rows: int, set_aside: SetAside, *, at_fault: bool = False
    ) -> Stored:
        """Store the rows that are new: there is none to set aside; see ports.Sink."""
        return await self.write(tuples, rows, idempotent=True)

    def abort(self) -> None:
        """Close: no call is running."""
        self.is_open = False

    async def close(self) -> None:
        """Close; what is stored stays."""
        self.is_open = False
