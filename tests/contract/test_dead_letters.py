"""What every dead-letter queue promises, and every store: files, a stream, and both fakes."""

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

from ingest.dead_letters import queue as letter_queue
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.dead_letters.store import EVERYTHING, Selection, Tally, counted, first, newest, once
from ingest.model.errors import BufferFull, DeadLettersBroken, DeadLettersFull, ShareUsed
from ingest.model.ledger import DeadLetterStats
from ingest.model.ports import DeadLetters
from ingest.model.reading import DRAINED, EXHAUSTED, REFUSED, Letter
from ingest.roles import letters as stream_store
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.system.files import REAL_CALLS
from tests.support.brokers import joined, until
from tests.support.fake_letters import FakeLetters
from tests.support.fakes import FakeDeadLetters
from tests.support.letters import drained, folder_queue, invalid, read
from tests.support.replay_rig import change, kept, live, stream_queue


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


MIB = 1024**2
Process = Callable[..., Awaitable[DeadLetterQueue]]  # another one that uses the same place


@pytest.fixture(params=["folder", "stream"])
async def process(
    request: pytest.FixtureRequest, tmp_path: Path, nats: EmbeddedBroker
) -> AsyncIterator[Process]:
    """Make queues on one place; its bound is `bytes_max`."""
    async with AsyncExitStack() as stack:

        async def make(bytes_max: int = 64 * MIB) -> DeadLetterQueue:
            if request.param == "folder":
                queue = folder_queue(tmp_path, bytes_max=bytes_max, segment_bytes=20_000)
            else:
                connection = await stack.enter_async_context(joined(nats, "writer"))
                queue = stream_queue(connection, bytes_max)
            stack.push_async_callback(queue.close)
            await queue.open()
            return queue

        yield make


async def kept_by(queue: DeadLetterQueue) -> list[Letter]:
    """Return the live letters, each once."""
    return [each.letter async for each in once(queue.letters.oldest(EVERYTHING, Tally()))]


async def test_letter_is_live_once_for_its_fact_and_its_reason(process: Process) -> None:
    """Also for the next process; another reason is another letter."""
    queue, letters = await process(), drained(2)
    await queue.append([*letters, letters[0]])
    await queue.append([letters[0]._replace(reason=each) for each in (EXHAUSTED, REFUSED)])
    await queue.close()
    again = await process()
    await again.append(letters)
    found = await live(again.letters)
    assert [each.letter.reason for each in found] == [DRAINED, DRAINED, EXHAUSTED, REFUSED]


async def test_letter_that_was_done_can_come_again_at_once(process: Process) -> None:
    """Whoever marked it, and whoever brings it."""
    queue, letters = await process(), drained(5)
    other = await process()
    await queue.append(letters)
    for _ in range(2):
        for each in (queue, other):
            await other.letters.mark_done(await live(other.letters), "discarded")
            await each.append(letters)
            assert sorted(await kept_by(queue)) == sorted(letters)


async def test_figures_follow_all_processes(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They never wait, and look again after a while."""
    monkeypatch.setattr(letter_queue, "LOOK_S", 0.05)
    queue = await process()
    assert queue.stats() == DeadLetterStats()
    await queue.append(drained(3))
    await until(lambda: queue.stats().live == 3)
    assert queue.stats().size_bytes > 600
    assert 0 <= queue.stats().oldest_age_s < 30
    store = (await process()).letters
    for done, left in ((2, 1), (1, 0)):
        await store.mark_done((await live(store))[:done], "replayed")
        await until(lambda left=left: queue.stats().live == left)  # type: ignore[misc]
    assert queue.stats().oldest_age_s == 0


async def test_close_waits_for_what_has_begun_and_refuses_the_rest(process: Process) -> None:
    """Also if the caller does not wait any more. A second close does nothing."""
    queue, other = await process(), await process()
    tasks = [asyncio.create_task(queue.append(drained(100))) for _ in range(2)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    for _ in range(2):
        await queue.close()
    await tasks[1]
    assert len(await kept_by(other)) == 200
    with pytest.raises(DeadLettersBroken):
        await queue.append(drained(1))


async def test_invalid_items_have_half_and_a_sender_its_share(process: Process) -> None:
    """What others have appended counts, too. Refused rows may use more."""
    queue = await process(400_000)
    items = [invalid(b"%d" % n + b"x" * 900) for n in range(400)]
    used = 0
    refused = None
    while refused is None:
        try:
            await queue.append([items[used]], sender="10.0.0.1")
            used += 1
        except ShareUsed as error:
            refused = error
    assert 50 < used < 120, "half of the half, at 1.2 to 1.4 kB a letter"
    assert queue.stats().share_used_by == "10.0.0.1"
    await queue.append(items[300:301], sender="10.0.0.2")
    await (await process()).append(items[:200])
    fresh = await process(400_000)
    with pytest.raises(DeadLettersFull, match="invalid items"):
        await fresh.append(items[320:322], sender="10.0.0.3")
    await fresh.append(drained(1, reason=REFUSED))
    assert fresh.stats().invalid_full


async def test_sender_with_too_much_under_way_is_told_to_come_later(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small post still finds room. Writers always do: their letters have no other place."""
    monkeypatch.setattr(letter_queue, "IN_WORK_BYTES_MAX", 200_000)
    queue = await process()
    first_one = asyncio.create_task(queue.append([invalid(b"x" * 90_000)], sender="10.0.0.1"))
    await asyncio.sleep(0)
    with pytest.raises(BufferFull, match="come faster"):
        await queue.append([invalid(b"y" * 90_000)], sender="10.0.0.2")
    await queue.append([invalid(b"{}")], sender="10.0.0.2")
    await queue.append(drained(100))
    await first_one
    await queue.append([invalid(b"y" * 90_000)], sender="10.0.0.2")
    assert len(await kept_by(queue)) == 103


async def test_letters_are_found_newest_first_across_gaps(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any section size gives the same list; oldest first is its reverse."""
    queue = await process()
    store = queue.letters
    await queue.append([*drained(40, device="old"), invalid(b"x" * 2 * MIB)])
    await queue.append(drained(300))
    gone = await live(store)
    await store.mark_done(gone[5:30] + gone[60:250], "discarded")
    await store.mark_done(gone[5:30], "discarded")  # by somebody else at the same time
    await queue.append(drained(3, reason=EXHAUSTED, device="new"))
    left = gone[:5] + gone[30:60] + gone[250:]
    everything = await live(store)
    assert [each.id for each in everything[:-3]] == [each.id for each in left]
    for places in (1, 7, 1_000):
        monkeypatch.setattr(stream_store, "SECTION_PLACES", places)
        found = await newest(store, Selection(), 10_000)
        assert [each.id for each in found.letters] == [each.id for each in reversed(everything)]
        assert (found.more, found.whole) == (0, True)
    found = await newest(store, Selection(), 5, more_max=100)
    assert found.letters == everything[:-6:-1]
    assert found.more >= 100
    found = await newest(store, Selection(), 500, bytes_max=10_000)
    assert not found.whole
    assert len(found.letters) < 40
    assert found.letters == everything[: -len(found.letters) - 1 : -1]
    for where, number in (
        (Selection(reasons=(EXHAUSTED,)), 3),
        (Selection(device="old"), 15),
        (Selection(device_prefix="ne"), 3),
        (Selection(ids=frozenset([everything[0].id.encode()])), 1),
        (Selection(id_prefixes=(everything[0].id[:8].encode(),)), 1),
        (Selection(code="wrong_type"), 1),
    ):
        assert len(await live(store, where)) == number
        assert await counted(store, where, 64 * MIB) == (number, True)
        assert len(await first(store, where, 2, MIB)) == min(2, number)
