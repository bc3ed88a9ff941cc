"""The live letters of a folder in memory: the keys of the first `ids_max`, the number of the rest.

A key is in memory only if its line is on the disk and no mark for it has been read. So a letter
with such a key need not be written again. Reads and writes no file.
"""

from __future__ import annotations

from ingest.model.letter import DRAINED, EXHAUSTED

REASON_CHARACTERS = 3  # enough to tell the reasons apart
# The reasons that auto_replay.py takes; each of their lines has at least so many bytes (tested).
RETURNING = (DRAINED[:REASON_CHARACTERS].encode(), EXHAUSTED[:REASON_CHARACTERS].encode())
RETURNING_BYTES_MIN = 300


def key_of(id_: str, reason: str) -> bytes:
    """Return the key of a letter: its id and the start of its reason."""
    return (id_ + reason[:REASON_CHARACTERS]).encode()


class Live:
    """The live letters of a folder. `ids_max` keys are known; further letters are only counted."""

    def __init__(self, ids_max: int) -> None:
        self._ids_max = ids_max
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
        return len(self._failed_us) >= self._ids_max

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

    def clear(self) -> None:
        """Forget all letters."""
        self._failed_us.clear()
        self._beyond = self._returning = 0
