"""The frames that a buffer appends to its journal: how many bytes of them are not written yet."""

from __future__ import annotations

from ingest.buffers.frames import HEAD_BYTES


class UnwrittenFrames:
    """Counts the bytes of frames that have room on the disk reserved and are not written yet.

    Their blocks may have `bytes_max` bytes, and spilled ones a quarter of that. A single block may
    be larger. The first bound is needed when the disk hangs: the database may have stored a block
    before it is written here. `BoundedMemory` then does not count it any more, but it still needs
    memory.
    """

    def __init__(self, bytes_max: int) -> None:
        self.size_bytes = 0  # of the frames
        self._bytes_max = {False: bytes_max, True: bytes_max // 4}  # of blocks; True: spilled
        self._block_bytes = {False: 0, True: 0}

    def take(self, size_bytes: int, *, spilled: bool) -> bool:
        """Count the frame of a block of `size_bytes`; return False if it has to wait."""
        block_bytes = self._block_bytes[spilled]
        if block_bytes and block_bytes + size_bytes > self._bytes_max[spilled]:
            return False
        self._block_bytes[spilled] += size_bytes  # as `add` does
        self.size_bytes += HEAD_BYTES + size_bytes
        return True

    def add(self, size_bytes: int, *, spilled: bool, frames: int = 1) -> None:
        """Count blocks, or with negative numbers do not count them any more.

        `frames`: one for each post, also if posts share a frame.
        """
        self._block_bytes[spilled] += size_bytes
        self.size_bytes += frames * HEAD_BYTES + size_bytes
