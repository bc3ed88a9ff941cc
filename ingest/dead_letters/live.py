"""Which letters of a folder are live, as far as a bounded number of ids in memory can say.

A letter is known by its key only if its line is on the disk and no mark of it had been read: what
is known need not be written again. Those beyond the bound are counted. Touches no file.
"""

from __future__ import annotations

from ingest.model.letter import DRAINED, EXHAUSTED

REASON_CHARACTERS = 3  # so many tell the reasons apart
# What replay.py brings back; no line of these is shorter (a test holds this).
RETURNING = (DRAINED[:REASON_CHARACTERS].encode(), EXHAUSTED[:REASON_CHARACTERS].encode())
RETURNING_BYTES_MIN = 300


def key_of(id_: str, reason: str) -> bytes:
    """Return what a letter is known by: its id and its reason."""
    return (id_ + reason[:REASON_CHARACTERS]).encode()


class Live:
    """The live letters of a folder; `ids_max` of them are known, the others only counted."""

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
        """How much of the folder, at least, the letters take that come back by themselves."""
        return self._returning * RETURNING_BYTES_MIN

    def add(self, key: bytes, failed_us: int) -> None:
        """Take in a letter that is not known."""
        if self.is_full:
            self.count(key[-REASON_CHARACTERS:])
        elif key not in self._failed_us:
            self._failed_us[key] = failed_us
            self._returning += key[-REASON_CHARACTERS:] in RETURNING

    def count(self, reason: bytes) -> None:
        """Count a letter beyond those that are known; of its reason the first characters do."""
        self._beyond += 1
        self._returning += reason[:REASON_CHARACTERS] in RETURNING

    def remove(self, key: bytes) -> None:
        """A line of that key is done."""
        if self._failed_us.pop(key, None) is None:
            if not self._beyond:
                return
            self._beyond -= 1
        if key[-REASON_CHARACTERS:] in RETURNING:
            self._returning = max(0, self._returning - 1)

    def clear(self) -> None:
        """Forget all, to count anew."""
        self._failed_us.clear()
        self._beyond = self._returning = 0
