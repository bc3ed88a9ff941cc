"""Sinks that follow one script: the n-th call of all of them together fails as the script says.

FakeSink stores the rows. This file adds the failing calls, and complaints about calls that no
writer may make.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from ingest.model.block import Refusal
from ingest.model.causes import Verdict, WriteFailed
from ingest.model.ports import SetAside, Stored
from ingest.model.reading import Reading
from tests.support.fake_sink import FakeSink, Refuse, accept_all

BEFORE, MIDDLE, AFTER, HANG = "before", "middle", "after", "hang"


@dataclass
class Script:
    """Which call fails, and how: before or after storing, after setting aside, or it never ends.

    `at` counts from 1; with `forever` all later ones fail too. `hooks[n]` runs as call n begins.
    """

    at: int = 0
    verdict: Verdict = Verdict.WAIT
    where: str = BEFORE
    doubtful: bool = False
    sqlstate: str | None = None
    forever: bool = False
    writes_only: bool = False  # connecting always succeeds, and does not count
    hooks: dict[int, Callable[[], None]] = field(default_factory=dict)
    calls: int = 0
    fired: int = 0
    complaints: list[str] = field(default_factory=list)
    unsaid: int = 0  # rows that failed calls have stored all the same
    # By identity: a replayed letter may have the same bytes, and is another block.
    doubted: dict[int, bytes] = field(default_factory=dict)

    def heal(self) -> None:
        """Make every call from now on succeed."""
        self.at = 0

    def next_fault(self) -> str | None:
        """Count a call; return where it fails, or None."""
        self.calls += 1
        if hook := self.hooks.get(self.calls):
            hook()
        hit = self.at and (self.calls == self.at or (self.forever and self.calls > self.at))
        self.fired += bool(hit)
        return self.where if hit else None

    def doubt(self, tuples: Sequence[bytes]) -> None:
        """Note blocks that may be in the table or not."""
        self.doubted.update((id(each), each) for each in tuples)

    def failure(self) -> WriteFailed:
        """Return the error of a failing call."""
        return WriteFailed(
            self.verdict, "as the script says", sqlstate=self.sqlstate, doubtful=self.doubtful
        )


class ScriptedSink:
    """One writer's connection to the shared table."""

    def __init__(
        self, script: Script, table: dict[Reading, None], *, refuse: Refuse = accept_all
    ) -> None:
        self.script = script
        self.inner = FakeSink(table, refuse=refuse)
        self.aborted = asyncio.Event()
        self.closed = False

    @property
    def method(self) -> str:
        """`copy`, for metrics."""
        return "copy"

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return self.inner.is_open

    async def open(self) -> None:
        """Connect, unless the script makes it fail."""

        async def opened() -> Stored:
            await self.inner.open()
            return Stored(0, 0)

        if not self.script.writes_only:
            await self._call(opened, ())

    async def write(self, tuples: Sequence[bytes], rows: int, *, idempotent: bool) -> Stored:
        """Store all rows or none."""
        if not idempotent and not self.script.doubted.keys().isdisjoint(map(id, tuples)):
            self.script.complaints.append("a doubtful block went down the path for fresh ones")

        async def written() -> Stored:
            return await self.inner.write(tuples, rows, idempotent=idempotent)

        return await self._call(written, tuples)

    async def takes_any(self, rows: Sequence[bytes], *, like_stored: bool = False) -> bool:
        """Whether one of the rows is new and not refused."""
        return await self.inner.takes_any(rows, like_stored=like_stored)

    async def write_isolating(
        self, tuples: Sequence[bytes], rows: int, set_aside: SetAside, *, at_fault: bool = False
    ) -> Stored:
        """Store what the table does not refuse; set the rest aside once, before the commit."""
        fault: str | None = None

        async def aside(bad: list[Refusal]) -> None:
            await set_aside(bad)
            if fault == MIDDLE:
                self._doubt(tuples)
                raise self.script.failure()

        async def written() -> Stored:
            return await self.inner.write_isolating(tuples, rows, aside, at_fault=at_fault)

        fault = self.script.next_fault()
        return await self._call(written, tuples, fault=fault or "")

    def abort(self) -> None:
        """Cut the connection: a hanging call fails."""
        self.aborted.set()

    async def close(self) -> None:
        """Close."""
        self.closed = True
        await self.inner.close()

    async def _call(
        self,
        work: Callable[[], Awaitable[Stored]],
        tuples: Sequence[bytes],
        *,
        fault: str | None = None,
    ) -> Stored:
        fault = self.script.next_fault() if fault is None else fault
        for _ in range(3):
            await asyncio.sleep(0)  # let the other writer run in between
        if fault == HANG:
            await self.aborted.wait()
            self.script.doubt(tuples)
            raise WriteFailed(Verdict.WAIT, "the connection was cut", doubtful=True)
        if fault == BEFORE:
            self._doubt(tuples)
            raise self.script.failure()
        stored = await work()
        await asyncio.sleep(0)
        if fault in (AFTER, MIDDLE):
            self.script.unsaid += stored.committed
            self._doubt(tuples)
            raise self.script.failure()
        return stored

    def _doubt(self, tuples: Sequence[bytes]) -> None:
        if self.script.doubtful:
            self.script.doubt(tuples)
