"""What every dead-letter queue promises to the path: files, a stream, and both fakes."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from ingest.model.errors import DeadLettersBroken, DeadLettersFull
from ingest.model.ports import DeadLetters
from ingest.model.reading import Letter
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.system.files import REAL_CALLS
from tests.support.brokers import joined
from tests.support.fake_letters import FakeLetters
from tests.support.fakes import FakeDeadLetters
from tests.support.letters import drained, folder_queue, read
from tests.support.stream_letters import change, kept, stream_queue


class Subject(NamedTuple):
    """A queue, who appends to it, what it has kept, and how to let it fail from now on."""

    queue: DeadLetters
    sender: str | None
    kept: Callable[[], Awaitable[Sequence[Letter]]]
    fail: Callable[[], Awaitable[None]]

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


SENDER = "10.0.0.1"


@asynccontextmanager
async def in_folder(tmp_path: Path) -> AsyncIterator[Subject]:
    """Give the dead letters in files; the disk can fail."""
    folder = tmp_path / "dead-letters"
    disk = FailingDisk()
    queue = folder_queue(folder, calls=REAL_CALLS._replace(write=disk.write))

    async def kept() -> Sequence[Letter]:
        return read(folder)

    async def fail() -> None:
        disk.fail()

    await queue.open()
    yield Subject(queue, None, kept, fail)
    await queue.close()


@asynccontextmanager
async def in_stream(nats: EmbeddedBroker, role: str) -> AsyncIterator[Subject]:
    """Give the dead letters of a role in the stream, which can be full."""
    async with joined(nats, "admin") as admin, joined(nats, role) as connection:
        queue = stream_queue(connection)
        yield Subject(queue, None, partial(kept, admin), partial(change, admin, max_bytes=1))
        await queue.close()


@asynccontextmanager
async def fake_of_receiver() -> AsyncIterator[Subject]:
    """Give the fake of the receiver's tests."""
    fake = FakeDeadLetters()

    async def kept() -> Sequence[Letter]:
        return fake.letters

    async def fail() -> None:
        fake.error = DeadLettersFull("no space")

    yield Subject(fake, None, kept, fail)


@asynccontextmanager
async def fake_of_writers() -> AsyncIterator[Subject]:
    """Give the fake of the writers' tests."""
    fake = FakeLetters()

    async def kept() -> Sequence[Letter]:
        return fake.letters

    async def fail() -> None:
        fake.fault, fake.failing = lambda: DeadLettersBroken("no disk"), 1_000

    yield Subject(fake, None, kept, fail)


@pytest.fixture(
    params=[
        "folder, writer",
        "folder, receiver",
        "stream, writer",
        "stream, receiver",
        "fake, receiver",
        "fake, writer",
    ]
)
async def subject(
    request: pytest.FixtureRequest, tmp_path: Path, nats: EmbeddedBroker
) -> AsyncIterator[Subject]:
    """Give each queue in turn, to each who appends."""
    kind, _, who = request.param.partition(", ")
    async with AsyncExitStack() as stack:
        if kind == "folder":
            made = in_folder(tmp_path)
        elif kind == "stream":
            made = in_stream(nats, "gateway" if who == "receiver" else "writer")
        else:
            made = fake_of_receiver() if who == "receiver" else fake_of_writers()
        found = await stack.enter_async_context(made)
        yield found._replace(sender=SENDER if who == "receiver" else None)


async def test_append_keeps_all_letters_in_order(subject: Subject) -> None:
    """What has returned is kept."""
    letters = drained(5)
    await subject.append(letters)
    assert list(await subject.kept()) == letters


async def test_append_of_nothing_keeps_nothing(subject: Subject) -> None:
    """An empty append is no error."""
    await subject.append([])
    assert list(await subject.kept()) == []


async def test_fact_that_is_live_is_kept_once(subject: Subject) -> None:
    """A batch that is tried again finds its letters there."""
    letters = drained(3)
    await subject.append(letters)
    await subject.append(letters)
    assert list(await subject.kept()) == letters


async def test_failed_append_keeps_none_and_says_so(subject: Subject) -> None:
    """All or none is promised, and the error is one of two."""
    before = drained(2)
    await subject.append(before)
    await subject.fail()
    with pytest.raises((DeadLettersFull, DeadLettersBroken)):
        await subject.append(drained(3))
    assert list(await subject.kept()) == before


async def test_concurrent_appends_are_all_kept(subject: Subject) -> None:
    """Each whole, in some order."""
    groups = [drained(3) for _ in range(20)]
    await asyncio.gather(*(subject.append(each) for each in groups))
    kept = list(await subject.kept())
    assert sorted(kept) == sorted(letter for group in groups for letter in group)


async def test_append_cancelled_is_whole_or_nothing(subject: Subject) -> None:
    """Once begun it is not cut."""
    letters = drained(4)
    task = asyncio.create_task(subject.append(letters))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await subject.append(after := drained(1))
    kept = list(await subject.kept())
    assert kept in ([*letters, *after], after)
