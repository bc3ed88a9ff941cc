"""A Sink in memory that keeps the same promises as the real one; its calls can fail.

It passes tests/contract/test_sinks.py. A test controls it by `fail`, `fail_always`, `refuse`,
`pause_s` and `database_state`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from ingest.model.block import Refusal
from ingest.model.causes import Verdict, WriteFailed
from ingest.model.moments import decode_readings
from ingest.model.ports import SetAside, Stored
from ingest.model.reading import Reading
from ingest.system.clock import unix_us

Refuse = Callable[[Reading], tuple[str, str] | None]


def accept_all(_: Reading) -> tuple[str, str] | None:
    """Refuse no row."""
    return None


def failure_of(sqlstate: str, message: str, *, row: int) -> WriteFailed:
    """Return the failure of a write with a refused row."""
    may_be_row = sqlstate.startswith("42")
    return WriteFailed(
        Verdict.HOLD if may_be_row else Verdict.ISOLATE,
        message,
        sqlstate=sqlstate,
        row=row,
        may_be_row=may_be_row,
        reason="permission",
    )


class FakeSink:
    """A table in memory; several sinks may share one by passing the same `table`.

    `refuse` returns (sqlstate, message) for a refused reading, else None, like a CHECK constraint.
    `fail` makes the n-th write from now (1 is the next) raise; `fail_always` every write and open
    until it is set to None. A write takes `pause_s`, and waits while `database_state` is not set.
    `writes` lists (kind, rows) of each write; kind is copy, idempotent, isolating or tried.
    """

    def __init__(
        self, table: dict[Reading, None] | None = None, *, refuse: Refuse = accept_all
    ) -> None:
        self.table: dict[Reading, None] = {} if table is None else table
        self.refuse = refuse
        self.fail_always: WriteFailed | None = None
        self.pause_s = 0.001
        self.database_state = asyncio.Event()
        self.database_state.set()
        self.writes: list[tuple[str, int]] = []
        self.opens = 0
        self.is_open = False
        self.closed = False
        self._planned: dict[int, tuple[WriteFailed, bool]] = {}
        self._writing = False
        self._under_way: asyncio.Timeout | None = None

    @property
    def method(self) -> str:
        """`copy`, as metrics know it."""
        return "copy"

    def fail(self, nth: int, error: WriteFailed, *, stored: bool = False) -> None:
        """Make the n-th write from now raise `error`; `stored`: its rows are stored all the same.

        `stored` stands for a commit whose reply was lost: the error should be `doubtful`.
        """
        self._planned[len(self.writes) + nth] = (error, stored)

    async def open(self) -> None:
        """Connect, unless open already."""
        if self.is_open:
            return
        if self.fail_always is not None:
            raise self.fail_always
        self.opens += 1
        self.is_open = True

    async def write(self, tuples: Sequence[bytes], rows: int, *, idempotent: bool) -> Stored:
        """Store all rows or none."""
        readings, planned = await self._begin("idempotent" if idempotent else "copy", tuples, rows)
        for row, reading in enumerate(readings):
            if refused := self.refuse(reading):
                raise failure_of(*refused, row=row)
        return self._store(readings, planned)

    async def takes_any(self, rows: Sequence[bytes], *, like_stored: bool = False) -> bool:
        """Whether one of the rows is new and not refused."""
        readings, _ = await self._begin("tried", rows, len(rows))
        if like_stored:
            stored = next(iter(self.table), Reading(unix_us(), "iot-ingest", "try", 1.0))
            readings.append(stored._replace(value=math.nextafter(stored.value, math.inf)))
        return any(each not in self.table and not self.refuse(each) for each in readings)

    async def write_isolating(
        self, tuples: Sequence[bytes], rows: int, set_aside: SetAside, *, at_fault: bool = False
    ) -> Stored:
        """Store the rows that are not refused, once the others are set aside."""
        readings, planned = await self._begin("isolating", tuples, rows)
        for row, reading in enumerate(readings):
            if (refused := self.refuse(reading)) and not at_fault:
                failure = failure_of(*refused, row=row)
                if failure.may_be_row:
                    raise failure
        bad = [
            Refusal(row, *refused)
            for row, reading in enumerate(readings)
            if (refused := self.refuse(reading))
        ]
        if bad:
            await set_aside(bad)
        rows_bad = {each.row for each in bad}
        good = [reading for row, reading in enumerate(readings) if row not in rows_bad]
        return self._store(good, planned)

    def abort(self) -> None:
        """Fail the write under way: it has stored nothing, and its error is doubtful."""
        if self._under_way is not None:
            self._under_way.reschedule(asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Close."""
        self.is_open = False
        self.closed = True

    async def _begin(
        self, kind: str, tuples: Sequence[bytes], rows: int
    ) -> tuple[list[Reading], tuple[WriteFailed, bool] | None]:
        assert not self._writing, "a sink is not for concurrent use"
        await self.open()
        self.writes.append((kind, rows))
        planned = self._planned.pop(len(self.writes), None)
        self._writing = True
        try:
            async with asyncio.timeout(None) as self._under_way:
                await self.database_state.wait()
                await asyncio.sleep(self.pause_s)
        except TimeoutError as error:
            self.is_open = False
            raise WriteFailed(Verdict.WAIT, "the connection was cut", doubtful=True) from error
        finally:
            self._writing = False
            self._under_way = None
        readings = list(decode_readings(b"".join(tuples)))
        assert len(readings) == rows, "rows says how many there are"
        if self.fail_always is not None:
            planned = (self.fail_always, False)
        if planned is not None and not planned[1]:
            self._break(planned[0])
        return readings, planned

    def _store(self, readings: list[Reading], planned: tuple[WriteFailed, bool] | None) -> Stored:
        before = len(self.table)
        self.table.update(dict.fromkeys(readings))
        committed = len(self.table) - before
        if planned is not None:
            self._break(planned[0])
        return Stored(committed, len(readings) - committed)

    def _break(self, error: WriteFailed) -> None:
        """Raise the error; a connection in doubt is closed."""
        self.is_open = error.verdict is Verdict.ISOLATE
        raise error
