"""Makes dead letters for tests, and reads a folder back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from ingest.dead_letters.folder import AppendRequest, DeadLetterFolder
from ingest.dead_letters.reader import LiveLetter, live_letters
from ingest.model.letter import DRAINED, INVALID, Letter
from ingest.model.reading import Reading
from ingest.system.clock import unix_us
from ingest.system.files import REAL_CALLS, FileCalls

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


def make_store(
    folder: Path,
    *,
    bytes_max: int = 1 << 30,
    segment_bytes: int = 1 << 26,
    keep_days: float = 7,
    auto_replay: bool = True,
    calls: FileCalls = REAL_CALLS,
    ids_max: int = 1_000,
) -> DeadLetterFolder:
    """Open a store with the usual settings."""
    store = DeadLetterFolder(
        folder,
        bytes_max=bytes_max,
        segment_bytes=segment_bytes,
        keep_days=keep_days,
        auto_replay=auto_replay,
        calls=calls,
        ids_max=ids_max,
    )
    store.open()
    return store


def keep(store: DeadLetterFolder, letters: Iterable[Letter], *, sender: str | None = None) -> None:
    """Append letters; raise the store's error."""
    (error,) = store.append([AppendRequest(list(letters), sender)])
    if error is not None:
        raise error


def read(folder: Path) -> list[Letter]:
    """Return the live letters of a folder."""
    return [live.letter for live in live_letters(folder)]


def mark(store: DeadLetterFolder, wanted: Callable[[LiveLetter], bool] = lambda _: True) -> None:
    """Mark as done the live lines that `wanted` accepts."""
    store.mark([live for live in live_letters(store.folder) if wanted(live)], "replayed")
