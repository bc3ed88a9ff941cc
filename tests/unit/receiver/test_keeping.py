"""The keeper on real buffers: a post without room waits, and holds nothing; ack=committed; clients
and handlers that go away in the middle.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from ingest.formats.post import ItemError, Points
from ingest.http.request_and_answer import Answer
from ingest.model.block import Block, Outcome, Refusal, encode_reading
from ingest.model.errors import BrokerAway, BrokerOutcomeUnknown, NotKept, Refused
from ingest.model.ledger import Ledger
from ingest.model.ports import Inlet
from ingest.model.reading import INVALID, LINE, Letter
from ingest.receiver import keeping
from ingest.receiver.keeping import (
    PORTION_BYTES,
    SLOW_S,
    Keeping,
    Terms,
)
from ingest.receiver.outcomes import AckWaits
from ingest.system.clock import monotonic_s, unix_us
from tests.contract.buffers import journal, memory, spilling
from tests.support.fakes import FakeDatabase, FakeDeadLetters, FakeInlet
from tests.support.journals import (
    FailingCalls,
    HangingDisk,
    block_of,
    make_block,
    make_reading,
    on_disk,
)
from tests.support.receiver import (
    BAD,
    GOOD,
    Receiver,
    Reply,
    answering,
    post,
    running_receiver,
    until,
)
from tests.support.ways import both_ways, reserves

BLOCK_BYTES = len(make_block(50).tuples)


class Rig:
    """A keeper on an inlet, and fakes."""

    def __init__(self, inlet: Inlet) -> None:
        database = FakeDatabase()
        self.ledger = Ledger()
        self.dead_letters = FakeDeadLetters()
        self.outcomes = AckWaits(database, 1.0, connections_max=100)
        self.keeper = Keeping(
            inlet,
            self.dead_letters,
            self.ledger,
            database,
            self.outcomes,
            on_refused=lambda _request, _refused: None,
        )

    async def keep(self, points: Points, answer_s: float = 5.0, ack: str = "buffered") -> None:
        """Keep a post; raise Refused."""
        letter = Letter(INVALID, "", "", unix_us(), format=LINE, source="/write")
        await self.keeper.keep(points, Terms(ack, "network", letter, monotonic_s() + answer_s))

    async def refused(self, points: Points, answer_s: float = 5.0, ack: str = "buffered") -> str:
        """Return the code of the refusal."""
        with pytest.raises(Refused) as caught:
            await self.keep(points, answer_s, ack)
        await self.keeper.close()
        assert self.ledger.at_receiver == 0
        return caught.value.code


def portion() -> Block:
    """Return a block of which no two are in one portion."""
    reading = make_reading()
    return block_of([reading] * (PORTION_BYTES // 2 // len(encode_reading(reading)) + 1))


def points_in(blocks: int) -> Points:
    """Return a post of blocks of 50 rows."""
    return Points([make_block(50) for _ in range(blocks)], [], 0, 0)


async def test_post_without_room_for_its_last_blocks_gives_all_back(tmp_path: Path) -> None:
    """There is room for two of four. Its tail ends in time, too."""
    buffer = memory(tmp_path, 200, 1 << 20, 0.05)
    (await buffer.reserve(100, BLOCK_BYTES * 2)).put(make_block(100))
    used = buffer.memory.used
    assert await Rig(buffer).refused(points_in(4), 0.2) == "buffer_full"
    assert buffer.memory.used == used


async def test_large_post_that_waits_keeps_no_small_one_out(tmp_path: Path) -> None:
    """It holds no room meanwhile, and is kept as soon as there is enough."""
    buffer = memory(tmp_path, 200, 1 << 20, 0.05)
    rig = Rig(buffer)
    (await buffer.reserve(100, BLOCK_BYTES * 2)).put(make_block(100))
    large = asyncio.create_task(rig.keep(points_in(4)))
    await until(lambda: rig.ledger.at_receiver == 200)
    await rig.keep(points_in(1))
    await rig.keep(points_in(1))
    assert not large.done()
    buffer.settle(buffer.take(200))
    await large
    assert rig.ledger.accepted == 300


async def test_posts_that_wait_for_room_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory: one more is refused at once. In time: all are refused, and nothing is left."""
    buffer = memory(tmp_path, 100, 1 << 20, 0.05)
    monkeypatch.setattr(keeping, "WAITING_BYTES_MAX", 8 * BLOCK_BYTES)
    rig = Rig(buffer)
    (await buffer.reserve(100, BLOCK_BYTES * 2)).put(make_block(100))
    waiting = [asyncio.create_task(rig.keep(points_in(2), 0.5)) for _ in range(2)]
    await until(lambda: rig.ledger.at_receiver == 200)
    began_s = monotonic_s()
    faulty = Points(
        [make_block(1)], [ItemError(1, None, "no_device", "no", b" " * BLOCK_BYTES * 5)]
    )
    for one_more in (points_in(2), faulty):
        with pytest.raises(Refused, match="no room"):
            await rig.keep(one_more, 60)
    assert monotonic_s() - began_s < 30
    for each in waiting:
        with pytest.raises(Refused, match="no room"):
            await each
    assert await rig.keeper.finish(5) == 0
    assert rig.ledger.rejected["buffer_full"] == 302


async def test_awaited_post_without_room_keeps_no_durable_one_waiting(tmp_path: Path) -> None:
    """Memory is full, which only the awaited one needs; the other one goes to the disk."""
    buffer = spilling(tmp_path, 100, 16 * BLOCK_BYTES, 0.05)
    rig = Rig(buffer)
    await rig.keep(points_in(2))
    awaited = asyncio.create_task(rig.refused(points_in(2), 1.0, "committed"))
    await until(lambda: rig.ledger.at_receiver == 100)
    await rig.keep(points_in(2), 0.5, "durable")
    assert not awaited.done()
    assert await awaited == "buffer_full"
    await buffer.close()


async def test_faulty_items_need_no_room_in_the_buffer(tmp_path: Path) -> None:
    """They have more bytes than all of it; the post would never be kept."""
    buffer = memory(tmp_path, 100, 2 * BLOCK_BYTES, 0.05)
    rig = Rig(buffer)
    points = points_in(1)
    points.errors.append(ItemError(50, None, "no_device", "no", b" " * 3 * BLOCK_BYTES))
    await rig.keep(points)
    assert (rig.ledger.accepted, len(rig.dead_letters.letters)) == (50, 1)


async def test_post_that_goes_on_counts_once(tmp_path: Path) -> None:
    """Also before its time is over and it is answered."""
    rig = Rig(FakeInlet())
    rig.dead_letters.open.clear()
    points = Points([], [ItemError(0, None, "no_device", "no", b"m a=1")])
    asking = asyncio.create_task(rig.keeper.inside(_answered(rig.keep(points, 0.3))))
    await until(lambda: rig.dead_letters.waiting)
    assert await rig.keeper.finish(0.01) == 1
    with pytest.raises(Refused, match="not known in time"):
        await asking
    assert await rig.keeper.finish(0.01) == 1
    rig.dead_letters.open.set()
    assert await rig.keeper.finish(5) == 0


async def _answered(coming: Coroutine[Any, Any, None]) -> Answer:
    await coming
    return Answer(200, b"")


async def test_post_of_one_block_that_may_not_wait_is_refused_at_once(tmp_path: Path) -> None:
    """As on /v1/readings: its bytes count nowhere else."""
    buffer = memory(tmp_path, 100, 1 << 20, 0)
    (await buffer.reserve(100, BLOCK_BYTES * 2)).put(make_block(100))
    began_s = monotonic_s()
    assert await Rig(buffer).refused(points_in(1), 60) == "buffer_full"
    assert monotonic_s() - began_s < 30


async def test_post_that_is_decoded_too_late_is_not_begun() -> None:
    """Its client is gone. Kept, it would come a second time."""
    inlet = FakeInlet()
    rig = Rig(inlet)
    assert await rig.refused(points_in(1), 0) == "buffer_full"
    assert inlet.blocks == []
    assert rig.ledger.received == 0


async def test_largest_post_is_spilled_and_does_not_wait_for_itself(tmp_path: Path) -> None:
    """Its blocks fill all that may be on the way to the disk."""
    buffer = spilling(tmp_path, 50, 16 * BLOCK_BYTES, 0.05)
    rig = Rig(buffer)
    await rig.keep(points_in(1))
    await rig.keep(points_in(4))
    assert rig.ledger.accepted == 250
    await buffer.close()


@pytest.mark.parametrize(
    ("error", "kept_first", "code"),
    [
        (BrokerAway("gone"), 0, "broker_away"),
        (BrokerAway("gone"), 1, "outcome_unknown"),
        (BrokerOutcomeUnknown("gone"), 0, "outcome_unknown"),
    ],
)
async def test_post_of_which_a_part_is_kept_has_no_known_outcome(
    error: NotKept, kept_first: int, code: str
) -> None:
    """The client must not be told that nothing is kept."""
    inlet = FakeInlet()
    inlet.put_error, inlet.kept_first = error, kept_first
    rig = Rig(inlet)
    assert await rig.refused(points_in(2)) == code
    assert (rig.ledger.accepted, inlet.reserved) == (50 * kept_first, 0)


async def test_bug_in_a_put_counts_as_such_and_leaves_nothing_behind() -> None:
    """The blocks beside it are counted, too."""
    inlet = FakeInlet()
    inlet.put_error, inlet.kept_first = RuntimeError("a bug"), 1
    rig = Rig(inlet)
    with pytest.raises(RuntimeError, match="a bug"):
        await rig.keep(points_in(3))
    assert rig.ledger.rejected == {"internal": 100}
    assert (rig.ledger.accepted, rig.ledger.at_receiver, inlet.reserved) == (50, 0, 0)


@pytest.mark.parametrize("ack", ["durable", "buffered"])
async def test_small_post_waits_for_one_portion_of_a_large_one(tmp_path: Path, ack: str) -> None:
    """It comes while the first portion is written, and goes before the second one."""
    disk = HangingDisk()
    buffer = journal(tmp_path, 100_000, 1 << 26, 0.05, calls=disk)
    large, small = Points([portion() for _ in range(3)], [], 0, 0), make_block(1)
    disk.go.clear()
    keeping = asyncio.create_task(Rig(buffer).keep(large, ack=ack))
    await until(lambda: large.blocks[0].sequence)
    put = (await buffer.reserve(1, len(small.tuples))).put(small)
    disk.go.set()
    await asyncio.gather(keeping, put)
    await buffer.close()
    first, *rest = [block.tuples for block in large.blocks]
    assert on_disk(next(tmp_path.iterdir())) == [first, small.tuples, *rest]


class SlowDisk(FailingCalls):
    """Each fdatasync takes longer than SLOW_S. `syncs` counts them."""

    syncs = 0

    def _call(self, name: str) -> None:
        if name == "fdatasync":
            self.syncs += 1
            time.sleep(SLOW_S * 1.1)
        super()._call(name)


async def test_on_a_slow_disk_portions_become_larger(tmp_path: Path) -> None:
    """Eight blocks are written as one, four, and the last three."""
    disk = SlowDisk()
    buffer = journal(tmp_path, 100_000, 1 << 26, 0.05, calls=disk)
    await Rig(buffer).keep(Points([portion() for _ in range(8)], [], 0, 0), ack="durable")
    assert disk.syncs == 3 + 1  # the header of the file
    await buffer.close()


@pytest.mark.parametrize(
    ("failing_sync", "kept", "code"),
    [(2, 0, "disk_low"), (4, 1, "outcome_unknown")],  # each file has a header before
    ids=["first portion", "second portion"],
)
async def test_after_a_portion_that_fails_no_other_one_is_put(
    tmp_path: Path, failing_sync: int, kept: int, code: str
) -> None:
    """The disk works again after one fault, but the client sends all of the post again."""
    disk = FailingCalls(fdatasync=errno.EIO)
    disk.nth = failing_sync
    buffer = journal(tmp_path, 100_000, 1 << 26, 0.05, calls=disk)
    rig = Rig(buffer)
    blocks = [portion() for _ in range(4)]
    with pytest.raises(Refused) as caught:
        await rig.keep(Points(blocks, [], 0, 0), ack="durable")
    rows = blocks[0].rows
    assert caught.value.code == code
    assert on_disk(next(tmp_path.iterdir())) == [each.tuples for each in blocks[:kept]]
    assert (rig.ledger.accepted, rig.ledger.at_receiver) == (kept * rows, 0)
    assert sum(rig.ledger.rejected.values()) == (4 - kept) * rows
    assert (buffer.memory.rows, buffer.unwritten.size_bytes) == (kept * rows, 0)
    await buffer.close()


async def test_many_letters_are_made_in_short_steps() -> None:
    """Others are served between two steps."""
    errors = [ItemError(at, None, "no_device", "no", b"m a=1") for at in range(20_000)]
    rig = Rig(FakeInlet())
    rounds = 0
    keeping = asyncio.create_task(rig.keep(Points([], errors, 0, 0, not_kept=3)))
    while not keeping.done():
        rounds += 1
        await asyncio.sleep(0)
    await keeping
    assert rounds > 5
    assert len(rig.dead_letters.letters) == len(errors)
    assert rig.ledger.rejected["not_kept"] == 3
    assert rig.ledger.at_receiver == 0


AGAIN = "sending again is safe for readings with a `ts`"
MIXED = b"[" + b",".join([GOOD, BAD, GOOD, GOOD]) + b"]"


async def committed(receiver: Receiver, body: bytes, outcome: Outcome) -> Reply:
    """Post with ack=committed, decide the block, return the answer."""
    client = await receiver.connect(post(body, "?ack=committed"))
    block = (await receiver.blocks(1))[-1]
    assert block.ack is not None
    block.ack.resolve(outcome)
    return await client.reply()


@reserves
async def test_committed_post_answers_200_after_the_commit() -> None:
    """Not before: the answer comes with the ack."""
    async with running_receiver() as receiver:
        client = await receiver.connect(post(GOOD, "?ack=committed"))
        block = (await receiver.blocks(1))[0]
        with pytest.raises(TimeoutError):
            await client.reply(0.05)
        assert block.ack is not None
        block.ack.resolve(Outcome())
        reply = await client.reply()
        assert (reply.status, reply.document) == (
            200,
            {"accepted": 1, "dead_lettered": 0, "ack": "committed", "errors": []},
        )


@reserves
async def test_committed_post_lists_rows_that_the_database_refused() -> None:
    """Both kinds, by index, with SQLSTATE and the constraint's name, not the server's words."""
    async with running_receiver() as receiver:
        refusal = Refusal(1, "23514", 'row (4711) violates check constraint "recent"', "recent")
        reply = await committed(receiver, MIXED, Outcome((refusal,)))
        document = reply.document
        assert reply.status == 200
        assert (document["accepted"], document["dead_lettered"]) == (2, 2)
        assert [error["index"] for error in document["errors"]] == [1, 2]
        assert document["errors"][1] == {
            "index": 2,
            "code": "refused_by_database",
            "message": "the row violates the constraint 'recent'",
            "sqlstate": "23514",
            "constraint": "recent",
        }
        assert b"4711" not in reply.body


@reserves
async def test_committed_post_set_aside_is_unknown() -> None:
    """What goes to the dead letters for later is not in the table: 503, send again."""
    async with running_receiver() as receiver:
        reply = await committed(receiver, GOOD, Outcome(set_aside=True))
        assert (reply.status, reply.code) == (503, "outcome_unknown")
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.document["detail"].endswith(AGAIN)


@both_ways
async def test_committed_posts_that_wait_leave_a_quarter_of_the_connections() -> None:
    """They are never closed for a new client: while the database was away, nobody else got in."""
    async with running_receiver(connections_max=8) as receiver:
        waiting = await receiver.crowd(6, post(GOOD, "?ack=committed"))
        await receiver.blocks(6)
        other = await receiver.connect()
        for query, status in (("?ack=committed", 503), ("?ack=buffered", 202)):
            await other.send(post(GOOD, query))
            reply = await other.reply()
            assert reply.status == status
        assert len(receiver.inlet.blocks) == 7
        assert receiver.ledger.rejected == {"buffer_full": 1}
        for block in receiver.inlet.blocks[:6]:
            assert block.ack is not None
            block.ack.resolve(Outcome())
        assert {(await client.reply()).status for client in waiting} == {200}
        await other.send(post(GOOD, "?ack=committed"))
        await receiver.blocks(8)


async def test_committed_post_is_answered_that_it_is_kept_when_writes_pause() -> None:
    """A pause of writes ends the wait; the detail does not claim that nothing is kept."""
    async with running_receiver() as receiver:
        client = await receiver.connect(post(GOOD, "?ack=committed"))
        await receiver.blocks(1)
        receiver.database.hold("42P01")
        reply = await client.reply()
        assert (reply.status, reply.code) == (503, "database_on_hold")
        assert "may still be stored" in reply.document["detail"]
        assert receiver.ledger.accepted == 1


@reserves
async def test_handler_cancelled_while_dead_lettering_keeps_the_whole_post() -> None:
    """Shutdown cancels the handler, not the post: its tail ends, close waits for it."""
    async with running_receiver() as receiver:
        receiver.dead_letters.open.clear()
        await receiver.connect(post(MIXED))
        await until(lambda: receiver.dead_letters.waiting)
        handler = answering()
        handler.cancel()
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(receiver.endpoint.close())
        await asyncio.sleep(0.01)
        assert not closing.done()
        receiver.dead_letters.open.set()
        await closing
        assert len(receiver.inlet.readings) == 3
        assert len(receiver.dead_letters.letters) == 1
        assert receiver.ledger.at_receiver == 0


@reserves
async def test_handler_cancelled_while_waiting_for_space_keeps_nothing() -> None:
    """The other half: before anything is kept, a cancelled post counts as rejected."""
    async with running_receiver() as receiver:
        client = await receiver.waits(post(GOOD))
        await receiver.endpoint.close()  # its grace is a second
        assert dict(receiver.ledger.rejected) == {"draining": 1}
        assert await client.closed()


async def test_committed_handler_cancelled_leaves_its_block_to_the_writers() -> None:
    """It was accepted before the wait: counted so, not as rejected, and decided without it."""
    async with running_receiver() as receiver:
        await receiver.connect(post(GOOD, "?ack=committed"))
        (block,) = await receiver.blocks(1)
        assert block.ack is not None
        handler = answering()
        handler.cancel()
        await until(handler.done)
        assert receiver.ledger.accepted == 1
        assert receiver.ledger.at_receiver == 0
        assert dict(receiver.ledger.rejected) == {}
        assert receiver.ledger.imbalance == 0
        block.ack.resolve(Outcome())  # as a writer does: nobody is there, and nothing breaks
        await asyncio.sleep(0)
        second = await receiver.connect(post(GOOD))
        assert (await second.reply()).status == 202
