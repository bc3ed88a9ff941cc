"""Moves dead letters from the files of a state folder into a stream, and back.

`ingest serve` keeps them in files, `ingest up` in its broker. Who changes from one to the other
takes them along.
Promises: a letter is removed in one place when the other one has it on the disk. Its line stays as
it is. After a kill half-way the same is done again; what had arrived is not written twice.
Does not: move lines or messages that are damaged; they stay where they are. Two of these at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from ingest.dead_letters.folder.segments import new_segment
from ingest.dead_letters.folder.store import FolderLetterStore
from ingest.dead_letters.format import key_of
from ingest.dead_letters.queue import LetterBackend, NewLetter
from ingest.dead_letters.store import LetterStore, LiveLetter, Selection, Tally
from ingest.dead_letters.stream.store import StreamLetterStore
from ingest.system.files import AppendFile, make_folder
from ingest.system.logs import get_logger

KNOWN_MAX = 200_000  # letters of the other place, 150 bytes each; beyond that some come twice
HOW = "moved"

_log = get_logger()


class Carried(NamedTuple):
    """How many letters were moved, and how many stay: they are larger than a message may be."""

    moved: int
    left: int


async def into_stream(files: FolderLetterStore, stream: LetterBackend) -> Carried:
    """Move the letters of files into the stream. May be repeated.

    Raises DeadLettersFull if the stream is full, DeadLettersBroken if the broker or the disk fails,
    BrokerAway, BrokerRefused, OSError. What was moved before stays moved.
    """
    moved = left = 0
    if (await files.extent()).empty:
        return Carried(0, 0)
    there = await _known(stream.letters)
    async with files.held():
        async for part in files.oldest(Selection(), Tally()):
            fits = [each for each in part if not stream.too_long(len(each.line))]
            fresh = {_key(each): _as_new(each) for each in fits if _key(each) not in there}
            if fresh:
                await stream.write(fresh)
            if fits:
                await files.mark_done(fits, HOW)
            moved += len(fits)
            left += len(part) - len(fits)
    _log.info("dead_letters_moved", to="stream", letters=moved, left=left)
    return Carried(moved, left)


async def into_files(
    store: StreamLetterStore, files: FolderLetterStore, *, segment_bytes: int
) -> Carried:
    """Move the letters of the stream into files of `segment_bytes`. May be repeated.

    No limit applies: the letters have no other place. Raises BrokerAway, BrokerRefused, OSError.
    """
    moved = 0
    if (await store.extent()).empty:
        return Carried(0, 0)
    there = await _known(files)
    writer = _Segments(files, segment_bytes)
    try:
        async for part in store.oldest(Selection(), Tally()):
            fresh = [each for each in part if _key(each) not in there]
            await asyncio.to_thread(writer.append, fresh)
            await store.mark_done(part, HOW)
            moved += len(part)
    finally:
        writer.close()
    _log.info("dead_letters_moved", to="files", letters=moved, left=0)
    return Carried(moved, 0)


class _Segments:
    """Appends lines to new files of a folder. Blocks."""

    def __init__(self, files: FolderLetterStore, segment_bytes: int) -> None:
        self._folder = files.folder
        self._segment_bytes = segment_bytes
        self._file: AppendFile | None = None

    def append(self, letters: Sequence[LiveLetter]) -> None:
        """Write the letters' lines. When this returns, the disk has them."""
        if not letters:
            return
        if self._file is None:
            make_folder(self._folder)
            self._file = new_segment(self._folder)
        self._file.append(b"".join(each.line for each in letters))
        if self._file.size >= self._segment_bytes:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


async def _known(store: LetterStore) -> set[bytes]:
    """Return the keys of the letters of a store, or the first of them."""
    found: set[bytes] = set()
    async for part in store.oldest(Selection(), Tally()):
        found.update(map(_key, part))
        if len(found) >= KNOWN_MAX:
            break
    return found


def _key(live: LiveLetter) -> bytes:
    return key_of(live.id, live.letter.reason)


def _as_new(live: LiveLetter) -> NewLetter:
    return NewLetter(live.id, live.letter.reason, live.failed_us, live.line)
