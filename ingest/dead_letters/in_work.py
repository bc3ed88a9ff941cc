"""The bound of dead letters that are being appended. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from ingest.model.errors import BufferFull
from ingest.model.letter import Letter

# Half of it is for posts with few invalid items, so a client that sends many of them does not keep
# those out.
IN_WORK_BYTES_MAX = 16 * 1024**2
SMALL_BYTES_MAX = 64 * 1024
LETTER_BYTES = 500  # what a letter takes beside the bytes of its item
BUSY_S = 1.0


class InWork:
    """What the letters take, about, that are appended and not kept yet. `where` keeps them."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._size_bytes = 0

    def add(self, letters: Sequence[Letter], sender: str | None) -> int:
        """Add letters; return their size, for `end`.

        Raises BufferFull if those of senders come too fast.
        """
        size = sum(LETTER_BYTES + len(each.original or b"") for each in letters)
        if sender is not None:
            limit = IN_WORK_BYTES_MAX if size <= SMALL_BYTES_MAX else IN_WORK_BYTES_MAX // 2
            if self._size_bytes and self._size_bytes + size > limit:
                raise BufferFull(BUSY_S, f"invalid items come faster than {self._where} takes them")
        self._size_bytes += size
        return size

    def end(self, size: int) -> None:
        """Note that letters of this size are kept, or have failed."""
        self._size_bytes -= size
