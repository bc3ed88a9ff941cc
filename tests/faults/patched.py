"""The service's own start, with a patch: `python -m tests.faults.patched serve ..`.

FAULTS_MUTANT names the patch: a mistake that the fault matrix must find (mutants), a disk that
loses what was not fsynced (see forgetting.py), calls that fail, a clock that jumps. The service
itself has no such switch: this file replaces functions from outside.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from tests.support import constants

FOLDER = Path(os.environ.get("FAULTS_FOLDER", "."))
EVERY = 10_000


def clock() -> None:
    """The file `clock` moves the wall time; monotonic time stays."""
    path = FOLDER / "clock"
    real_ns, real_s = time.time_ns, time.time

    def offset_s() -> float:
        return float(path.read_text()) if path.exists() else 0.0

    time.time_ns = lambda: real_ns() + int(offset_s() * 1e9)
    time.time = lambda: real_s() + offset_s()


def failing() -> None:
    """The n-th write or sync of the service's files fails, and some more after it.

    FAULTS_NTH, FAULTS_ERROR and FAULTS_TIMES say which, how and how often. The file `failed` shows
    that it happened.
    """
    first, code = int(os.environ["FAULTS_NTH"]), int(os.environ["FAULTS_ERROR"])
    last = first + int(os.environ["FAULTS_TIMES"])
    ours = str(FOLDER / "state") + "/"
    calls = count(1)

    def made_to_fail(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *rest: Any) -> Any:
            try:
                path = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                path = ""
            is_ours = path.startswith(ours) and ("/journal" in path or "/dead-letters" in path)
            if is_ours and first <= next(calls) < last:
                if real is write and code == errno.ENOSPC:
                    real(fd, memoryview(rest[0])[: len(rest[0]) // 2])  # as a full disk does
                (FOLDER / "failed").touch()
                raise OSError(code, os.strerror(code))
            return real(fd, *rest)

        return call

    write = os.write
    os.write = made_to_fail(os.write)
    os.fdatasync = made_to_fail(os.fdatasync)
    os.fsync = made_to_fail(os.fsync)


def forgetting() -> None:
    """Note what was fsynced."""
    from tests.faults.forgetting import record

    record(FOLDER / "state", FOLDER / "disk")


def no_journal_sync() -> None:
    """The journal is never fsynced, and the disk loses it."""
    from tests.faults.forgetting import record

    record(FOLDER / "state", FOLDER / "disk", unsynced="/journal/")


def no_letter_sync() -> None:
    """Dead letters are never fsynced, and the disk loses them."""
    from tests.faults.forgetting import record

    record(FOLDER / "state", FOLDER / "disk", unsynced="/dead-letters/")


def acks_early() -> None:
    """`committed` is answered before the commit."""
    from ingest.writer.writer import STORED, Writer

    real = Writer._write

    async def write(self: Writer, piece: list[Any]) -> None:
        for block in piece:
            if block.ack is not None and not block.ack.resolved:
                block.ack.resolve(STORED)
                block.ack = None
        await real(self, piece)

    Writer._write = write  # type: ignore[method-assign]


def drops_one() -> None:
    """One reading in 10,000 is reported as stored, and is not."""
    from ingest.model.block import row_offsets
    from ingest.model.ports import Stored
    from ingest.sinks.postgres.sink import SinkPostgres

    real = SinkPostgres.write
    seen = 0

    async def write(self: Any, tuples: Any, rows: int, *, idempotent: bool) -> Stored:
        nonlocal seen
        seen += rows
        if seen < EVERY or rows < 2:
            return await real(self, tuples, rows, idempotent=idempotent)
        data = b"".join(tuples)
        data = data[row_offsets(data)[1] :]
        stored = await real(self, [data], rows - 1, idempotent=idempotent)
        seen -= EVERY
        return Stored(stored.committed + 1, stored.duplicate)

    SinkPostgres.write = write  # type: ignore[method-assign]


def no_key() -> None:
    """Rows that may be there are written again as if they were new, into a table without a key."""
    from ingest.sinks.postgres import schema
    from ingest.sinks.postgres.sink import SinkPostgres

    SinkPostgres._store_once = SinkPostgres._copy  # type: ignore[method-assign]
    schema._differences = lambda *_: iter(())


def swallows() -> None:
    """A failed write is taken for a success."""
    from ingest.model.causes import WriteFailed
    from ingest.model.ports import Stored
    from ingest.sinks.postgres.sink import SinkPostgres

    real = SinkPostgres.write

    async def write(self: Any, tuples: Any, rows: int, *, idempotent: bool) -> Stored:
        try:
            return await real(self, tuples, rows, idempotent=idempotent)
        except WriteFailed:
            return Stored(rows, 0)

    SinkPostgres.write = write  # type: ignore[method-assign]


def dies_unanswered() -> None:
    """The process kills itself when the stream has its n-th message, before any post is answered.

    FAULTS_NTH says which.
    """
    import signal

    from ingest.roles.nats.protocol import PubAck, pub_ack
    from ingest.roles.nats.publishing import Publisher

    real = Publisher._replied
    left = count(int(os.environ.get("FAULTS_NTH", "1")), -1)

    def replied(self: Any, publish: Any, message: Any) -> None:
        if isinstance(pub_ack(message), PubAck) and next(left) <= 1:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, publish, message)

    Publisher._replied = replied  # type: ignore[method-assign]


def short_window() -> None:
    """The stream may forget the id of a message after one second."""
    from ingest.roles.nats import streams

    streams.WINDOW_S = 1.0


def by_interest() -> None:
    """The stream may have the retention by interest."""
    from ingest.roles.nats import streams

    settings = streams._STREAM_DEFAULTS
    settings["retention"] = "interest"  # it comes last, and so it wins


def blind() -> None:
    """A writer takes all that the consumer has passed as given."""
    from ingest.roles.nats.audit import Audit

    def take(self: Any, seen_to: int, to: int) -> None:
        self._seen_to = max(seen_to, to)

    Audit._pass = take  # type: ignore[method-assign]


def dies_in_run() -> None:
    """The process kills itself before the n-th call to the database or to a file of the archive.

    FAULTS_NTH says which; the first one is that which follows the first step of retention.
    """
    import shutil
    import signal

    from asyncpg import Connection

    from ingest.years.retention import Retention

    left = count(int(os.environ["FAULTS_NTH"]), -1)
    do, begun = Retention.do, False

    async def begin(*args: Any) -> None:
        nonlocal begun
        begun = True
        await do(*args)

    Retention.do = begin  # type: ignore[assignment, method-assign]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if begun and next(left) <= 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **named)

        return call

    names = ("execute", "fetch", "fetchrow", "fetchval", "copy_from_query")
    calls: list[tuple[Any, str]] = [(Connection, name) for name in names]
    calls += [(Path, "replace"), (Path, "unlink"), (os, "fsync"), (shutil, "rmtree")]
    for where, name in calls:
        setattr(where, name, counted(getattr(where, name)))


def archives_nothing() -> None:
    """A partition counts as archived and verified, and nothing was written."""
    from ingest.years.archive.archiver import ParquetArchiver

    async def archive(self: Any, source: Any) -> None:
        del self, source

    ParquetArchiver.archive = archive  # type: ignore[method-assign]


def forgets_old_files() -> None:
    """New files have the late readings alone, and replace the old files of their time."""
    from ingest.years.archive.archiver import ParquetArchiver

    real = ParquetArchiver._write

    async def write(self: Any, source: Any, name: Any, table: Any, _: Any, hidden: Any) -> Any:
        return await real(self, source, name, table, None, hidden)

    ParquetArchiver._write = write  # type: ignore[assignment, method-assign]


def keeps_partition() -> None:
    """A partition that was archived is attached again, where it should be dropped."""
    from ingest.sinks.postgres.housekeeping.partitions import literal
    from ingest.years.retention import Retention

    async def attach(self: Any, connection: Any, view: Any, step: Any, kept: str) -> None:
        del self, kept
        await connection.execute(
            f"alter table {view.table} attach partition {step.partition} "
            f"for values from ({literal(step.from_us)}) to ({literal(step.to_us)})"
        )

    Retention._drop = attach  # type: ignore[method-assign]


PATCHES: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        clock,
        failing,
        forgetting,
        no_journal_sync,
        no_letter_sync,
        acks_early,
        drops_one,
        no_key,
        swallows,
        dies_unanswered,
        short_window,
        by_interest,
        blind,
        dies_in_run,
        archives_nothing,
        forgets_old_files,
        keeps_partition,
    )
}


def main() -> int:
    """Apply the patch, start the service."""
    PATCHES[os.environ["FAULTS_MUTANT"]]()
    from ingest.cli.commands import main as serve

    with constants.wanted():
        return serve()


if __name__ == "__main__":
    sys.exit(main())
