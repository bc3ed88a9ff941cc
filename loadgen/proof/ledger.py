"""The ledger of a run: posts before they are sent, all answers. Append-only, 12 bytes a record.

    magic, header (JSON: the plan and where the run sent it), then frames of records.
    frame: length, checksum of the records, checksum of these two.

Promises: a post is on record (`reserve`, handed to the kernel) before its first byte is sent;
answers follow in groups, one write for each round of the event loop. A generator killed at any
moment leaves a readable ledger: an answer that is not in it counts as not known. With `fsync` this
is also true after a crash of the machine. A torn last frame is skipped, other damage is an error.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import struct
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from zlib import crc32

MAGIC = b"ingest-ledger-1\n"
RESERVED_POSTS = 256  # posts put on record at a time: a write for each would take 2 us a post
POSTS_MAX = 1 << 32
CODE_BYTES_MAX = 64
CODES_MAX = 0xFFFF  # different codes; the service has some dozens
OTHER_CODE = "(one code too many)"

RECORD = struct.Struct("<BBHII")  # kind, flags, status or index, post, number
_TEXT = struct.Struct("<BBH8s")
_FRAME = struct.Struct("<II")
_CHECK = struct.Struct("<I")
_FRAME_BYTES = _FRAME.size + _CHECK.size
_READ_BYTES_MAX = 64 * 1024 * 1024

_RESERVE, _TRY, _FINAL, _COUNTS, _ITEM, _CODE, _END = range(1, 8)
_DOUBT, _DETAILS, _ODD, _ACK_SHIFT = 1, 2, 4, 4
_TRUNCATED = 1

ACKS = ("", "buffered", "durable", "committed")  # weakest first


class LedgerError(Exception):
    """The file is no ledger, or was damaged; the text says what and where."""


class Final(NamedTuple):
    """The last known outcome of a post. `status` 0: no answer.

    `doubt`: the service may have accepted this or an earlier try, but no answer said so. `odd`: a
    2xx whose body was no answer of the service. `details`: its items are in `Ledger.details`.
    """

    status: int
    ack: str = ""
    doubt: bool = False
    odd: bool = False
    details: bool = False

    def grants(self, asked: str) -> bool:
        """Whether the ack of a 2xx is at least the one asked for, and fits its status.

        Answers of some formats say no ack.
        """
        enough = ACKS.index(self.ack) >= ACKS.index(asked)
        is_silent = self.status == 204 or not self.ack
        fits = is_silent or (self.status == 200) == (self.ack == "committed")
        return enough and fits


class Details(NamedTuple):
    """An answer that is not just "all accepted": its counts, and the code of each named item."""

    accepted: int
    dead_lettered: int
    truncated: bool
    codes: dict[int, str]


class LedgerWriter:
    """Writes a new ledger. Raises OSError (a full disk): then the run must end.

    The file is locked until `close`, or the end of the process, so that nobody reads half of it.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, fsync: bool = False) -> None:
        self.path = path
        self._fsync = fsync
        self._records: list[bytes] = []
        self._codes: dict[str, int] = {}
        self._reserved = 0
        self._due = False
        self.failed: OSError | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        text = json.dumps(header).encode()
        self._write(MAGIC + _FRAME.pack(len(text), crc32(text)) + text)

    def take(self, post: int) -> None:
        """Put a post on record before it is sent. Posts are taken in the order of their numbers."""
        if self.failed is not None:  # also for a post of a range that could not be put on record
            raise self.failed
        if post >= self._reserved:
            if post + RESERVED_POSTS >= POSTS_MAX:
                raise OSError(f"a ledger holds at most {POSTS_MAX} posts")
            self._reserved = post + RESERVED_POSTS
            self._records.append(RECORD.pack(_RESERVE, 0, 0, self._reserved, 0))
            self.flush()

    def tried(self, post: int, status: int, at_ms: int) -> None:
        """Note a try that was not the last one; status 0: no answer."""
        self._append(RECORD.pack(_TRY, 0, status, post, at_ms))

    def final(self, post: int, final: Final, at_ms: int, details: Details | None = None) -> None:
        """Note the final outcome of a post; `at_ms` counts from the start of the run."""
        flags = ACKS.index(final.ack) << _ACK_SHIFT
        flags |= (_DOUBT if final.doubt else 0) | (_ODD if final.odd else 0)
        if details is not None:
            flags |= _DETAILS
            self._details(post, details)
        self._append(RECORD.pack(_FINAL, flags, final.status, post, at_ms))

    def _details(self, post: int, details: Details) -> None:
        codes = [(index, self._code(code)) for index, code in details.codes.items()]
        self._records.append(
            RECORD.pack(
                _COUNTS,
                _TRUNCATED if details.truncated else 0,
                min(details.dead_lettered, 0xFFFF),
                post,
                min(details.accepted, 0xFFFF_FFFF),
            )
        )
        self._records += [RECORD.pack(_ITEM, 0, index, post, code) for index, code in codes]

    def _code(self, code: str) -> int:
        number = self._codes.get(code)
        if number is None and len(self._codes) >= CODES_MAX:
            code = OTHER_CODE
            number = self._codes.get(code)
        if number is None:
            number = self._codes[code] = len(self._codes)
            raw = code.encode(errors="replace")[:CODE_BYTES_MAX] or b"?"
            for part in range(0, len(raw), 8):
                self._records.append(_TEXT.pack(_CODE, part // 8, number, raw[part : part + 8]))
        return number

    def _append(self, record: bytes) -> None:
        self._records.append(record)
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush_group)

    def _flush_group(self) -> None:
        self._due = False
        try:
            self.flush()
        except (
            OSError
        ) as error:  # no caller can take it: `take` raises it, so the next post is not sent
            self.failed = error

    def flush(self) -> None:
        """Hand all records to the kernel as one frame. Raises OSError."""
        if self.failed is not None:
            raise self.failed
        if self._records:
            frame = b"".join(self._records)
            self._records.clear()
            head = _FRAME.pack(len(frame), crc32(frame))
            try:
                self._write(head + _CHECK.pack(crc32(head)) + frame)
            except OSError as error:
                self.failed = error  # half a frame may be there, and nothing may follow it
                raise

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]
        if self._fsync:
            os.fdatasync(self._fd)

    def end(self, taken: int) -> None:
        """Note that no post from number `taken` on was sent, and that the ledger is complete."""
        self._records.append(RECORD.pack(_END, 0, 0, taken, 0))
        self.flush()

    def close(self) -> None:
        """Close the file; records that `flush` did not write are lost. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Ledger:
    """A whole ledger in memory: one byte a post, and some 100 for each post with details."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] = {}
        self.posts = 0  # posts from this number on were never sent
        self.ended = False
        self.torn_bytes = 0
        self.tries: Counter[int] = Counter()  # by status, without the last try of each post
        self._finals = bytearray()
        self._kinds: list[Final | None] = [None]  # the meaning of the bytes of _finals
        self._kind_of: dict[tuple[int, int], int] = {}
        self._details_at: dict[int, int] = {}
        self._codes: dict[int, bytearray] = {}
        self._details = array("I")

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Read a ledger. Raises LedgerError, OSError."""
        ledger = cls(path)
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LedgerError(f"{path}: a run is still writing it") from error
            if file.read(len(MAGIC)) != MAGIC:
                raise LedgerError(f"{path} is not a ledger of loadgen verify")
            try:
                length, check = _FRAME.unpack(file.read(_FRAME.size))
                text = file.read(length)
                if crc32(text) != check:
                    raise LedgerError(f"{path}: the header is damaged")
                ledger.header = json.loads(text)
            except (struct.error, ValueError) as error:
                raise LedgerError(f"{path}: the header is damaged") from error
            while head := file.read(_FRAME_BYTES):
                at = file.tell() - len(head)
                frame = ledger._frame(head, at)
                records = file.read(frame[0])
                if len(head) < _FRAME_BYTES or len(records) < frame[0]:
                    ledger.torn_bytes = len(head) + len(records)
                    break
                if crc32(records) != frame[1]:
                    raise LedgerError(f"{path}: altered at byte {at}")
                for record in RECORD.iter_unpack(records):
                    ledger._take(*record)
        return ledger

    @property
    def asked(self) -> str:
        """The ack that the run asked for; empty: the service's default."""
        query = urlsplit(str(self.header.get("url", ""))).query
        asked = parse_qs(query).get("ack", [""])[0]
        return asked if asked in ACKS else ""

    def final(self, post: int) -> Final | None:
        """Return the outcome of a post; None: it may have been sent, and no answer is known."""
        return self._kinds[self._finals[post]]

    @property
    def posts_known(self) -> int:
        """Posts up to the last one with an answer; later ones may not have been sent."""
        return self.posts if self.ended else len(self._finals.rstrip(b"\0"))

    def statuses(self) -> Counter[int]:
        """Return how many posts ended with each status; 0: given up without an answer."""
        found: Counter[int] = Counter()
        for place, final in enumerate(self._kinds):
            if final is not None:
                found[final.status] += self._finals.count(place)
        return found

    def details(self, post: int) -> Details:
        """Return the details of a post's answer, if its Final has details."""
        at = self._details_at[post]
        count, accepted, dead_lettered, truncated = self._details[at : at + 4]
        pairs = self._details[at + 4 : at + 4 + 2 * count]
        codes = {
            pairs[each]: bytes(self._codes[pairs[each + 1]]).rstrip(b"\0").decode(errors="replace")
            for each in range(0, 2 * count, 2)
        }
        return Details(accepted, dead_lettered, bool(truncated), codes)

    def _frame(self, head: bytes, at: int) -> tuple[int, int]:
        if len(head) < _FRAME_BYTES:
            return 0, 0
        length, check = _FRAME.unpack_from(head)
        (own,) = _CHECK.unpack_from(head, _FRAME.size)
        if own != crc32(head[: _FRAME.size]) or length > _READ_BYTES_MAX or length % RECORD.size:
            raise LedgerError(f"{self.path}: altered at byte {at}")
        return length, check

    def _take(self, kind: int, flags: int, status: int, post: int, number: int) -> None:
        if kind == _FINAL:
            place = self._kind_of.get((flags, status)) or self._new_kind(flags, status)
            if post >= len(self._finals):
                raise LedgerError(f"{self.path}: an answer to post {post}, which was never sent")
            self._finals[post] = place
        elif kind == _RESERVE:
            self.posts = post
            self._finals += bytes(max(0, post - len(self._finals)))
        elif kind == _TRY:
            self.tries[status] += 1
        elif kind == _COUNTS:
            self._details_at[post] = len(self._details)
            self._details.extend((0, number, status, flags & _TRUNCATED))
        elif kind == _ITEM:
            self._details[self._details_at[post]] += 1
            self._details.extend((status, number))
        elif kind == _CODE:
            raw = _TEXT.unpack(RECORD.pack(kind, flags, status, post, number))[3]
            self._codes.setdefault(status, bytearray()).extend(raw)
        elif kind == _END:
            self.posts, self.ended = post, True
        else:
            raise LedgerError(f"{self.path}: a record of the unknown kind {kind}")

    def _new_kind(self, flags: int, status: int) -> int:
        if len(self._kinds) == 256:
            raise LedgerError(f"{self.path}: more than 255 kinds of answers")
        ack = ACKS[flags >> _ACK_SHIFT & 3]
        final = Final(status, ack, bool(flags & _DOUBT), bool(flags & _ODD), bool(flags & _DETAILS))
        self._kinds.append(final)
        place = self._kind_of[flags, status] = len(self._kinds) - 1
        return place
