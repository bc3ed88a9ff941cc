"""What every dead-letter queue promises to the path: the folder of files, and both fakes."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from ingest.dead_letters.queue import DeadLetterQueue
from ingest.model.errors import DeadLettersBroken, DeadLettersFull
from ingest.model.letter import Letter
from ingest.model.ports import DeadLetters
from ingest.system.files import REAL_CALLS
from tests.support.fake_letters import FakeLetters
from tests.support.fakes import FakeDeadLetters
from tests.support.letters import drained, read


class Subject(NamedTuple):
    """A queue, who appends to it, what it has kept, and how to let it fail from now on."""

    queue: DeadLetters
    sender: str | None
    kept: Callable[[], Sequence[Letter]]
    fail: Callable[[], None]

    async def append(self, letters: Sequence[Letter]) -> None:
        """Append as the one who uses this queue does."""
        await self.queue.append(letters, sender=self.sender)


class FailingDisk:
    """A disk that takes nothing more once it has failed."""

    def __init__(self) -> None:
        self._failed = False

    def fail(self) -> None:
        """Let all writes fail."""
        self._failed = True

    def write(self, fd: int, data: memoryview) -> int:
        """Write, or fail."""
        if self._failed:
            raise OSError(errno.ENOSPC, "no space")
        return os.write(fd, data)


def fail_in_receiver(fake: FakeDeadLetters) -> None:
    """Let all appends fail."""
    fake.error = DeadLettersFull("no space")


def fail_in_writer(fake: FakeLetters) -> None:
    """Let all appends fail."""
    fake.fault, fake.failing = lambda: DeadLettersBroken("no disk"), 1_000


@pytest.fixture(params=["folder, writer", "folder, receiver", "fake, receiver", "fake, writer"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    """Give each queue in turn, to each who appends."""
    kind, _, who = request.param.partition(", ")
    if kind == "folder":
        folder = tmp_path / "dead-letters"
        disk = FailingDisk()
        queue = DeadLetterQueue(
            folder,
            bytes_max=1 << 30,
            segment_bytes=1 << 26,
            keep_days=1,
            calls=REAL_CALLS._replace(write=disk.write),
        )
        await queue.open()
        yield Subject(
            queue,
            "10.0.0.1" if who == "receiver" else None,
            lambda: read(folder),
            disk.fail,
        )
        await queue.close()
    elif who == "receiver":
        receivers = FakeDeadLetters()
        yield Subject(
            receivers, "10.0.0.1", lambda: receivers.letters, partial(fail_in_receiver, receivers)
        )
    else:
        writers = FakeLetters()
        yield Subject(writers, None, lambda: writers.letters, partial(fail_in_writer, writers))


async def test_append_keeps_all_letters_in_order(subject: Subject) -> None:
    """What has returned is kept."""
    letters = drained(5)
    await subject.append(letters)
    assert list(subject.kept()) == letters


async def test_append_of_nothing_keeps_nothing(subject: Subject) -> None:
    """An empty append is no error."""
    await subject.append([])
    assert list(subject.kept()) == []


async def test_fact_that_is_live_is_kept_once(subject: Subject) -> None:
    """A batch that is tried again finds its letters there."""
    letters = drained(3)
    await subject.append(letters)
    await subject.append(letters)
    assert list(subject.kept()) == letters


async def test_failed_append_keeps_none_and_says_so(subject: Subject) -> None:
    """All or none is promised, and the error is one of two."""
    before = drained(2)
    await subject.append(before)
    subject.fail()
    with pytest.raises((DeadLettersFull, DeadLettersBroken)):
        await subject.append(drained(3))
    assert list(subject.kept()) == before


async def test_concurrent_appends_are_all_kept(subject: Subject) -> None:
    """Each whole, in some order."""
    groups = [drained(3) for _ in range(20)]
    await asyncio.gather(*(subject.append(each) for each in groups))
    kept = list(subject.kept())
    assert sorted(kept) == sorted(letter for group in groups for letter in group)


async def test_append_cancelled_is_whole_or_nothing(subject: Subject) -> None:
    """Once begun it is not cut."""
    letters = drained(4)
    task = asyncio.create_task(subject.append(letters))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await subject.append(after := drained(1))
    kept = list(subject.kept())
    assert kept in ([*letters, *after], after)
