"""What the automatic replay takes from the files of a folder.

It reads all segments, those of earlier processes too. Between two blocks a replay by hand can take
the replay lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ingest.dead_letters.auto_replay import REPLAYED
from ingest.dead_letters.folder.segments import first_letters, segments, try_replay_lock
from ingest.dead_letters.folder.store import MarkDone
from ingest.dead_letters.store import LiveLetter
from ingest.system.clock import monotonic_s
from ingest.system.files import size_bytes

ANEW_S = 600.0


class FolderReplay:
    """Implements ReplaySource.

    Lines are only appended and marks are never removed. So lines that were done once are not read
    again (`_done_to`). After a failure the search continues behind the failed letters until all
    others have been tried (`_next`).
    """

    def __init__(self, folder: Path, mark_done: MarkDone) -> None:
        self._folder = folder
        self._mark_done = mark_done
        self._done_to: dict[Path, int] = {}
        self._next: dict[Path, int] = {}
        self._left: list[Path] = []  # segments of this search
        self._block = (0, 0)  # where the last block starts and ends, in the first of these
        self._anew_s = monotonic_s()

    @asynccontextmanager
    async def search(self) -> AsyncIterator[bool]:
        """Begin with the oldest segment; see ReplaySource."""
        found = segments(self._folder)
        if monotonic_s() - self._anew_s >= ANEW_S:
            # If a write was taken back after it had been read, other lines may follow in its place.
            self._anew_s = monotonic_s()
            self._done_to.pop(found[-1], None) if found else None
        self._done_to = {path: self._done_to.get(path, 0) for path in found}
        self._left = found
        yield bool(found)

    @asynccontextmanager
    async def block(self, rows_max: int) -> AsyncIterator[list[LiveLetter] | None]:
        """Give letters of one segment, and hold the replay lock; see ReplaySource."""
        if (lock := try_replay_lock(self._folder)) is None:
            yield None
            return
        with lock:
            yield await self._letters(rows_max)

    async def _letters(self, rows_max: int) -> list[LiveLetter] | None:
        while self._left:
            segment = self._left[0]
            start = max(self._done_to[segment], self._next.get(segment, 0))
            if size_bytes(segment) > start:
                letters, end = await asyncio.to_thread(
                    first_letters, segment, start=start, where=REPLAYED, count_max=rows_max
                )
                self._block = start, end
                if letters:
                    return letters
                self._pass(well=True)
            self._left.pop(0)
        self._next.clear()
        return None

    async def sent(self, stored: Sequence[LiveLetter], *, well: bool) -> None:
        """Mark lines as done; see ReplaySource."""
        if stored:
            await self._mark_done(stored, "replayed")
        self._pass(well=well)

    def _pass(self, *, well: bool) -> None:
        segment, (start, end) = self._left[0], self._block
        self._next[segment] = end
        if well and start == self._done_to[segment]:
            self._done_to[segment] = end
