"""What one kind of service has left: the other one starts only if nothing waits there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ingest.app.buffer import make_buffer
from ingest.app.process import LeftInBroker, note_left, refuse_left_files, refuse_left_stream
from ingest.config.settings import Settings
from ingest.dead_letters.folder.segments import live_letters, mark_done
from ingest.embedded.postgres import EmbeddedPostgres
from ingest.model.errors import StartError
from ingest.model.ledger import Ledger
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.supervisor.up import Servers
from ingest.system.files import Lock
from ingest.system.state_folder import StateFolder
from tests.support.blocks import make_block
from tests.support.letters import LetterFiles, drained, keep


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    """Return a state folder in which nothing has run."""
    return StateFolder.open(tmp_path)


async def keep_block(folder: StateFolder, *, stored: bool) -> None:
    """Keep a block in the journal as `serve` does, and end."""
    journal = make_buffer(Settings(), folder, Ledger())
    journal.open()
    block = make_block(3)
    reservation = await journal.reserve(block.rows, len(block.tuples))
    await reservation.put(block)
    if stored:
        await journal.wait_rows(1)
        journal.settle(journal.take(100))
    await journal.close()


@pytest.mark.parametrize("stored", [False, True])
async def test_up_starts_only_if_the_journal_is_empty(folder: StateFolder, stored: bool) -> None:
    """A journal whose blocks are all in the table is empty."""
    refuse_left_files(folder)
    await keep_block(folder, stored=stored)
    if stored:
        refuse_left_files(folder)
    else:
        with pytest.raises(StartError, match=r"left readings in its journal.*`ingest serve` again"):
            refuse_left_files(folder)


@pytest.mark.parametrize("damaged_byte", [8, -1])
async def test_journal_that_cannot_be_read_is_not_empty(
    folder: StateFolder, damaged_byte: int
) -> None:
    """It may have readings; `serve` says what is wrong with it, and sets it aside."""
    await keep_block(folder, stored=False)
    (segment,) = folder.journal.glob("*.log")
    data = bytearray(segment.read_bytes())
    data[damaged_byte] ^= 0xFF
    segment.write_bytes(data)
    with pytest.raises(StartError, match="journal"):
        refuse_left_files(folder)


def test_up_starts_only_without_dead_letters_in_files(folder: StateFolder) -> None:
    """Those that are done do not count."""
    store = LetterFiles(folder.dead_letters)
    keep(store, drained(2))
    store.close()
    with pytest.raises(StartError, match=r"has left dead letters \("):
        refuse_left_files(folder)
    mark_done(live_letters(folder.dead_letters), "replayed")
    refuse_left_files(folder)


def test_serve_starts_only_with_a_note_that_the_broker_is_empty(folder: StateFolder) -> None:
    """A missing note is one of a killed `up`, or of an older version."""
    folder.broker.mkdir()
    refuse_left_stream(folder)  # no server has ever run
    (folder.broker / "store" / "jetstream" / "$G" / "streams" / "INGEST").mkdir(parents=True)
    with pytest.raises(StartError, match=r"may have left readings.*start `ingest up` again"):
        refuse_left_stream(folder)
    note_left(folder, LeftInBroker(0, 0))
    refuse_left_stream(folder)
    for left, words in (
        (LeftInBroker(1_234, 0), "1,234 messages"),
        (LeftInBroker(0, 5), "5 dead letters"),
    ):
        note_left(folder, left)
        with pytest.raises(StartError, match=words):
            refuse_left_stream(folder)
    for damaged in (b"", b"[]", b'{"messages":0}'):
        folder.broker_left.write_bytes(damaged)
        with pytest.raises(StartError, match="may have left readings"):
            refuse_left_stream(folder)


async def test_note_is_gone_before_the_broker_starts(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before it has the lock: a command that still runs writes its note at its end."""
    monkeypatch.setattr("ingest.roles.embedded_broker.LOCK_S_MAX", 0.0)
    folder.broker.mkdir()
    server = EmbeddedBroker(folder.broker, Path("/bin/false"))
    command = Lock.try_take(folder.broker / "lock", create=True)
    assert command is not None
    with command, pytest.raises(StartError, match="runs the broker"):
        await server.start()
    note_left(folder, LeftInBroker(0, 0))
    with pytest.raises(StartError, match="did not start"):
        await server.start()
    assert not folder.broker_left.exists()


async def test_database_is_stopped_also_if_the_broker_fails_to(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
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
        await Servers(Settings(broker_unsafe=True), folder, asyncio.create_task).stop()
    assert stopped == [True]
