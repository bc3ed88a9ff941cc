"""Makes and reads blocks and journals for tests: segments, buffers over them, a disk that fails."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ingest.buffers.frames import FrameReader, encode_head
from ingest.buffers.journal.buffer import JournalBuffer
from ingest.buffers.journal.log import Journal
from ingest.buffers.journal.segments import HEADER_BYTES, PLAIN, encode_header, segment_files
from ingest.model.block import Ack, Block, encode_reading
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from ingest.model.reading import Reading
from ingest.system.clock import monotonic_s, unix_us
from ingest.system.files import FileCalls

SALT = 0x5EED1234


def numbered(*rows: int, first: int = 1) -> list[Block]:
    """Make blocks with sequences from `first` on."""
    blocks = [make_block(each) for each in rows]
    for sequence, block in enumerate(blocks, first):
        block.sequence = sequence
    return blocks


def segment_bytes(blocks: Sequence[Block], *, first: int = 1, salt: int = SALT) -> bytes:
    """Return the bytes of a segment that holds the blocks."""
    frames = (encode_head(block, salt) + block.tuples for block in blocks)
    return encode_header(first, salt, PLAIN) + b"".join(frames)


def reader_of(data: bytes, *, salt: int = SALT, chunk_bytes: int = 64) -> FrameReader:
    """Read a segment's bytes as a file's."""

    def read_at(count: int, offset: int) -> bytes:
        return data[offset : offset + count]

    return FrameReader(read_at, salt, HEADER_BYTES, len(data), chunk_bytes=chunk_bytes)


def on_disk(folder: Path) -> list[bytes]:
    """Return the tuples of all frames in a folder's segments, done or not, in order."""
    found: list[bytes] = []
    for file in segment_files(folder):
        reader = reader_of(file.path.read_bytes(), salt=file.salt, chunk_bytes=1 << 16)
        found += [frame.tuples for frame in reader]
    return found


SHORT_BYTES = 200  # a write of fewer bytes is not halved


class FailingCalls:
    """The real system calls; those in `failing` fail: every one, or only the n-th.

    `failing` is set by the test: {"write": ENOSPC}; `nth` counts the calls of these names from 1,
    0: always; with `onwards` all later ones fail too. `fired` is how many failed.
    """

    def __init__(self, **failing: int) -> None:
        self.failing = failing
        self.nth = 0
        self.onwards = False
        self.fired = 0
        self.left = 1 << 30  # how often they may still fail
        self.count = 0
        self.names: list[str] = []

    def _call(self, name: str) -> None:
        self.names.append(name)
        if name not in self.failing:
            return
        self.count += 1
        hit = self.nth in (0, self.count) or (self.onwards and self.count > self.nth)
        if hit and self.left:
            self.left -= 1
            self.fired += 1
            raise OSError(self.failing[name], os.strerror(self.failing[name]))

    def write(self, fd: int, data: memoryview) -> int:
        """Write half of the bytes, or all but the last one if there are few: as a short write."""
        self._call("write")
        size = len(data)
        return os.write(fd, data[: size // 2 if size > SHORT_BYTES else max(1, size - 1)])

    def fdatasync(self, fd: int) -> None:
        """Sync, or fail."""
        self._call("fdatasync")
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        """Sync a folder, or fail."""
        self._call("fsync")
        os.fsync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        """Cut, or fail."""
        self._call("ftruncate")
        os.ftruncate(fd, size)

    @property
    def calls(self) -> FileCalls:
        """These calls in the form that the journal takes."""
        return FileCalls(self.write, self.fdatasync, self.fsync, self.ftruncate)


class HangingDisk(FailingCalls):
    """A disk whose calls do not return until `go` is set."""

    def __init__(self, **failing: int) -> None:
        super().__init__(**failing)
        self.go = threading.Event()
        self.go.set()

    def _call(self, name: str) -> None:
        self.go.wait(10)
        super()._call(name)


class JournalRun:
    """One run of a process with a journal: `async with JournalRun(folder) as run:`.

    It checks the balance. `killed` copies the files as a kill -9 would leave them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int = 1 << 20,
        version: int = PLAIN,
        calls: FailingCalls | None = None,
        **bounds: Any,
    ) -> None:
        self.folder = folder
        self.ledger = Ledger()
        calls = calls or FailingCalls()
        self.journal = Journal(
            folder,
            segment_bytes=segment_bytes,
            version=version,
            observe_sync_s=self.ledger.journal_sync_s.observe,
            calls=calls.calls,
            probe_s=0.01,
        )
        wanted = {
            "rows_max": 100_000,
            "bytes_max": 1 << 26,
            "put_wait_s_max": 0.0,
            "journal_bytes_max": 1 << 40,
            **bounds,
        }
        self.buffer = JournalBuffer(self.journal, self.ledger, **wanted)
        self.ledger.gauges = Gauges(
            buffer=self.buffer.stats,
            dead_letters=DeadLetterStats,
            database_up=lambda: True,
            hold_reason=lambda: None,
            journal=self.buffer.journal_stats,
        )
        self.stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> JournalRun:
        self.buffer.open()
        return self

    async def scan(self) -> None:
        """Count what earlier processes left."""
        await self.buffer.loader.scan(self.stopping)

    def load(self) -> None:
        """Start the loader, unless it runs."""
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self.buffer.loader.load(self.stopping)))

    async def read_back(self) -> list[bytes]:
        """Count what earlier processes left, and store all that is here; return its rows."""
        await self.scan()
        return [block.tuples for block in await self.drain()]

    async def put(self, block: Block, *, durable: bool = True) -> Block:
        """Post one block, as the receiver does."""
        reservation = await self.buffer.reserve(
            block.rows, len(block.tuples), awaited=block.ack is not None
        )
        await reservation.put(block, durable=durable)
        self.ledger.received += block.rows
        return block

    async def take(self, rows_max: int) -> list[Block]:
        """Take a batch, waiting for it."""
        async with asyncio.timeout(5):
            await self.buffer.wait_rows(1)
        return self.buffer.take(rows_max)

    def settle(self, blocks: Sequence[Block]) -> None:
        """Settle blocks, as after their commit."""
        self.ledger.committed += sum(block.rows for block in blocks)
        self.buffer.settle(blocks)

    async def drain(self, rows_max: int = 1000) -> list[Block]:
        """Read back, take and settle until nothing is held; return all blocks."""
        self.load()
        found: list[Block] = []
        while self.buffer.stats().rows:
            blocks = await self.take(rows_max)
            self.settle(blocks)
            assert self.ledger.imbalance == 0
            found += blocks
        return found

    async def quiet(self) -> None:
        """Wait until the journal has nothing to do."""
        async with asyncio.timeout(5):
            await self.journal.wait_done()

    async def end(self) -> None:
        """Stop in order."""
        self.stopping.set()
        self.buffer.shut_inlet()
        if self._tasks:
            await asyncio.wait(self._tasks)
            for task in self._tasks:
                task.result()
        await self.buffer.close()

    async def __aexit__(self, *_: object) -> None:
        await self.end()
        assert self.ledger.imbalance == 0


async def left(folder: Path, count: int, *, rows: int = 1, **bounds: Any) -> list[bytes]:
    """Make a journal of so many blocks in `folder` as a kill -9 leaves it; return their rows."""
    async with JournalRun(folder.with_name(f"{folder.name}-before"), **bounds) as life:
        blocks = [await life.put(make_block(rows)) for _ in range(count)]
        await killed(life.folder, folder)
    return [block.tuples for block in blocks]


async def killed(folder: Path, copy: Path) -> None:
    """Copy a journal as a kill -9 would leave it: all files, but not the lock."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.name != "lock":
            (copy / path.name).write_bytes(path.read_bytes())


NO_SPACE = errno.ENOSPC

_numbers = itertools.count(1)


def make_reading(*, device_id: str | None = None, value: float = 1.0) -> Reading:
    """Make a reading that no other call makes; its device is one of ten unless it is given."""
    number = next(_numbers)
    return Reading(unix_us() + number, device_id or f"device-{number % 10}", "temperature", value)


def block_of(
    readings: Iterable[Reading],
    *,
    ack: Ack | None = None,
    items: list[int] | None = None,
    age_s: float = 0.0,
) -> Block:
    """Encode readings as the receiver does; they were received `age_s` ago."""
    rows = list(readings)
    return Block(
        b"".join(encode_reading(each) for each in rows),
        len(rows),
        received_s=monotonic_s() - age_s,
        received_us=unix_us() - int(age_s * 1e6),
        newest_ts_us=max(each.ts_us for each in rows),
        items=items,
        ack=ack,
    )


def size_of(rows: int) -> tuple[int, int]:
    """Return the rows and bytes of any `make_block(rows)`: what is to be reserved for it."""
    return rows, len(make_block(rows).tuples)


def make_block(rows: int, *, ack: Ack | None = None, age_s: float = 0.0) -> Block:
    """Make a block of `rows` fresh readings."""
    return block_of((make_reading() for _ in range(rows)), ack=ack, age_s=age_s)
