"""The dead-letter queue for the event loop: appends letters and waits until they are on the disk.

Appends that come while another one is being written share the next write and fdatasync. A thread
does that, so the event loop never waits for the disk. An append that has begun is finished even if
its caller is cancelled. folder.py keeps the files, reader.py reads them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from ingest.dead_letters.folder import IDS_MAX, AppendRequest, DeadLetterFolder, FolderTotals
from ingest.dead_letters.folder_store import FolderLetterStore
from ingest.dead_letters.identity import DEFAULT_RULES
from ingest.dead_letters.in_work import InWork
from ingest.dead_letters.reader import LiveLetter
from ingest.formats.post import Rules
from ingest.model.errors import DeadLettersBroken, IngestError
from ingest.model.ledger import DeadLetterStats
from ingest.model.letter import Letter
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.files import REAL_CALLS, FileCalls

GROUP_BYTES_MAX = 4 * 1024**2  # of one write, for which all lines are in memory twice
_STATS_S_MAX = 1.0  # `stats` starts a new scan of the folder if the last one is older

_T = TypeVar("_T")


class DeadLetterQueue:
    """Implements ports.DeadLetters with a folder of JSON Lines. For one event loop.

    The whole folder has at most `bytes_max`. A file is finished at `segment_bytes`. A finished
    file in which every line is done is kept `keep_days`, or less if space is needed.
    `auto_replay`: a Replayer takes some letters out again, so these may not fill the folder.
    `rules` say which time of an invalid item is usable.
    """

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
        self._store = DeadLetterFolder(
            folder,
            bytes_max=bytes_max,
            segment_bytes=segment_bytes,
            keep_days=keep_days,
            auto_replay=auto_replay,
            rules=rules,
            calls=calls,
            ids_max=ids_max,
        )
        self.letters = FolderLetterStore(folder, self.mark_done)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dead-letters")
        self._waiting: deque[tuple[AppendRequest, int, asyncio.Future[None]]] = deque()
        self._in_work = InWork("the disk")
        self._writing: asyncio.Future[list[IngestError | None]] | None = None
        self._refreshing: asyncio.Future[None] | None = None
        self._refreshed_s = float("-inf")
        self._totals = FolderTotals()
        self._closed = False

    async def open(self) -> None:
        """Create or read the folder. Raises StartError if it cannot be used."""
        await self._in_thread(self._store.open)

    async def append(self, letters: Sequence[Letter], *, sender: str | None = None) -> None:
        """Return when all letters are on the disk. A letter that is live is not written again.

        Raises DeadLettersFull or DeadLettersBroken; then no letter is promised to be there. If
        letters of senders come faster than the disk takes them, raises BufferFull. Cancelling the
        wait does not stop the write.
        """
        if not letters:
            return
        self._refuse_closed()
        size = self._in_work.add(letters, sender)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(partial(self._append_done, size))
        self._waiting.append((AppendRequest(letters, sender), size, done))
        if self._writing is None:
            self._write()
        await asyncio.shield(done)

    def _write(self) -> None:
        requests: list[AppendRequest] = []
        group: list[asyncio.Future[None]] = []
        size = 0
        while self._waiting and size <= GROUP_BYTES_MAX:
            request, its_size, done = self._waiting.popleft()
            requests.append(request)
            group.append(done)
            size += its_size
        self._writing = self._in_thread(partial(self._store.append, requests))
        self._writing.add_done_callback(partial(self._written, group))

    def _append_done(self, size: int, done: asyncio.Future[None]) -> None:
        self._in_work.end(size)
        take_exception(done)

    def _written(
        self, group: list[asyncio.Future[None]], writing: asyncio.Future[list[IngestError | None]]
    ) -> None:
        failed = writing.exception()
        outcomes = writing.result() if failed is None else [failed] * len(group)
        for done, outcome in zip(group, outcomes, strict=True):
            if outcome is None:
                done.set_result(None)
            else:
                done.set_exception(outcome)
        self._writing = None
        if self._waiting:
            self._write()

    async def mark_done(self, letters: Sequence[LiveLetter], how: str) -> None:
        """Record on the disk that lines are done. The caller has the replay lock.

        Raises DeadLettersBroken; then they are still live.
        """
        self._refuse_closed()
        await self._in_thread(partial(self._store.mark, letters, how))

    async def tidy(self) -> list[Path]:
        """Remove finished segments that are old enough and have no live line; return them."""
        self._refuse_closed()
        return await self._in_thread(self._store.tidy)

    async def refresh(self) -> None:
        """Take over changes that other processes made to the folder."""
        self._refuse_closed()
        await self._in_thread(self._store.refresh)

    def stats(self) -> DeadLetterStats:
        """Return figures of the last scan of the folder; start a new scan if that is old.

        Live letters beyond `ids_max` are counted by lines, not by ids. Never blocks.
        """
        idle = self._refreshing is None or self._refreshing.done()
        if idle and not self._closed and monotonic_s() - self._refreshed_s > _STATS_S_MAX:
            self._refreshed_s = monotonic_s()
            self._refreshing = self._in_thread(self._store.refresh)
            self._refreshing.add_done_callback(take_exception)
        size_bytes, live, oldest_us, invalid_full, used_by = self._totals
        age_s = 0.0 if oldest_us is None else max(0.0, (unix_us() - oldest_us) / 1e6)
        return DeadLetterStats(size_bytes, live, age_s, invalid_full, used_by)

    async def close(self) -> None:
        """Wait for appends that have begun, then close the file. A second call does nothing."""
        already, self._closed = self._closed, True
        while self._writing is not None:
            await asyncio.wait([self._writing])
        if not already:
            await self._in_thread(self._store.close)
            self._thread.shutdown()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise DeadLettersBroken("the dead letters are closed")

    def _in_thread(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Run `work` in the thread of the store, after all earlier work."""

        def run() -> _T:
            try:
                return work()
            finally:
                self._totals = self._store.totals()

        return asyncio.get_running_loop().run_in_executor(self._thread, run)


def take_exception(future: asyncio.Future[None]) -> None:
    """Read the exception, or asyncio logs it: the task that waited may have been cancelled."""
    if not future.cancelled():
        future.exception()
