"""What the stream must have, in a small file outside of the broker's folder.

The broker cannot say what it has lost: a stream whose last block is damaged ends earlier, and gives
the same places to new messages. So gateways note how far messages were acknowledged, and whoever
purges notes first how far. All that lies between must be there, at the next start too.
Promises: numbers of one stream only grow, whichever process of this machine writes them. A file
that is missing or damaged says nothing.
Does not: know what was acknowledged after the last note, which is a second old at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from ingest.system.logs import Occasionally, get_logger

WARNING_S = 3600.0
_BYTES_MAX = 512  # one sector: it is written whole or not at all

_log = get_logger("broker")


class StreamMark(NamedTuple):
    """Places in the stream that the broker made at `made`."""

    made: str = ""
    purged_to: int = -1  # our own purge may have removed all up to here; -1: not known
    done_to: int = 0  # all up to here was stored
    acknowledged_to: int = 0  # a gateway was told that the stream has all up to here
    delivered_to: int = 0  # the farthest place that a writer was given
    deliveries: int = 0  # of writers, all so far


class MarkFile:
    """The file of one state folder, which its processes share. `broker`: where; "" is ours."""

    def __init__(self, state_folder: Path, broker: str = "") -> None:
        suffix = f"-{crc32(broker.encode()):08x}" if broker else ""
        self._path = state_folder / f"stream-mark{suffix}"
        self._occasionally = Occasionally(WARNING_S)

    def read(self) -> StreamMark:
        """Return what was noted last; an empty mark if that is not known. Blocks for a moment."""
        try:
            return _decoded(self._path.read_bytes()[:_BYTES_MAX])
        except OSError:
            return StreamMark()

    async def note(self, mark: StreamMark, *, anew: bool = False) -> None:
        """Raise the numbers of this stream, or begin with another one, or `anew`.

        Begin anew after a loss that was told: it must not be told at each start.
        """
        try:
            await asyncio.to_thread(self._note, mark, anew=anew)
        except OSError as error:
            if self._occasionally.due("") is not None:
                _log.warning("stream_mark_not_kept", why=str(error))

    def _note(self, mark: StreamMark, *, anew: bool) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            before = _decoded(os.pread(fd, _BYTES_MAX, 0))
            if before.made == mark.made and not anew:
                grown = (max(pair) for pair in zip(before[1:], mark[1:], strict=True))
                mark = StreamMark(mark.made, *grown)
            if mark != before:
                os.pwrite(fd, json.dumps(mark).encode().ljust(_BYTES_MAX), 0)
                os.fsync(fd)
        finally:
            os.close(fd)


def _decoded(data: bytes) -> StreamMark:
    with contextlib.suppress(ValueError, TypeError):
        made, *places = json.loads(data)
        if isinstance(made, str) and all(type(each) is int for each in places):
            return StreamMark(made, *places)
    return StreamMark()
