"""What `up` does at its servers itself: a take-over that can be stopped, and the stop of both."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ingest.app import own_broker
from ingest.app.buffer import make_buffer
from ingest.app.own_broker import OwnBroker
from ingest.app.servers import Servers
from ingest.broker.envelope import Address
from ingest.config.settings import Settings
from ingest.embedded.broker import EmbeddedBroker
from ingest.embedded.server import EmbeddedPostgres
from ingest.model.errors import StartError
from ingest.model.ledger import Ledger
from ingest.system.state_folder import StateFolder
from tests.support.blocks import make_block
from tests.support.brokers import until
from tests.support.journals import on_disk

NOWHERE = Address(("nats://127.0.0.1:1",), "", "")


@pytest.fixture
async def folder(tmp_path: Path) -> StateFolder:
    """Give a state folder with a journal of one block."""
    folder = StateFolder.open(tmp_path)
    journal = make_buffer(Settings(), folder, Ledger())
    journal.open()
    block = make_block(3)
    reservation = await journal.reserve(block.rows, len(block.tuples))
    await reservation.put(block)
    await journal.close()
    return folder


@pytest.mark.parametrize("hangs", ["letters", "readings"])
async def test_take_over_ends_soon_while_the_broker_is_away(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    """Also what is under way; nothing is gone by that."""
    own, stopping = OwnBroker(Settings(), folder, lambda: NOWHERE), asyncio.Event()
    before = on_disk(folder.journal)
    begun = asyncio.Event()

    async def take_letters() -> bool:
        if hangs == "letters":
            begun.set()
            await asyncio.Event().wait()
        return True

    monkeypatch.setattr(own, "_take_letters", take_letters)
    own.connect()
    moving = asyncio.create_task(own.take_over(Ledger(), stopping))
    await until(lambda: begun.is_set() or own._publisher.under_way)
    stopping.set()
    async with asyncio.timeout(3):  # a message is tried for 10 s
        await moving
    await own.close()
    assert before
    assert on_disk(folder.journal) == before


async def _nothing_left() -> bool:
    return True


async def test_tries_share_one_publisher(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would be told of each connection for ever."""
    tries = 0

    async def carry(*_: object, **__: object) -> bool:
        nonlocal tries
        tries += 1
        return False

    monkeypatch.setattr(own_broker, "carry", carry)
    monkeypatch.setattr(own_broker, "AGAIN_S", 0.001)
    own, stopping = OwnBroker(Settings(), folder, lambda: NOWHERE), asyncio.Event()
    monkeypatch.setattr(own, "_take_letters", _nothing_left)
    watchers = len(own._connection._watchers)
    moving = asyncio.create_task(own.take_over(Ledger(), stopping))
    await until(lambda: tries > 2)
    stopping.set()
    await moving
    assert len(own._connection._watchers) == watchers
    await own.close()


async def test_database_is_stopped_also_if_the_broker_fails_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would outlive us."""
    stopped = []

    async def fail(_: object) -> None:
        raise StartError("no")

    async def stop(_: object) -> None:
        stopped.append(True)

    monkeypatch.setattr(EmbeddedBroker, "stop", fail)
    monkeypatch.setattr(EmbeddedPostgres, "stop", stop)
    with pytest.raises(StartError):
        await Servers(Settings(broker_unsafe=True), StateFolder.open(tmp_path)).stop()
    assert stopped == [True]
