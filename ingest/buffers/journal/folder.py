"""The journal's folder as one process keeps it: append, rotate, note what is done, clear away.

Belongs to one thread: every method blocks, and none may run beside another (journal.py sees to
that). Segments of earlier lives are never appended to. What is said to be written is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ingest.buffers.journal.format import (
    DONE_BYTES,
    HEADER_BYTES,
    encode_done,
    encode_head,
    encode_header,
    segment_name,
)
from ingest.buffers.journal.reader import SegmentFile, segment_files
from ingest.model.block import Block
from ingest.model.errors import StartError
from ingest.system.files import (
    REAL_CALLS,
    AppendFile,
    FileCalls,
    FolderLock,
    make_folder,
    sync_folder,
    unlink_aside,
)
from ingest.system.logs import get_logger

UNSEEN_S_MAX = 1.0  # a look costs two waits for the interpreter, a quarter of a group's time
PROBE_FREE_BYTES_MIN = 1 << 20  # less, and a disk that was full is still full

log = get_logger("journal")


class Written(NamedTuple):
    """Where a group lies now: its segment, and the offsets of its first frame and its end."""

    file: SegmentFile
    start: int
    end: int
    is_last: bool  # of its segment, which is full


class JournalStore:
    """One process's hold on a journal folder. `segment_bytes` is where a segment is finished."""

    def __init__(self, folder: Path, *, segment_bytes: int, calls: FileCalls = REAL_CALLS) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        self._calls = calls
        self._lock: FolderLock | None = None
        self._current: tuple[SegmentFile, AppendFile] | None = None
        self._notes: tuple[SegmentFile, int] | None = None  # written last, and its descriptor
        self._noting_failed = False
        self._tidying_failed = False

    def open(self) -> list[tuple[SegmentFile, int]]:
        """Take the folder; return the segments that earlier lives left, with their sizes in bytes.

        Raises StartError if the folder cannot be used or another service has it.
        """
        try:
            make_folder(self.folder, self._calls)
            self._lock = FolderLock.try_take(self.folder)
            if self._lock is None:
                raise StartError(
                    f"another service writes the journal {self.folder}: stop it, or choose another "
                    "folder with --state-dir"
                )
            found = segment_files(self.folder)
            # The notes of a segment that is gone must not meet another one.
            for path in self.folder.glob("journal-*.done"):
                if not path.with_suffix(".log").exists():
                    with contextlib.suppress(OSError):  # nor will it: a name has its own salt
                        path.unlink()
            return [(each, each.path.lstat().st_size) for each in found]
        except OSError as error:
            raise StartError(
                f"the journal folder {self.folder} cannot be used: {error.strerror}; choose "
                "another with --state-dir, or --buffer memory"
            ) from error

    def write(self, blocks: Sequence[Block]) -> Written:
        """Append the blocks' frames and bring them to the disk, all or none. Raises OSError.

        After an error the file is not written any more if it may hold what it should not, or not
        hold what it should.
        """
        file, out = self._current or self._create(blocks[0].sequence)
        start = out.size
        parts: list[bytes] = []
        for block in blocks:
            parts.append(encode_head(block, file.salt))
            parts.append(block.tuples)
        try:
            out.append(b"".join(parts))
        except OSError:
            if out.suspect:
                self.finish()
            raise
        is_full = out.size >= self._segment_bytes
        if is_full:
            self.finish()
        return Written(file, start, out.size, is_full)

    def _create(self, first: int) -> tuple[SegmentFile, AppendFile]:
        self._hold()
        salt = secrets.randbits(32)
        file = SegmentFile(self.folder / segment_name(first, salt), first, salt)
        out = AppendFile.open(file.path, create=True, calls=self._calls, unseen_s_max=UNSEEN_S_MAX)
        try:
            out.append(encode_header(first, salt))
            sync_folder(self.folder, self._calls)
        except OSError:
            out.close()
            file.path.unlink(missing_ok=True)
            raise
        self._current = (file, out)
        return self._current

    def _hold(self) -> None:
        """Have the folder that the name leads to now: somebody may have moved ours away.

        Raises OSError if another service has it, which would remove what we put there.
        """
        if self._lock is not None and self._lock.holds():
            return
        lost, self._lock = self._lock, None  # closed once: its descriptors may soon be another's
        if lost is not None:
            lost.close()
        self._lock = FolderLock.try_take(self.folder)
        if self._lock is None:
            raise OSError(errno.EBUSY, "another service writes this journal", str(self.folder))

    def finish(self) -> None:
        """Write the current segment no more; the next group begins another one."""
        if self._current is not None:
            file, out = self._current
            self._current = None
            with contextlib.suppress(OSError):  # all that was appended is on the disk already
                out.close()
            if out.size <= HEADER_BYTES:
                file.path.unlink(missing_ok=True)  # nothing ever came of it

    def probe(self, next_sequence: int) -> None:
        """Try a new segment, to see whether the disk takes anything. Raises OSError if not."""
        self.finish()
        make_folder(self.folder, self._calls)  # gone by somebody's hand?
        free = os.statvfs(self.folder)
        if free.f_bavail * free.f_frsize < PROBE_FREE_BYTES_MIN:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))
        self._create(next_sequence)

    def note(self, file: SegmentFile, ranges: Iterable[tuple[int, int]]) -> None:
        """Note what is done; not brought to the disk. What is missing will be written twice."""
        records = b"".join(encode_done(first, last) for first, last in ranges)
        try:
            if self._notes is None or self._notes[0] != file:
                self._close_notes()
                self._notes = (file, _open_notes(file))
            if os.write(self._notes[1], records) < len(records):
                raise OSError(errno.ENOSPC, "a note was cut short", str(file.done_path))
        except OSError as error:
            self._close_notes()
            if not self._noting_failed:
                log.warning("journal_note_failed", error=str(error))
            self._noting_failed = True
        else:
            self._noting_failed = False

    def _close_notes(self) -> None:
        notes, self._notes = self._notes, None
        if notes is not None:
            os.close(notes[1])

    def remove(self, file: SegmentFile, *, damaged: bool) -> bool:
        """Remove a segment that is done, or set it aside as *.damaged; return whether it is gone.

        It is gone too if somebody else has removed it.
        """
        if self._notes is not None and self._notes[0] == file:
            self._close_notes()
        try:
            with contextlib.suppress(FileNotFoundError):
                if damaged:
                    file.path.rename(file.path.with_suffix(".damaged"))
                else:
                    unlink_aside(file.path)  # a group may wait for this thread
        except OSError as error:
            if not self._tidying_failed:
                log.warning("journal_tidy_failed", file=file.path.name, error=str(error))
            self._tidying_failed = True
            return False
        self._tidying_failed = False
        with contextlib.suppress(OSError):  # alone it says nothing; the next start removes it
            file.done_path.unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Close what is open, give the folder free."""
        self.finish()
        self._close_notes()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _open_notes(file: SegmentFile) -> int:
    """Open a segment's notes for appending, behind the last whole one."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(file.done_path, flags, 0o600)
    try:
        if torn := os.fstat(fd).st_size % DONE_BYTES:
            os.ftruncate(fd, os.fstat(fd).st_size - torn)
    except OSError:
        os.close(fd)
        raise
    return fd
