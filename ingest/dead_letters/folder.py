"""The dead-letter folder as one process keeps it: appends, caps, live ids, clearing away.

Belongs to one thread: every method blocks and none may run beside another (dead_letter.py sees to
that). What it says is on the disk is on the disk. It never edits a file, and removes only segments
that nobody writes and whose every line is done.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ingest.dead_letters.files import (
    FileStamp,
    cursor_path,
    is_segment,
    look_at,
    new_segment,
    segments,
    sync_file,
    touched_us,
)
from ingest.dead_letters.format import (
    LINE_BYTES_MAX,
    REASON_AT,
    BadLine,
    decode_line,
    encode_line,
    letter_id,
)
from ingest.dead_letters.live import Live, key_of
from ingest.dead_letters.marks import mark_done, read_marks
from ingest.dead_letters.reader import LiveLetter, Tally, undone_lines
from ingest.model.errors import DeadLettersBroken, DeadLettersFull, IngestError, StartError
from ingest.model.letter import DRAINED, EXHAUSTED, Letter
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.files import REAL_CALLS, AppendFile, FileCalls, Lock, make_folder, sync_folder
from ingest.system.logs import get_logger

IDS_MAX = 200_000  # ids kept in memory, 170 bytes each; beyond it letters are not deduplicated
_MAKE_ROOM_S_MIN = 5.0  # between looks for something to remove while the folder is full
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

log = get_logger()


class Request(NamedTuple):
    """Letters that are appended together or not at all."""

    letters: Sequence[Letter]
    from_receiver: bool


class FolderTotals(NamedTuple):
    """What the folder holds: bytes of all files, live letters, failed_at of the oldest one."""

    size_bytes: int = 0
    live: int = 0
    oldest_us: int | None = None


class Store:
    """One process's hold on a dead-letter folder. See DeadLetterFolder for the arguments."""

    def __init__(
        self,
        folder: Path,
        *,
        bytes_max: int,
        segment_bytes: int,
        keep_days: float,
        auto_replay: bool = True,
        calls: FileCalls = REAL_CALLS,
        ids_max: int = IDS_MAX,
    ) -> None:
        self.folder = folder
        self._bytes_max = bytes_max
        self._segment_bytes = segment_bytes
        self._keep_us = int(keep_days * 86_400_000_000)
        self._auto_replay = auto_replay
        self._calls = calls
        self._segment: AppendFile | None = None
        self._size = 0
        self._live = Live(ids_max)
        self._marks_read: dict[Path, int] = {}  # known segments -> bytes of their cursor seen
        self._seen: dict[Path, FileStamp] = {}  # segments as they were last
        self._room_looked_s = float("-inf")

    def open(self) -> None:
        """Create or read the folder. Raises StartError if it cannot be used."""
        try:
            make_folder(self.folder, self._calls)
            self._look()
        except OSError as error:
            raise StartError(
                f"the dead-letter folder {self.folder} cannot be used: {error.strerror}"
            ) from error

    def held(self) -> FolderTotals:
        """Return what is known of the folder now; reads no file."""
        return FolderTotals(self._size, len(self._live), self._live.oldest_us)

    def append(self, requests: Sequence[Request]) -> list[IngestError | None]:
        """Append requests with one write and one fdatasync; return each one's error, or None."""
        outcomes: list[IngestError | None] = []
        lines: list[bytes] = []
        fresh: dict[bytes, int] = {}
        size = 0
        for request in requests:
            its_lines, its_keys = self._lines_of(request.letters, fresh)
            its_size = sum(map(len, its_lines))
            error = self._refusal(size + its_size, its_lines, request)
            outcomes.append(error)
            if error is None:
                lines += its_lines
                fresh |= its_keys
                size += its_size
        if not lines:
            return outcomes
        try:
            self._write(b"".join(lines))
        except DeadLettersBroken as broken:
            return [broken if error is None else error for error in outcomes]
        for key, failed_us in fresh.items():
            self._live.add(key, failed_us)
        return outcomes

    def _lines_of(
        self, letters: Sequence[Letter], pending: dict[bytes, int]
    ) -> tuple[list[bytes], dict[bytes, int]]:
        """Encode the letters that are not live yet."""
        lines: list[bytes] = []
        keys: dict[bytes, int] = {}
        failed_us = unix_us()
        looked = False
        for letter in letters:
            id_ = letter_id(letter)
            key = key_of(id_, letter.reason)
            if key in keys or key in pending:
                continue
            if key in self._live and not looked:
                self.refresh()  # a hand may have marked it done since
                looked = True
            if key not in self._live:
                keys[key] = failed_us
                lines.append(encode_line(letter, id_=id_, failed_us=failed_us))
        return lines, keys

    def _refusal(self, size: int, lines: list[bytes], request: Request) -> DeadLettersFull | None:
        if not lines or all(letter.reason == DRAINED for letter in request.letters):
            return None  # at a drain's end there is no other place: only the disk is the bound
        if max(map(len, lines)) > LINE_BYTES_MAX:
            return DeadLettersFull(f"one dead letter has more than {LINE_BYTES_MAX} bytes")
        if self._size + size > self._share(request)[0]:
            self._make_room()
        share, whose = self._share(request)
        if self._size + size > share:
            return DeadLettersFull(f"the dead letters hold {self._size} bytes of {share}{whose}")
        return None

    def _share(self, request: Request) -> tuple[int, str]:
        """Return how large the folder may become with these letters, and words for it.

        What comes back by itself does so only while nothing holds the writers: so it leaves room
        for refused rows, and refused rows may wait beside it for the room that it takes.
        """
        if request.from_receiver:
            return self._bytes_max // 2, " that the door may use"
        if not self._auto_replay:
            return self._bytes_max, ""
        if all(letter.reason == EXHAUSTED for letter in request.letters):
            return self._bytes_max * 3 // 4, " that retries_exhausted may use"
        return self._bytes_max + self._live.returning_bytes, ""

    def _make_room(self) -> None:
        """Look again, and give up what is done before its time: a full queue stops the service."""
        if monotonic_s() - self._room_looked_s >= _MAKE_ROOM_S_MIN:
            self._room_looked_s = monotonic_s()
            self.tidy(whatever_age=True)
            self.refresh()

    def _write(self, data: bytes) -> None:
        """Bring `data` to the disk, in a second file if the first fails for more than space."""
        for last in (False, True):
            try:
                if self._segment is None:
                    make_folder(self.folder, self._calls)  # gone by somebody's hand?
                    self._segment = new_segment(self.folder, self._calls)
                    self._marks_read[self._segment.path] = 0
                self._segment.append(data)
                self._seen[self._segment.path] = FileStamp(self._segment.inode, self._segment.size)
                self._size += len(data)
                if self._segment.size >= self._segment_bytes:
                    self._finish_segment()
                return
            except OSError as error:
                full = error.errno in _NO_SPACE
                log.error("dead_letter_write_failed", error=str(error), again=not (full or last))
                if self._segment is not None and (self._segment.suspect or not full):
                    self._finish_segment()
                if full or last:
                    raise DeadLettersBroken(
                        f"the dead letters could not be written: {error.strerror or error}"
                    ) from error

    def _finish_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def mark(self, letters: Sequence[LiveLetter], how: str) -> None:
        """Record that lines are done. Raises DeadLettersBroken; then they stay live."""
        try:
            mark_done(((each.path, each.mark) for each in letters), how, self._calls)
        except OSError as error:
            raise DeadLettersBroken(
                f"the cursor of the dead letters could not be written: {error.strerror or error}"
            ) from error
        self.refresh()

    def refresh(self) -> None:
        """Take in what others did: marks, removed segments, segments of processes that ended."""
        try:
            self._look()
        except OSError as error:
            log.warning("dead_letters_unreadable", error=str(error))

    def _look(self) -> None:
        found = look_at(self.folder)
        there = {path: seen for path, seen in found.items() if is_segment(path.name)}
        gone = FileStamp(0, -1)
        if not all(there.get(path, gone).holds(seen) for path, seen in self._seen.items()):
            self._marks_read.clear()  # removed, cut off or replaced by another hand: count anew
            self._live.clear()
        self._seen = there
        for segment in there:
            try:
                if segment in self._marks_read:
                    self._take_marks(segment)
                elif self._is_ours(segment) or _is_finished(segment):
                    self._take_segment(segment)
            except FileNotFoundError:
                continue
            except OSError as error:  # never a reason not to start
                self._marks_read.setdefault(segment, 0)
                log.warning("dead_letters_unreadable", file=segment.name, error=str(error))
        self._size = sum(seen.size for seen in found.values())

    def _is_ours(self, segment: Path) -> bool:
        return self._segment is not None and self._segment.path == segment

    def _take_marks(self, segment: Path) -> None:
        """Forget the lines that were marked since the last look."""
        try:
            if cursor_path(segment).stat().st_size <= self._marks_read[segment]:
                return
        except FileNotFoundError:
            return
        marks, self._marks_read[segment] = read_marks(segment, self._marks_read[segment])
        for mark in marks:
            self._live.remove(key_of(mark.id, mark.reason))

    def _take_segment(self, segment: Path) -> None:
        """Remember a segment's live lines. Marks first: a mark read too early would be lost.

        Its writer may have died before its fdatasync; what we remember must be on the disk.
        """
        sync_file(segment, self._calls)
        self._marks_read[segment] = 0
        with contextlib.suppress(OSError):  # told below, by the tally
            self._marks_read[segment] = read_marks(segment)[1]
        tally = Tally()
        for _, line in undone_lines(segment, tally=tally):
            if self._live.is_full:  # then there is no need to read it
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

        With `whatever_age` the one being written is finished for that, if every line is done.
        """
        removed: list[Path] = []
        for segment in segments(self.folder):
            try:
                if whatever_age or unix_us() - touched_us(segment) >= self._keep_us:
                    if whatever_age and self._is_ours(segment) and _is_done(segment):
                        self._finish_segment()
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
                return False  # what was altered is left for a human to look at
            segment.unlink()
        sync_folder(self.folder, self._calls)  # before the cursor goes: it must not outlive it
        cursor_path(segment).unlink(missing_ok=True)
        self._marks_read.pop(segment, None)
        self._seen.pop(segment, None)
        return True

    def close(self) -> None:
        """Close the segment; it is finished then."""
        self._finish_segment()


def _is_done(segment: Path) -> bool:
    return next(undone_lines(segment), None) is None


def _is_finished(segment: Path) -> bool:
    lock = Lock.try_take(segment)
    if lock is not None:
        lock.close()
    return lock is not None
