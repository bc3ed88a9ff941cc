"""Posts that are kept at once, of several pages, in one block: each gets its own page's answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ingest.config.settings import Settings
from ingest.model.block import Block
from ingest.model.errors import JournalBroken, NotKept
from ingest.model.ports import Told
from tests.support import constants
from tests.support.fakes import FakeInlet
from tests.support.receiver import GOOD, Client, Receiver, head, post, until

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
