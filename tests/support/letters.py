"""Makes dead letters for tests, and reads a folder back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ingest.dead_letters.folder.backend import FolderBackend
from ingest.dead_letters.folder.segments import live_letters
from ingest.dead_letters.identity import DEFAULT_RULES
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.dead_letters.store import LiveLetter
from ingest.formats.post import Rules
from ingest.model.ledger import DeadLetterStats
from ingest.model.reading import DRAINED, INVALID, Letter, Reading
from ingest.system.clock import unix_us
from ingest.system.files import REAL_CALLS, FileCalls

T = TypeVar("T")
_numbers = itertools.count(1)
START_US = 1_760_000_000_000_000


def drained(count: int, *, reason: str = DRAINED, device: str = "d") -> list[Letter]:
    """Return letters with readings that no other call returns."""
    return [
        Letter(
            reason,
            "",
            "stopped",
            unix_us(),
            reading=Reading(START_US + (number := next(_numbers)), device, "m", number / 3),
        )
        for _ in range(count)
    ]


def invalid(original: bytes, *, code: str = "wrong_type", received_us: int = START_US) -> Letter:
    """Return the letter of an invalid item."""
    return Letter(INVALID, code, "no", received_us, original=original, precision="s", item=3)


def folder_queue(
    folder: Path,
    *,
    bytes_max: int = 1 << 30,
    segment_bytes: int = 1 << 26,
    keep_days: float = 7,
    auto_replay: bool = True,
    rules: Rules = DEFAULT_RULES,
    calls: FileCalls = REAL_CALLS,
    ids_max: int = 1_000,
) -> DeadLetterQueue:
    """Return dead letters in files with the usual settings."""
    backend = FolderBackend(
        folder, segment_bytes=segment_bytes, keep_days=keep_days, calls=calls, ids_max=ids_max
    )
    return DeadLetterQueue(backend, bytes_max=bytes_max, auto_replay=auto_replay, rules=rules)


class LetterFiles:
    """Dead letters in files for tests that wait for each step: an event loop in a thread."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1)
        self._runner = asyncio.Runner()
        self._ended = False
        try:
            self._queue = self._do(self._opened(settings))
        except BaseException:
            self._end()
            raise

    async def _opened(self, settings: dict[str, Any]) -> DeadLetterQueue:
        queue = folder_queue(self.folder, **settings)
        await queue.open()
        return queue

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._thread.submit(self._runner.run, work).result()

    def append(self, *appends: tuple[list[Letter], str | None]) -> list[BaseException | None]:
        """Append at the same time; return each one's error, or None."""
        return self._do(self._append(appends))

    async def _append(
        self, appends: Sequence[tuple[list[Letter], str | None]]
    ) -> list[BaseException | None]:
        works = (self._queue.append(letters, sender=sender) for letters, sender in appends)
        return await asyncio.gather(*works, return_exceptions=True)

    def totals(self) -> DeadLetterStats:
        """Return what the queue tells."""

        async def stats() -> DeadLetterStats:
            return self._queue.stats()

        return self._do(stats())

    def look(self) -> None:
        """Take over what others have changed."""
        self._do(self._queue.look())

    def mark(self, wanted: Callable[[LiveLetter], bool]) -> None:
        """Mark as done the live lines that `wanted` accepts."""
        lines = [live for live in live_letters(self.folder) if wanted(live)]
        self._do(self._queue.letters.mark_done(lines, "replayed"))

    def tidy(self) -> list[Path]:
        """Remove what is done and old."""
        return self._do(self._queue.backend.tidy())

    def make_room(self) -> None:
        """Remove what is done."""
        self._do(self._queue.backend.make_room())

    def close(self) -> None:
        """Close the queue, and end the thread. A second call does nothing."""
        if self._ended:
            return
        self._do(self._queue.close())
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()


def keep(store: LetterFiles, letters: Iterable[Letter], *, sender: str | None = None) -> None:
    """Append letters; raise the store's error."""
    (error,) = store.append((list(letters), sender))
    if error is not None:
        raise error


def write(folder: Path, letters: Iterable[Letter]) -> None:
    """Write letters into a folder, as an earlier process."""
    store = LetterFiles(folder)
    keep(store, letters)
    store.close()


def read(folder: Path) -> list[Letter]:
    """Return the live letters of a folder."""
    return [live.letter for live in live_letters(folder)]


def mark(store: LetterFiles, wanted: Callable[[LiveLetter], bool] = lambda _: True) -> None:
    """Mark as done the live lines that `wanted` accepts."""
    store.mark(wanted)
