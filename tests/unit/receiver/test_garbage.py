"""What ends leaves nothing to the garbage collector: a flood of it would fill the memory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ingest.model.errors import BufferFull
from tests.contract.buffers import journal
from tests.support.journals import make_block
from tests.support.posts import array
from tests.support.receiver import BAD, GOOD, JSON, Receiver, head, post, running_receiver, until

COUNT = 40
HALF = head(headers={**JSON, "Content-Length": "50000"}) + GOOD[:20]
# Refused at once; after some steps; by the buffer; by the parser; never whole; too late.
WAYS = {
    "not JSON": post(b"{"),
    "all bad": post(array(*[BAD] * 70)),
    "tiny items": post(array(*[b"{}"] * 500)),
    "buffer full": post(GOOD),
    "not HTTP": b"\x00\x01\r\n\r\n",
    "half": HALF,
    "late": HALF,
}


@asynccontextmanager
async def receiver_for(way: str) -> AsyncIterator[Receiver]:
    """Run a receiver that refuses this way."""
    async with running_receiver(body_s_max=0.3 if way == "late" else 30) as receiver:
        if way == "buffer full":
            receiver.inlet.error = BufferFull(1.0)
        yield receiver


async def send_some(receiver: Receiver, way: str, count: int) -> None:
    """Send on some connections, and end them."""
    clients = await receiver.crowd(count, WAYS[way])
    for client in clients:
        if way == "half":
            await asyncio.sleep(0.001)
        else:
            assert (await client.reply()).status >= 400
        await client.close()
    receiver._clients.clear()
    await until(lambda: receiver.connections.count == 0)


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_refused_or_breaks_off_is_freed_at_once(way: str) -> None:
    """Connections with half a body kept 18 objects each, a refused post all that was decoded."""
    async with receiver_for(way) as receiver:
        await send_some(receiver, way, 4)
        gc.collect()
        gc.disable()
        try:
            await send_some(receiver, way, COUNT)
            found = gc.collect()
        finally:
            gc.enable()
        # The test's own streams leave some; each connection of ours would leave at least five more.
        assert found < 3 * COUNT, f"{found} objects"


async def test_body_is_freed_while_its_post_waits() -> None:
    """It does not count as in memory any more, so nothing may keep it."""
    async with running_receiver() as receiver:
        client = await receiver.waits(post(b" " * 100_000 + GOOD))
        (connection,) = receiver.connections._open
        request = connection._request
        assert request is not None, "it waits"
        assert not request.body
        receiver.inlet.open.set()
        assert (await client.reply()).status == 202


async def test_client_that_was_answered_is_freed_before_the_next_post(tmp_path: Path) -> None:
    """The last entry of the journal kept all who had waited for it."""

    class Waiter:
        pass

    buffer = journal(tmp_path, 1_000, 1 << 20, 1.0)
    try:
        told: list[int] = []
        waiter = Waiter()
        gone = weakref.ref(waiter)
        assert buffer.take_in(make_block(1), waiter, lambda waiters, _: told.append(len(waiters)))
        del waiter
        await until(lambda: told == [1] and gone() is None)
    finally:
        buffer.journal._thread.stop()
