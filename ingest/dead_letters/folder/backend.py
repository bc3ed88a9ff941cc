"""Keeps dead letters in files of a folder, for one process: appends, live ids, old files.

All work with the files is done by one thread, since it blocks and must not overlap. The methods
that begin with `_` run there.
Promises: when `write` returns, the letters are on the disk. It never edits a file. It removes only
segments that no process writes and in which every line is done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from ingest.dead_letters.folder.segments import (
    FileStamp,
    cursor_path,
    is_segment,
    mark_done,
    new_segment,
    read_marks,
    segments,
    stamps,
    sync_file,
    touched_us,
    undone_lines,
)
from ingest.dead_letters.folder.store import FolderLetterStore, FolderReplay
from ingest.dead_letters.format import (
    LINE_BYTES_MAX,
    REASON_AT,
    REASON_CHARACTERS,
    BadLine,
    decode_line,
    key_of,
)
from ingest.dead_letters.queue import LetterTotals, NewLetter
from ingest.dead_letters.store import LiveLetter, Tally
from ingest.model.errors import DeadLettersBroken, StartError
from ingest.model.reading import DRAINED, EXHAUSTED
from ingest.system.clock import unix_us
from ingest.system.files import (
    NO_SPACE,
    REAL_CALLS,
    AppendFile,
    FileCalls,
    Lock,
    is_locked,
    make_folder,
    sync_folder,
)
from ingest.system.logs import get_logger

SEGMENT_BYTES = 64 * 1024**2
IDS_MAX = 200_000  # ids in memory, 170 bytes each; beyond that, duplicate letters are not found
# The reasons that the automatic replay takes; each of their lines has at least so many bytes.
RETURNING = (DRAINED[:REASON_CHARACTERS].encode(), EXHAUSTED[:REASON_CHARACTERS].encode())
RETURNING_BYTES_MIN = 300

log = get_logger()
_T = TypeVar("_T")


def segment_bytes(bytes_max: int) -> int:
    """Return the size of one file, of all that may have `bytes_max`: whole files are removed."""
    return min(SEGMENT_BYTES, bytes_max // 4)


class FolderBackend:
    """Implements LetterBackend with a folder of JSON Lines.

    A file is finished at `segment_bytes`. A finished file in which every line is done is kept
    `keep_days`, or less if space is needed. The ids of `ids_max` live letters are known.
    """

    name = "the disk"
    groups_max = 1  # what comes meanwhile shares the next write and fdatasync
    beside_bytes = 0

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int,
        keep_days: float,
        calls: FileCalls = REAL_CALLS,
        ids_max: int = IDS_MAX,
    ) -> None:
        self.folder = folder
        self.letters = FolderLetterStore(folder, self.mark_done)
        self._segment_bytes = segment_bytes
        self._keep_us = int(keep_days * 86_400_000_000)
        self._calls = calls
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dead-letters")
        self._closed = False
        self._kept = LetterTotals()  # after the last work
        self._segment: AppendFile | None = None
        self._size = 0
        self._live = LiveKeys(ids_max)
        self._marks_read: dict[Path, int] = {}  # segment -> bytes of its cursor that were read
        self._stamps: dict[Path, FileStamp] = {}  # segments at the last scan

    # In the event loop

    async def open(self) -> None:
        """Create or read the folder. Raises StartError if it cannot be used."""
        await self._in_thread(self._open)

    def kept(self) -> LetterTotals:
        """Return what is known of the folder; see LetterBackend."""
        return self._kept

    async def look(self) -> None:
        """Take over marks, removed segments, finished segments; see LetterBackend."""
        await self._in_thread(self._refresh)

    async def live(self, keys: Collection[bytes]) -> set[bytes]:
        """Return the live letters of these; see LetterBackend."""
        if not any(key in self._live for key in keys):
            return set()  # as nearly always
        return await self._in_thread(partial(self._live_of, keys))

    def too_long(self, line_bytes: int) -> str:
        """Refuse what no reader would take into memory; see LetterBackend."""
        too_long = line_bytes > LINE_BYTES_MAX
        return f"one dead letter has more than {LINE_BYTES_MAX} bytes" if too_long else ""

    async def write(self, letters: Mapping[bytes, NewLetter]) -> None:
        """Append letters with one write and one fdatasync; see LetterBackend."""
        await self._in_thread(partial(self._append, letters))

    async def mark_done(self, letters: Sequence[LiveLetter], how: str) -> None:
        """Record on the disk that lines are done. The caller has the replay lock.

        Raises DeadLettersBroken; then they are still live.
        """
        await self._in_thread(partial(self._mark, letters, how))

    async def make_room(self) -> None:
        """Remove all files without a live line; see LetterBackend."""
        await self._in_thread(partial(self._tidy, whatever_age=True))

    async def tidy(self) -> list[Path]:
        """Remove finished segments that are old enough and have no live line; return them."""
        return await self._in_thread(self._tidy)

    def replay_source(self, pause_s: float) -> FolderReplay:
        """Return the letters that the automatic replay takes; see LetterBackend."""
        return FolderReplay(self.folder, self.mark_done)

    async def close(self) -> None:
        """Close the file. A second call does nothing."""
        if not self._closed:
            await self._in_thread(self._close)
            self._closed = True
            self._thread.shutdown()

    def _in_thread(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Run `work` in the thread, after all earlier work."""

        def run() -> _T:
            try:
                return work()
            finally:
                live = self._live
                self._kept = LetterTotals(
                    self._size, len(live), live.oldest_us, live.returning_bytes
                )

        if self._closed:
            raise DeadLettersBroken("the dead letters are closed")
        return asyncio.get_running_loop().run_in_executor(self._thread, run)

    # In the thread

    def _open(self) -> None:
        try:
            make_folder(self.folder, self._calls)
            self._scan()
        except OSError as error:
            raise StartError(
                f"the dead-letter folder {self.folder} cannot be used: {error.strerror}"
            ) from error

    def _live_of(self, keys: Collection[bytes]) -> set[bytes]:
        if any(key in self._live for key in keys):
            self._refresh()  # another process may have marked some as done
        return {key for key in keys if key in self._live}

    def _append(self, letters: Mapping[bytes, NewLetter]) -> None:
        self._write(b"".join(each.line for each in letters.values()))
        for key, each in letters.items():
            self._live.add(key, each.failed_us)

    def _write(self, data: bytes) -> None:
        """Write and sync `data`; if that fails, and not for lack of space, try a new file once."""
        for last in (False, True):
            try:
                if self._segment is None:
                    make_folder(self.folder, self._calls)  # somebody may have removed it
                    self._segment = new_segment(self.folder, self._calls)
                    self._marks_read[self._segment.path] = 0
                self._segment.append(data)
                stamp = FileStamp(self._segment.inode, self._segment.size)
                self._stamps[self._segment.path] = stamp
                self._size += len(data)
                if self._segment.size >= self._segment_bytes:
                    self._close()
                return
            except OSError as error:
                full = error.errno in NO_SPACE
                log.error("dead_letter_write_failed", error=str(error), again=not (full or last))
                if self._segment is not None and (self._segment.suspect or not full):
                    self._close()
                if full or last:
                    raise DeadLettersBroken(
                        f"the dead letters could not be written: {error.strerror or error}"
                    ) from error

    def _close(self) -> None:
        """Close the segment that is being written. A later append begins a new one."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _mark(self, letters: Sequence[LiveLetter], how: str) -> None:
        try:
            mark_done(letters, how, self._calls)
        except OSError as error:
            raise DeadLettersBroken(
                f"the cursor of the dead letters could not be written: {error.strerror or error}"
            ) from error
        self._refresh()

    def _refresh(self) -> None:
        try:
            self._scan()
        except OSError as error:
            log.warning("dead_letters_unreadable", error=str(error))

    def _scan(self) -> None:
        found = stamps(self.folder)
        now = {path: stamp for path, stamp in found.items() if is_segment(path.name)}
        gone = FileStamp(0, -1)
        live = self._live
        if not all(now.get(path, gone).continues(stamp) for path, stamp in self._stamps.items()):
            self._marks_read.clear()  # somebody removed, cut or replaced a segment: count anew
            live = LiveKeys(live.ids_max)  # the event loop sees the old ones until this is done
        self._stamps = now
        for segment in now:
            try:
                if segment not in self._marks_read:
                    if self._is_ours(segment) or not is_locked(segment):
                        self._take_segment(segment, live)
                elif found.get(cursor_path(segment), gone).size > self._marks_read[segment]:
                    self._take_marks(segment, live)
            except FileNotFoundError:
                continue
            except OSError as error:  # the service starts all the same
                self._marks_read.setdefault(segment, 0)
                log.warning("dead_letters_unreadable", file=segment.name, error=str(error))
        self._live = live
        self._size = sum(stamp.size for stamp in found.values())

    def _is_ours(self, segment: Path) -> bool:
        return self._segment is not None and self._segment.path == segment

    def _take_marks(self, segment: Path, live: LiveKeys) -> None:
        """Forget the lines that were marked since the last scan."""
        marks, self._marks_read[segment] = read_marks(segment, self._marks_read[segment])
        for mark in marks:
            live.remove(key_of(mark.id, mark.reason))

    def _take_segment(self, segment: Path, live: LiveKeys) -> None:
        """Remember a segment's live lines.

        Its writer may have died before its fdatasync, so it is synced first. The position in the
        cursor is noted before the lines are read. So a mark that is added meanwhile is read at the
        next scan.
        """
        sync_file(segment, self._calls)
        self._marks_read[segment] = 0
        with contextlib.suppress(OSError):  # the tally below reports it
            self._marks_read[segment] = read_marks(segment)[1]
        tally = Tally()
        for _, line in undone_lines(segment, tally=tally):
            if live.is_full:  # then its reason is enough
                live.count(line[REASON_AT:])
                continue
            try:
                id_, failed_us, letter = decode_line(line)
            except BadLine:
                tally.altered += 1
                continue
            live.add(key_of(id_, letter.reason), failed_us)
        if tally.damaged:
            log.warning(
                "dead_letters_damaged",
                file=segment.name,
                altered=tally.altered,
                torn=tally.torn,
                unreadable=tally.unreadable,
            )

    def _tidy(self, *, whatever_age: bool = False) -> list[Path]:
        """Remove finished segments, older than `keep_days`, in which every line is done.

        With `whatever_age` their age does not count, and the segment that is being written is
        finished if every line in it is done.
        """
        removed: list[Path] = []
        try:
            found = segments(self.folder)
        except OSError as error:
            log.warning("dead_letters_unreadable", error=str(error))
            return removed
        for segment in found:
            try:
                if whatever_age or unix_us() - touched_us(segment) >= self._keep_us:
                    if whatever_age and self._is_ours(segment) and not any(undone_lines(segment)):
                        self._close()
                    removed += [segment] if self._remove_if_done(segment) else []
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("dead_letters_tidy_failed", file=segment.name, error=str(error))
        if removed or whatever_age:
            self._refresh()
        return removed

    def _remove_if_done(self, segment: Path) -> bool:
        lock = Lock.try_take(segment)
        if lock is None:
            return False  # a living process writes it
        with lock:
            tally = Tally()
            live = next(undone_lines(segment, tally=tally), None)
            if live is not None or tally.altered or tally.unreadable:
                return False  # an operator may want to look at altered lines
            segment.unlink()
        # First: after a crash, a segment without its cursor would be live again.
        sync_folder(self.folder, self._calls)
        cursor_path(segment).unlink(missing_ok=True)
        self._marks_read.pop(segment, None)
        self._stamps.pop(segment, None)
        return True


class LiveKeys:
    """The live letters of a folder. `ids_max` keys are known; further letters are only counted.

    A key is here only if its line is on the disk and no mark for it has been read. So a letter with
    such a key need not be written again.
    """

    def __init__(self, ids_max: int) -> None:
        self.ids_max = ids_max
        self._failed_us: dict[bytes, int] = {}  # oldest first
        self._beyond = 0
        self._returning = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._failed_us

    def __len__(self) -> int:
        return len(self._failed_us) + self._beyond

    @property
    def is_full(self) -> bool:
        """Whether a further letter would only be counted."""
        return len(self._failed_us) >= self.ids_max

    @property
    def oldest_us(self) -> int | None:
        """When the oldest known one failed, in Unix microseconds."""
        return next(iter(self._failed_us.values()), None)

    @property
    def returning_bytes(self) -> int:
        """The least number of bytes of the letters that the automatic replay takes."""
        return self._returning * RETURNING_BYTES_MIN

    def add(self, key: bytes, failed_us: int) -> None:
        """Add a letter, if its key is not known yet."""
        if self.is_full:
            self.count(key[-REASON_CHARACTERS:])
        elif key not in self._failed_us:
            self._failed_us[key] = failed_us
            self._returning += key[-REASON_CHARACTERS:] in RETURNING

    def count(self, reason: bytes) -> None:
        """Count a letter without its key; the first characters of its reason are enough."""
        self._beyond += 1
        self._returning += reason[:REASON_CHARACTERS] in RETURNING

    def remove(self, key: bytes) -> None:
        """Remove a letter, because its line is done."""
        if self._failed_us.pop(key, None) is None:
            if not self._beyond:
                return
            self._beyond -= 1
        if key[-REASON_CHARACTERS:] in RETURNING:
            self._returning = max(0, self._returning - 1)
