"""The dead letters of a folder, as commands, the dashboard and the automatic replay see them.

Reading is done in threads, a part at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ingest.dead_letters.auto_replay import REPLAYED
from ingest.dead_letters.folder.segments import (
    first_letters,
    folder_bytes,
    live_letters,
    mark_done,
    segment_letters,
    segments,
    try_replay_lock,
)
from ingest.dead_letters.store import (
    PART_BYTES,
    PART_LETTERS,
    Extent,
    LiveLetter,
    Parts,
    Selection,
    Tally,
)
from ingest.model.errors import IngestError
from ingest.system.clock import monotonic_s
from ingest.system.files import Lock, open_regular, size_bytes

LOCK_S_MAX = 15.0
LOCK_PAUSE_S = 0.005

MarkDone = Callable[[Sequence[LiveLetter], str], Awaitable[None]]


class FolderLetterStore:
    """Implements LetterStore. `mark` is how a service marks lines; a command does it itself."""

    def __init__(self, folder: Path, mark: MarkDone | None = None) -> None:
        self.folder = folder
        self._mark = mark

    def oldest(self, where: Selection, tally: Tally) -> Parts:
        """Yield the live letters of all files; see LetterStore."""
        return _parts(live_letters(self.folder, where=where, tally=tally))

    async def newest(
        self, where: Selection, tally: Tally, bytes_max: int | None = None
    ) -> AsyncIterator[tuple[Parts, bool]]:
        """Yield the files, the newest first; see LetterStore."""
        left = bytes_max
        for segment in reversed(await asyncio.to_thread(segments, self.folder)):
            start = 0
            if left is not None:
                start, size = await asyncio.to_thread(_line_start, segment, left)
                left -= size
            letters = segment_letters(segment, start=start, where=where, tally=tally)
            yield _parts(letters), start > 0
            if start:
                return

    @asynccontextmanager
    async def held(self, wait_s_max: float | None = None) -> AsyncIterator[None]:
        """Hold the replay lock; see LetterStore."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with await hold_replay_lock(self.folder, wait_s_max):
            yield

    async def mark_done(self, letters: Sequence[LiveLetter], how: str) -> None:
        """Append marks to the cursors; see LetterStore. The caller has the replay lock."""
        if self._mark is not None:
            await self._mark(letters, how)
        else:
            await asyncio.to_thread(mark_done, letters, how)

    async def extent(self) -> Extent:
        """Return how many files there are, and their size."""
        files = len(segments(self.folder))
        return Extent(files, folder_bytes(self.folder), empty=not files)


async def _parts(letters: Iterator[LiveLetter]) -> Parts:
    while part := await asyncio.to_thread(_part, letters):
        yield part


def _part(letters: Iterator[LiveLetter]) -> list[LiveLetter]:
    part: list[LiveLetter] = []
    size = 0
    for live in letters:
        part.append(live)
        size += len(live.line)
        if len(part) >= PART_LETTERS or size >= PART_BYTES:
            break
    return part


def _line_start(segment: Path, bytes_max: int) -> tuple[int, int]:
    """Return where the first whole line of a file's last `bytes_max` bytes starts, and its size."""
    try:
        size = segment.stat().st_size
        if size <= bytes_max:
            return 0, size
        with open_regular(segment) as file:
            file.seek(size - bytes_max)
            file.readline(bytes_max)
            return file.tell(), bytes_max
    except FileNotFoundError:
        return 0, 0  # another process removed it after it was listed


async def hold_replay_lock(folder: Path, wait_s_max: float | None = None) -> Lock:
    """Wait for the replay lock, which the automatic replay releases between blocks.

    Raises IngestError if it is not free within `wait_s_max` (None: LOCK_S_MAX).
    """
    for _ in range(int((wait_s_max or LOCK_S_MAX) / LOCK_PAUSE_S)):
        if (lock := try_replay_lock(folder)) is not None:
            return lock
        await asyncio.sleep(LOCK_PAUSE_S)
    raise IngestError("another replay is at work in this folder; try again when it has finished")


ANEW_S = 600.0


class FolderReplay:
    """Implements ReplaySource with all segments, those of earlier processes too.

    Between two blocks a replay by hand can take the replay lock. Lines are only appended and marks
    are never removed. So lines that were done once are not read again (`_done_to`). After a failure
    the search continues behind the failed letters until all others have been tried (`_next`).
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
