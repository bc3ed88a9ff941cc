"""Reads the file of tokens at the start, and again whenever it changes, without a restart.

A file that has changed is read whole; what is not in it any more is revoked. An editor may empty
the file before it writes, and write it in parts: that is not the end of all tokens. So a change
counts when the file is the same at the next look. If it does not come to rest for some looks, it
may still be a part: what is in it counts, but only if no token is missing.
Promises: a file that cannot be read, has a wrong line, or to which others may write changes
nothing: the tokens that were read before stay in force, and the log says so as long as it is so.
A token takes 5 to 10 us; the event loop is never held up for more than SLICE_S.
"""

from __future__ import annotations

import asyncio
import os
import stat
from itertools import chain
from pathlib import Path

from ingest.access.token_lines import NEVER_US, Entries
from ingest.access.tokens import Tokens
from ingest.model.errors import StartError
from ingest.system.clock import monotonic_s, rfc3339, sleep_unless, unix_us
from ingest.system.files import other_writers
from ingest.system.logs import Occasionally, get_logger
from ingest.system.waiting import in_slices

LOOK_S = 0.1  # so often it is looked whether the file has changed
CHANGING_LOOKS_MAX = 5  # then it is read, even if it changes at each look
FILE_BYTES_MAX = 64 * 1024**2
SAID_EVERY_S = 60.0  # while the file cannot be used
SOON_US = 14 * 86_400_000_000  # before a token ends, the log says so, once a day
DAY_S = 86_400.0

# Device, inode, size, time of change in ns: so one content is told from another without reading it.
_Seen = tuple[int, int, int, int]
_UNKNOWN: _Seen = (-1, -1, -1, -1)  # as no file is


class TokenFile:
    """The file at `path`. `named`: a setting names it, so it must be there at the start."""

    def __init__(self, path: Path, *, named: bool) -> None:
        self.path = path
        self.tokens = Tokens()
        self.fault = ""  # why the file cannot be used now
        self._named = named
        self._seen: _Seen | None = None  # when it was read last
        self._candidate: _Seen | None = None
        self._changing_looks = 0
        self._occasionally = Occasionally(SAID_EVERY_S)
        self._warned_s = float("-inf")
        self._log = get_logger("access")

    def open(self) -> None:
        """Read the file. Raises StartError if it cannot be used."""
        try:
            self._seen = self._look()
            if self._seen is None:
                if self._named:
                    raise OSError(None, "there is no such file")
                return
            entries = Entries()
            for _ in chain(entries.read(self._content()), self.tokens.change(entries)):
                pass
        except (OSError, ValueError) as error:
            raise StartError(f"the file of tokens {self.path} cannot be used: {_why(error)}") from (
                error
            )

    async def follow(self, stop: asyncio.Event) -> None:
        """Look for changes until `stop` is set; revoke tokens when their time is over."""
        while not await sleep_unless(
            stop, min(LOOK_S, max(0.001, (self.tokens.next_end_us - unix_us()) / 1e6))
        ):
            self.tokens.expire()
            await self._look_again()
            self._warn()

    def _look(self) -> _Seen | None:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    async def _look_again(self) -> None:
        try:
            try:
                seen = self._look()
            except OSError:
                self._seen = _UNKNOWN  # so it is read, whole, once it can be looked at
                raise
            if seen == self._seen:
                if self.fault:
                    self._say()
                return
            candidate, self._candidate = self._candidate, seen
            self._changing_looks += 1
            rests = seen == candidate
            if not rests and self._changing_looks < CHANGING_LOOKS_MAX:
                return
            self._changing_looks = 0
            old, self._seen = self._seen, seen
            if seen is None:
                raise OSError(None, "it is gone")
            try:
                if not await self._read_again(is_whole=rests):
                    self._seen = old
            except OSError:
                self._seen = old  # its rights may be corrected: that changes no time and no size
                raise
        except (OSError, ValueError) as error:
            self.fault = _why(error)
            self._say()

    async def _read_again(self, *, is_whole: bool) -> bool:
        """Put in force what is in the file; return False if it seems to be a part only."""
        entries = Entries()
        async for _ in in_slices(entries.read(await asyncio.to_thread(self._content))):
            pass
        before = len(self.tokens.entries.by_digest)
        async for _ in in_slices(self.tokens.change(entries, is_whole=is_whole)):
            pass
        self.fault = ""
        if self.tokens.entries is not entries:
            return False
        count = len(entries.by_digest)
        self._log.info("tokens_read", count=count, before=before)
        return True

    def _content(self) -> bytes:
        """Read the file, whole. Raises OSError. Blocks."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(None, "it is not a regular file")
            if others := other_writers(self.path, found):
                raise OSError(None, f"{others}; look at its lines first")
            with os.fdopen(fd, "rb", closefd=False) as file:  # of a folder it would not close it
                text = file.read(FILE_BYTES_MAX + 1)
        finally:
            os.close(fd)
        if len(text) > FILE_BYTES_MAX:
            raise OSError(None, f"it is larger than {FILE_BYTES_MAX} bytes")
        return text

    def _say(self) -> None:
        if self._occasionally.due(self.fault) is not None:
            in_force = len(self.tokens.entries.by_digest)
            self._log.error(
                "token_file_unusable", path=str(self.path), why=self.fault, in_force=in_force
            )

    def _warn(self) -> None:
        """Log once a day which token ends soon."""
        end_us = self.tokens.next_end_us
        if end_us == NEVER_US or monotonic_s() - self._warned_s < DAY_S:
            return
        if end_us - unix_us() < SOON_US:
            self._warned_s = monotonic_s()
            names = [
                each.name
                for each in self.tokens.entries.by_digest.values()
                if unix_us() < each.ends_us < unix_us() + SOON_US
            ]
            self._log.warning(
                "tokens_end_soon", first=rfc3339(int(end_us)), names=names[:20], count=len(names)
            )


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else str(getattr(error, "strerror", error))
