"""The dead-letter folder of one process: appends, caps, live ids, removal of old files.

All calls come from one thread (queue.py does that), because they block and must not overlap.
Promises: when `append` returns without an error, the letters are on the disk. It never edits a
file. It removes only segments that no process writes and in which every line is done.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Collection, Container, Sequence
from pathlib import Path
from typing import NamedTuple

from ingest.dead_letters.files import (
    FileStamp,
    cursor_path,
    is_segment,
    new_segment,
    segments,
    stamps,
    sync_file,
    touched_us,
)
from ingest.dead_letters.format import (
    LINE_BYTES_MAX,
    REASON_AT,
    BadLine,
    decode_line,
    encode_line,
)
from ingest.dead_letters.identity import DEFAULT_RULES, letter_id
from ingest.dead_letters.live import Live, key_of
from ingest.dead_letters.marks import mark_done, read_marks
from ingest.dead_letters.reader import LiveLetter, Tally, undone_lines
from ingest.dead_letters.room import Room
from ingest.formats.post import Rules
from ingest.model.errors import (
    DeadLettersBroken,
    DeadLettersFull,
    IngestError,
    StartError,
)
from ingest.model.letter import DRAINED, Letter
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.files import (
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
_MAKE_ROOM_S_MIN = 5.0  # between two searches for files to remove while the folder is full
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

log = get_logger()


def segment_bytes(bytes_max: int) -> int:
    """Return the size of one file, of all that may have `bytes_max`: whole files are removed."""
    return min(SEGMENT_BYTES, bytes_max // 4)


class AppendRequest(NamedTuple):
    """Letters of one append: all of them are written, or none."""

    letters: Sequence[Letter]
    sender: str | None  # of the post; None: from a writer


class FolderTotals(NamedTuple):
    """Bytes of all files, number of live letters, when the oldest of these failed."""

    size_bytes: int = 0
    live: int = 0
    oldest_us: int | None = None
    invalid_full: bool = False  # there is no room for invalid items
    share_used_by: str = ""  # as in Room


class DeadLetterFolder:
    """A dead-letter folder and what one process knows of it. Arguments as in DeadLetterQueue."""

    def __init__(
        self,
        folder: Path,
        *,
        bytes_max: int,
        segment_bytes: int,
        keep_days: float,
        auto_replay: bool = True,
        rules: Rules = DEFAULT_RULES,
        calls: FileCalls = REAL_CALLS,
        ids_max: int = IDS_MAX,
    ) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        self._keep_us = int(keep_days * 86_400_000_000)
        self._rules = rules
        self._calls = calls
        self._segment: AppendFile | None = None
        self._size = 0
        self._live = Live(ids_max)
        self._room = Room(bytes_max, auto_replay=auto_replay)
        self._marks_read: dict[Path, int] = {}  # segment -> bytes of its cursor that were read
        self._stamps: dict[Path, FileStamp] = {}  # segments at the last scan
        self._room_made_s = float("-inf")

    def open(self) -> None:
        """Create or read the folder. Raises StartError if it cannot be used."""
        try:
            make_folder(self.folder, self._calls)
            self._scan()
            if self._room.is_full_for_invalid(self._size):
                self.tidy(whatever_age=True)  # or a folder without a live letter counts as full
        except OSError as error:
            raise StartError(
                f"the dead-letter folder {self.folder} cannot be used: {error.strerror}"
            ) from error

    def totals(self) -> FolderTotals:
        """Return what is known of the folder; reads no file."""
        full = self._room.is_full_for_invalid(self._size)
        return FolderTotals(
            self._size, len(self._live), self._live.oldest_us, full, self._room.share_used_by
        )

    def append(self, requests: Sequence[AppendRequest]) -> list[IngestError | None]:
        """Append requests with one write and one fdatasync; return each one's error, or None."""
        outcomes: list[IngestError | None] = []
        fresh: dict[bytes, bytes] = {}  # key -> line
        size = 0
        failed_us = unix_us()
        for request in requests:
            lines = self._lines_of(request.letters, fresh, failed_us)
            its_size = sum(map(len, lines.values()))
            error = self._refusal(size, lines.values(), request)
            outcomes.append(error)
            if error is None:
                fresh |= lines
                size += its_size
                self._room.use(request.sender, its_size)
        if not fresh:
            return outcomes
        try:
            self._write(b"".join(fresh.values()))
        except DeadLettersBroken as broken:
            return [broken if error is None else error for error in outcomes]
        for key in fresh:
            self._live.add(key, failed_us)
        return outcomes

    def _lines_of(
        self, letters: Sequence[Letter], pending: Container[bytes], failed_us: int
    ) -> dict[bytes, bytes]:
        """Encode the letters that are neither live nor pending; return their lines by key."""
        lines: dict[bytes, bytes] = {}
        refreshed = False
        for letter in letters:
            id_ = letter_id(letter, self._rules)
            key = key_of(id_, letter.reason)
            if key in lines or key in pending:
                continue
            if key in self._live and not refreshed:
                self.refresh()  # another process may have marked it as done
                refreshed = True
            if key not in self._live:
                lines[key] = encode_line(letter, id_=id_, failed_us=failed_us)
        return lines

    def _refusal(
        self, pending: int, lines: Collection[bytes], request: AppendRequest
    ) -> DeadLettersFull | None:
        """`pending` are the bytes of the requests before it in the same write."""
        if not lines or all(letter.reason == DRAINED for letter in request.letters):
            return None  # at the end of a drain they have no other place: no limit
        if max(map(len, lines)) > LINE_BYTES_MAX:
            return DeadLettersFull(f"one dead letter has more than {LINE_BYTES_MAX} bytes")
        refusal = self._find_room(request, sum(map(len, lines)), pending)
        if refusal is not None:
            self._make_room()
            refusal = self._find_room(request, sum(map(len, lines)), pending)
        return refusal

    def _find_room(self, request: AppendRequest, size: int, pending: int) -> DeadLettersFull | None:
        letters, sender = request
        taken, returning = self._size + pending, self._live.returning_bytes
        return self._room.refusal(letters, sender, size, taken=taken, returning=returning)

    def _make_room(self) -> None:
        """Remove files that are done before their time: full dead letters would pause writes."""
        if monotonic_s() - self._room_made_s >= _MAKE_ROOM_S_MIN:
            self._room_made_s = monotonic_s()
            self.tidy(whatever_age=True)
            self.refresh()

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
                    self.close()
                return
            except OSError as error:
                full = error.errno in _NO_SPACE
                log.error("dead_letter_write_failed", error=str(error), again=not (full or last))
                if self._segment is not None and (self._segment.suspect or not full):
                    self.close()
                if full or last:
                    raise DeadLettersBroken(
                        f"the dead letters could not be written: {error.strerror or error}"
                    ) from error

    def close(self) -> None:
        """Close the segment that is being written. A later append begins a new one."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def mark(self, letters: Sequence[LiveLetter], how: str) -> None:
        """Record that lines are done. Raises DeadLettersBroken; then they are still live."""
        try:
            mark_done(((each.path, each.mark) for each in letters), how, self._calls)
        except OSError as error:
            raise DeadLettersBroken(
                f"the cursor of the dead letters could not be written: {error.strerror or error}"
            ) from error
        self.refresh()

    def refresh(self) -> None:
        """Take over changes of other processes: marks, removed segments, finished segments."""
        try:
            self._scan()
        except OSError as error:
            log.warning("dead_letters_unreadable", error=str(error))
            return
        if not self._live and self._room.is_full_for_invalid(self._size):
            self._make_room()  # or /readyz tells of a full folder until the next append

    def _scan(self) -> None:
        found = stamps(self.folder)
        now = {path: stamp for path, stamp in found.items() if is_segment(path.name)}
        gone = FileStamp(0, -1)
        if not all(now.get(path, gone).continues(stamp) for path, stamp in self._stamps.items()):
            self._marks_read.clear()  # somebody removed, cut or replaced a segment: count anew
            self._live.clear()
        self._stamps = now
        for segment in now:
            try:
                if segment not in self._marks_read:
                    if self._is_ours(segment) or not is_locked(segment):
                        self._take_segment(segment)
                elif found.get(cursor_path(segment), gone).size > self._marks_read[segment]:
                    self._take_marks(segment)
            except FileNotFoundError:
                continue
            except OSError as error:  # the service starts all the same
                self._marks_read.setdefault(segment, 0)
                log.warning("dead_letters_unreadable", file=segment.name, error=str(error))
        self._size = sum(stamp.size for stamp in found.values())

    def _is_ours(self, segment: Path) -> bool:
        return self._segment is not None and self._segment.path == segment

    def _take_marks(self, segment: Path) -> None:
        """Forget the lines that were marked since the last scan."""
        marks, self._marks_read[segment] = read_marks(segment, self._marks_read[segment])
        for mark in marks:
            self._live.remove(key_of(mark.id, mark.reason))

    def _take_segment(self, segment: Path) -> None:
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
            if self._live.is_full:  # then its reason is enough
                self._live.count(line[REASON_AT:])
                continue
            try:
                id_, failed_us, letter = decode_line(line)
            except BadLine:
                tally.altered += 1
                continue
            self._live.add(key_of(id_, letter.reason), failed_us)
        if tally.damaged:
            log.warning(
                "dead_letters_damaged",
                file=segment.name,
                altered=tally.altered,
                torn=tally.torn,
                unreadable=tally.unreadable,
            )

    def tidy(self, *, whatever_age: bool = False) -> list[Path]:
        """Remove finished segments, older than `keep_days`, in which every line is done.

        With `whatever_age` their age does not count, and the segment that is being written is
        finished if every line in it is done.
        """
        removed: list[Path] = []
        for segment in segments(self.folder):
            try:
                if whatever_age or unix_us() - touched_us(segment) >= self._keep_us:
                    if whatever_age and self._is_ours(segment) and not any(undone_lines(segment)):
                        self.close()
                    removed += [segment] if self._remove_if_done(segment) else []
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("dead_letters_tidy_failed", file=segment.name, error=str(error))
        if removed:
            self.refresh()
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
