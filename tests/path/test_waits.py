"""What docs/waits.md says of awaits that no other file of tests shows."""

from __future__ import annotations

import asyncio
import gzip
import threading

import pytest

from ingest.http import inflate
from ingest.http.inflate import GZIP, LIGHT_INFLATED_BYTES, Inflater
from ingest.model.ack import Outcome
from ingest.model.errors import Refused
from tests.support.receiver import GOOD, answering, post, running_receiver, until


async def test_cancelled_inflating_frees_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread goes on, and its body counts no more: the next one is not refused for it."""
    packed = gzip.compress(bytes(2 * LIGHT_INFLATED_BYTES), mtime=0)
    going = threading.Event()
    really = inflate.inflated

    def slow(body: bytes, encoding: str, inflated_bytes_max: int) -> bytes:
        assert going.wait(10)
        return really(body, encoding, inflated_bytes_max)

    monkeypatch.setattr(inflate, "inflated", slow)
    inflater = Inflater(waiting_bytes_max=len(packed))
    try:
        first = asyncio.create_task(inflater.inflate(packed, GZIP, 1 << 22))
        await asyncio.sleep(0)
        with pytest.raises(Refused):
            await inflater.inflate(packed, GZIP, 1 << 22)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(inflater.inflate(packed, GZIP, 1 << 22))
        await asyncio.sleep(0)
        assert not second.done()
        going.set()
        assert len(await second) == 2 * LIGHT_INFLATED_BYTES
    finally:
        going.set()
        inflater.close()


async def test_committed_handler_cancelled_leaves_its_block_to_the_writers() -> None:
    """It was accepted before the wait: counted so, not as rejected, and decided without it."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        await client.send(post(GOOD, "?ack=committed"))
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
        second = await receiver.connect()
        await second.send(post(GOOD))
        assert (await second.reply()).status == 202
