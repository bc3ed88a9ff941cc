"""The dead-letter queue as the path uses it: append, and know that it is on the disk.

Appends that meet share one write and one fdatasync, in a thread of their own, so the event loop
never waits for the disk. Once begun an append is not cancelled half-way. Keeping the files is
dead_letter_store's; reading them is dead_letter_reader's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from ingest.dead_letters.folder import IDS_MAX, FolderTotals, Request, Store
from ingest.dead_letters.reader import LiveLetter
from ingest.model.errors import DeadLettersBroken, IngestError
from ingest.model.ledger import DeadLetterStats
from ingest.model.letter import Letter
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.files import REAL_CALLS, FileCalls

_STATS_S_MAX = 1.0  # how old the figures may be before a scrape asks for new ones

_T = TypeVar("_T")


class DeadLetterFolder:
    """Implements ports.DeadLetters in a folder of JSON Lines. For one event loop.

    `bytes_max` is the cap of the whole folder, `segment_bytes` where a file is finished;
    finished files whose every line is done are kept `keep_days`, or less if room is needed.
    `auto_replay`: a Replayer brings some back, so these may not fill it.
    """

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
        self._store = Store(
            folder,
            bytes_max=bytes_max,
            segment_bytes=segment_bytes,
            keep_days=keep_days,
            auto_replay=auto_replay,
            calls=calls,
            ids_max=ids_max,
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dead-letters")
        self._waiting: list[tuple[Request, asyncio.Future[None]]] = []
        self._writing: asyncio.Future[list[IngestError | None]] | None = None
        self._refreshing: asyncio.Future[None] | None = None
        self._refreshed_s = float("-inf")
        self._held = FolderTotals()
        self._closed = False

    async def open(self) -> None:
        """Create or read the folder. Raises StartError if it cannot be used."""
        await self._in_thread(self._store.open)

    async def append(self, letters: Sequence[Letter], *, from_receiver: bool = False) -> None:
        """Return once all letters are on the disk; one that is live already is not written again.

        Raises DeadLettersFull or DeadLettersBroken: then none is promised. Cancelling the wait
        does not stop the write.
        """
        if not letters:
            return
        self._refuse_closed()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_look_at)
        self._waiting.append((Request(letters, from_receiver), done))
        if self._writing is None:
            self._write()
        await asyncio.shield(done)

    def _write(self) -> None:
        group, self._waiting = self._waiting, []
        requests = [request for request, _ in group]
        self._writing = self._in_thread(partial(self._store.append, requests))
        self._writing.add_done_callback(partial(self._written, [done for _, done in group]))

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
        """Record that lines are done, on the disk. The caller holds the replay lock.

        Raises DeadLettersBroken: then they stay live.
        """
        self._refuse_closed()
        await self._in_thread(partial(self._store.mark, letters, how))

    async def tidy(self) -> list[Path]:
        """Remove finished segments that are done and old enough; return them."""
        self._refuse_closed()
        return await self._in_thread(self._store.tidy)

    async def refresh(self) -> None:
        """Take in what other processes did to the folder."""
        self._refuse_closed()
        await self._in_thread(self._store.refresh)

    def stats(self) -> DeadLetterStats:
        """Return what the folder holds, as of the last look; asks for a new one if that is old.

        Live letters beyond `ids_max` are counted by lines, not by ids. Never blocks.
        """
        idle = self._refreshing is None or self._refreshing.done()
        if idle and not self._closed and monotonic_s() - self._refreshed_s > _STATS_S_MAX:
            self._refreshed_s = monotonic_s()
            self._refreshing = self._in_thread(self._store.refresh)
            self._refreshing.add_done_callback(_look_at)
        held = self._held
        age_s = 0.0 if held.oldest_us is None else max(0.0, (unix_us() - held.oldest_us) / 1e6)
        return DeadLetterStats(held.size_bytes, held.live, age_s)

    async def close(self) -> None:
        """Wait for what was begun, then close the file. A second call does nothing."""
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
        """Run `work` in the store's thread, after all that was handed to it before."""

        def run() -> _T:
            try:
                return work()
            finally:
                self._held = self._store.held()

        return asyncio.get_running_loop().run_in_executor(self._thread, run)


def _look_at(future: asyncio.Future[None]) -> None:
    """Mark an exception as seen: whoever waited for it may have been cancelled."""
    if not future.cancelled():
        future.exception()
