"""What ends leaves nothing to the garbage collector: a flood of it would fill the memory."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ingest.model.errors import BufferFull
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
    clients = [await receiver.connect() for _ in range(count)]
    for client in clients:
        await client.send(WAYS[way])
    for client in clients:
        if way == "half":
            await asyncio.sleep(0.001)
        else:
            assert (await client.reply()).status >= 400
        await client.close()
    receiver._clients.clear()
    connections = receiver.endpoint._port._connections
    assert connections is not None
    await until(lambda: connections.count == 0)


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
