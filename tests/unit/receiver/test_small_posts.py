"""Small posts that share a group; and that nothing of a post stays in memory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ingest.config.settings import Settings
from ingest.model.block import Block
from ingest.model.errors import BufferFull, JournalBroken, NotKept
from ingest.model.ports import Told
from tests.contract.buffers import journal
from tests.support import constants
from tests.support.fakes import FakeInlet
from tests.support.journals import make_block
from tests.support.posts import array
from tests.support.receiver import (
    BAD,
    GOOD,
    JSON,
    Client,
    Receiver,
    head,
    post,
    running_receiver,
    until,
)

LINE = b"m,host=h a=1 1750000000"


class HeldInlet(FakeInlet):
    """A disk that has written nothing until `tell`."""

    def __init__(self) -> None:
        super().__init__()
        self.waiters: list[Any] = []
        self.told: Told | None = None

    def take_in(self, block: Block, waiter: object = None, told: Told | None = None) -> bool:
        """Keep the waiter."""
        assert told is not None, "the post waits for the disk"
        assert self.told in (None, told), "all posts of a buffer have the same"
        self.told = told
        self.waiters.append(waiter)
        self.blocks.append(block)
        return True

    def tell(self, error: NotKept | None = None) -> None:
        """Tell all waiters what became of the block."""
        waiters, self.waiters = self.waiters, []
        assert self.told is not None
        self.told(waiters, error)


class Held(Receiver):
    """A receiver with a disk, which answers when the test says so."""

    inlet: HeldInlet

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, inlet=HeldInlet(), levels=("durable", "buffered"))

    async def sent(self, *requests: bytes) -> list[Client]:
        """Send each on a connection of its own; return these once all posts wait for the disk."""
        clients = []
        for number, request in enumerate(requests):
            client = await self.connect()
            await client.send(request)
            await until(lambda number=number: len(self.inlet.waiters) > number)
            clients.append(client)
        return clients


@asynccontextmanager
async def held(**settings: Any) -> AsyncIterator[Held]:
    """Run a receiver; at its end the balance is 0, and no post is in work."""
    settings, smaller = constants.split(settings)
    with constants.constants(**smaller):
        receiver = Held(Settings(**settings))
    receiver.address = await receiver.endpoint.start("127.0.0.1", 0)
    try:
        yield receiver
        await receiver.endpoint.finish(0.0)
        assert receiver.ledger.at_receiver == 0
        assert receiver.ledger.imbalance == 0
    finally:
        await receiver.close()


def lines(body: bytes = LINE, path: str = "/write") -> bytes:
    """Return a post of line protocol."""
    return head("POST", path, {"Content-Length": str(len(body))}) + body


async def test_posts_of_all_pages_share_a_group_and_get_their_own_answers() -> None:
    """One call of the journal answers all of them; each page counts its own."""
    async with held() as receiver:
        v2 = "/api/v2/write"
        clients = await receiver.sent(lines(), post(GOOD), lines(), lines(path=v2), post(GOOD))
        assert receiver.ledger.at_receiver == 5
        receiver.inlet.tell()
        assert [(await each.reply()).status for each in clients] == [204, 202, 204, 204, 202]
        counted = {key[0]: count for key, count in receiver.ledger.requests.items()}
        assert counted == {"/write": 2, "/v1/readings": 2, v2: 1}
        assert receiver.ledger.accepted == 5


async def test_disk_that_fails_is_told_in_the_form_of_each_page() -> None:
    """Nothing is kept; each post is refused once, and counted with the status that it got."""
    async with held() as receiver:
        clients = await receiver.sent(lines(), post(GOOD))
        receiver.inlet.tell(JournalBroken("no space"))
        line, usual = [await each.reply() for each in clients]
        assert (line.status, line.document["problem"]) == (503, "disk_low")
        assert (usual.status, usual.code) == (503, "disk_low")
        assert receiver.ledger.rejected["disk_low"] == 2
        assert receiver.ledger.posts_refused["disk_low"] == 2
        assert receiver.ledger.requests["/write", 503] == 1
        receiver.inlet.blocks.clear()


async def test_slow_disk_is_answered_in_time_where_clients_hang_up() -> None:
    """Lines get their answer at `answer_s_max`, and are kept; JSON waits for the disk."""
    async with held(answer_s_max=0.3) as receiver:
        line, usual = await receiver.sent(lines(), post(GOOD))
        reply = await line.reply()
        assert (reply.status, reply.document["problem"]) == (503, "outcome_unknown")
        assert receiver.ledger.requests["/write", 503] == 1
        assert receiver.ledger.at_receiver == 2
        receiver.inlet.tell()
        assert (await usual.reply()).status == 202
        assert receiver.ledger.accepted == 2
        assert await line.closed(0.05) is False  # no second answer, and the connection stays open
        await line.send(lines())
        await until(lambda: bool(receiver.inlet.waiters))
        receiver.inlet.tell()
        assert (await line.reply()).status == 204


async def test_client_that_is_gone_does_not_disturb_the_others() -> None:
    """Its readings are kept too."""
    async with held() as receiver:
        clients = await receiver.sent(lines(), lines())
        await clients[0].close()
        await asyncio.sleep(0.01)
        receiver.inlet.tell()
        assert (await clients[1].reply()).status == 204
        assert receiver.ledger.accepted == 2


def mapped(body: bytes) -> bytes:
    """Return a post of a mapped source."""
    return head("POST", "/v1/in/esp", {"Content-Length": str(len(body))}) + body


async def test_small_posts_of_a_source_share_a_group_too(tmp_path: Path) -> None:
    """Each gets its own number of readings; what has anything else goes the long way."""
    file = tmp_path / "sources.toml"
    file.write_text('[[source]]\nname = "esp"\ndevice = "id"\nwhen = { kind = "up" }\n')
    async with held(sources_file=str(file)) as receiver:
        one, two = b'{"id":"e","kind":"up","t":1}', b'{"id":"e","kind":"up","t":1,"h":2}'
        clients = await receiver.sent(mapped(one), post(GOOD), mapped(b"[%b,%b]" % (one, two)))
        assert receiver.inlet.blocks[0].sender
        receiver.inlet.tell()
        answers = [await each.reply() for each in clients]
        assert [(each.status, each.document["accepted"]) for each in answers] == [
            *((200, 1), (202, 1), (200, 3)),
        ]
        assert receiver.ledger.requests["/v1/in/esp", 200] == 2
        assert receiver.ledger.accepted == 5
        (client,) = await receiver.sent(mapped(two))
        receiver.inlet.tell(JournalBroken("no space"))
        assert (await client.reply()).code == "disk_low"
        receiver.inlet.blocks.pop()
        for body in (b'{"id":"e","kind":"x"}', b"[%b,%b]" % (one, b'{"kind":"up","id":1}'), b""):
            before = len(receiver.inlet.waiters)
            reply = await receiver.send(mapped(body))
            assert reply.status == 200, body
            assert len(receiver.inlet.waiters) == before, body


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
