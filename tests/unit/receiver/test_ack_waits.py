"""ack=committed, dead letters that fail, clients and handlers that go away in the middle."""

from __future__ import annotations

import asyncio

import pytest

from ingest.model.block import Outcome, Refusal
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
