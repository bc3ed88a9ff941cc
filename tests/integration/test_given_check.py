"""The check for skipped messages over several writers (T1), with the real nats-server.

The writers take one message each in turn. So none of them ever sees two neighbours, and what is
skipped between them shows only if they tell each other what they were given.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ingest.broker import given_check, manage, pulling, purge
from ingest.broker.connection import BrokerConnection
from ingest.broker.roles import GIVEN, STREAM, WRITER
from ingest.embedded.broker import EmbeddedBroker
from ingest.model.errors import BrokerAway
from tests.support.brokers import WANTED, api, embedded, hit, joined, put, until
from tests.support.stream_writers import FEW, StreamWriter, first_place, in_turns, purged, writing

BODIES = [b"payload-number-%03d-" % n + b"x" * 200 for n in range(1, 31)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it check more often."""
    monkeypatch.setattr(given_check, "EVERY_S", 0.05)
    monkeypatch.setattr(given_check, "KNOWN_S", 0.25)
    monkeypatch.setattr(given_check, "HEARD_S", 0.25)
    monkeypatch.setattr(pulling, "EXPIRES_S", 0.3)
    monkeypatch.setattr(pulling, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(purge, "_LOOK_S", 0.05)
    monkeypatch.setattr(purge, "EVERY_S", 0.1)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    """Give a broker with the stream."""
    async with embedded(tmp_path / "broker") as running:
        yield running


@pytest.fixture
async def admin(server: EmbeddedBroker) -> AsyncIterator[BrokerConnection]:
    """Give a connection of the admin."""
    async with joined(server, "admin") as connection:
        yield connection


async def fill(server: EmbeddedBroker, *bodies: bytes) -> None:
    """Put messages into the stream."""
    async with joined(server, "gateway") as gateway:
        await put(gateway, *bodies)


def flip(store: Path, *numbers: int) -> None:
    """Flip a bit of some messages on the disk of a server that does not run."""
    flipped = 0
    for path in store.rglob("*.blk"):
        data = bytearray(path.read_bytes())
        for number in numbers:
            at = data.find(b"payload-number-%03d-" % number)
            data[at + 30] ^= at >= 0
            flipped += at >= 0
        path.write_bytes(data)
    assert flipped == len(numbers)


async def _damaged(folder: Path, *numbers: int) -> None:
    """Make a store with damaged messages."""
    async with embedded(folder) as server:
        await fill(server, *BODIES)
    flip(folder / "store", *numbers)


async def set_ack_wait(admin: BrokerConnection) -> None:
    """Let what a dead writer had come again after a second."""
    config = (await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}"))["config"]
    body = {"stream_name": STREAM, "config": config | {"ack_wait": 10**9}, "action": "update"}
    assert "error" not in await api(admin, f"CONSUMER.CREATE.{STREAM}.{WRITER}", body)


def _places(*writers: StreamWriter) -> list[int]:
    return sorted(each.place for writer in writers for each in writer.got)


async def test_damaged_messages_between_writers_are_counted_once(tmp_path: Path) -> None:
    """The first, some in the middle, and the last one. Then the purge goes past them."""
    await _damaged(tmp_path / "broker", 1, 7, 8, 20, 30)
    async with (
        embedded(tmp_path / "broker", wanted=None) as server,
        joined(server, "admin") as admin,
        writing(server, pulls=False, purges=True) as one,
        writing(server, pulls=False, purges=True) as other,
    ):
        in_turns(one, other)
        await until(lambda: one.check.skipped + other.check.skipped == 5)
        assert min(one.check.skipped, other.check.skipped) == 0, "one of them counts"
        assert abs(len(one.got) - len(other.got)) <= 1
        assert _places(one, other) == [n for n in range(1, 31) if n not in {1, 7, 8, 20, 30}]
        await purged(admin, 30)
        await asyncio.sleep(0.5)
        assert one.check.skipped + other.check.skipped == 5, "each once"
        assert one.check.read_again + other.check.read_again == 0


async def test_without_the_check_the_loss_goes_unnoticed(tmp_path: Path) -> None:
    """The control: the numbers that one writer sees do not show it."""
    await _damaged(tmp_path / "broker", 7, 8, 20)
    async with (
        embedded(tmp_path / "broker", wanted=None) as server,
        writing(server, pulls=False, checks=False) as one,
        writing(server, pulls=False, checks=False) as other,
    ):
        in_turns(one, other)
        await until(lambda: len(one.got) + len(other.got) == 27)
        await asyncio.sleep(0.6)
        assert one.check.skipped + other.check.skipped == 0
        assert one.seen_alone + other.seen_alone == []


async def test_purge_waits_for_the_check(tmp_path: Path) -> None:
    """A place that nobody was given stays until it was looked at."""
    await _damaged(tmp_path / "broker", 7)
    async with (
        embedded(tmp_path / "broker", wanted=None) as server,
        joined(server, "admin") as admin,
        writing(server, purges=True, pull=FEW) as one,
    ):
        one.check._others["0"] = float("inf")  # a writer that looks, they think; it is frozen
        await until(lambda: len(one.got) == 29)
        await asyncio.sleep(0.5)
        assert await first_place(admin) == 7
        assert one.check.skipped == 0
        one.check._others.clear()
        await purged(admin, 30)
        assert one.check.skipped == 1


async def test_writers_that_come_and_go_find_nothing_in_a_sound_stream(
    server: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """Under traffic, with purges, and a kill of the server. Who dies may leave a few to be read."""
    await set_ack_wait(admin)
    stopping = asyncio.Event()

    async def publish() -> int:
        count = 0
        async with joined(server, "gateway") as gateway:
            while not stopping.is_set():
                try:
                    await put(gateway, b"%d" % count)
                except BrokerAway:
                    await asyncio.sleep(0.01)
                else:
                    count += 1
        return count

    publishing = asyncio.create_task(publish())
    async with AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(writing(server, purges=True)) for _ in range(3)]
        for number in range(4):
            async with writing(server, purges=True) as guest:
                await until(lambda: guest.got, 5)
                writers.append(guest)
            if number == 2:
                hit(server.pid, signal.SIGKILL)
            await asyncio.sleep(0.3)
        stopping.set()
        count = await publishing
        last = (await api(admin, f"STREAM.INFO.{STREAM}"))["state"]["last_seq"]
        await until(lambda: set(_places(*writers)) >= set(range(1, last + 1)))
        await purged(admin, last)
        assert count > 100
        assert [each.check.skipped for each in writers] == [0] * 7


async def test_message_that_a_dead_writer_has_done_is_written_again(
    server: EmbeddedBroker,
) -> None:
    """Nobody knows whether it was given to anybody, so it is; and the purge waits for it."""
    async with writing(server) as one:
        await until(lambda: one.check.checked_to == 0 and one.check._looks)
        # Another writer takes one and says nothing of it.
        one.puller.wanted.clear()
        await asyncio.sleep(0.4)
        async with writing(server, checks=False) as dead:
            await fill(server, b"a")
            await until(lambda: dead.got)
        one.acknowledges = False
        await asyncio.sleep(0.5)
        assert one.check.checked_to == 0
        assert one.got == [], "no room for it"
        one.puller.wanted.set()
        await until(lambda: one.got)
        (again,) = one.got
        assert (again.data, again.place, again.tries, again.ack_subject) == (b"a", 1, 2, "")
        await fill(server, b"b")
        await until(lambda: len(one.got) == 2)
        await asyncio.sleep(0.2)
        assert one.check.checked_to == 0
        one.puller.working([again])
        one.puller.give_back([again])
        await until(lambda: len(one.got) == 3)
        one.check.given(1)  # the broker delivers it all the same
        assert one.check._in_hand == {}
        one.puller.done(one.got[1:])
        await until(lambda: one.check.checked_to == 2)
        assert (one.check.read_again, one.check.skipped) == (2, 0)


async def test_message_that_is_pending_at_a_dead_writer_comes_by_itself(
    server: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """It is not written twice."""
    await set_ack_wait(admin)
    await fill(server, b"a")
    async with writing(server, checks=False, acknowledges=False) as dead:
        await until(lambda: dead.got)
    async with writing(server) as one:
        await until(lambda: one.got, 5)
        await until(lambda: one.check.checked_to == 1)
        assert (one.got[0].tries, one.check.read_again) == (2, 0)


async def test_first_writer_reads_the_last_messages_again(
    server: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No writer is left that knows what was given. Up to a bound."""
    monkeypatch.setattr(given_check, "BACK_MAX", 3)
    await fill(server, *BODIES)
    async with writing(server) as gone:
        await until(lambda: len(gone.got) == 30)
    async with writing(server) as one:
        await until(lambda: one.check.checked_to == 30)
        assert [each.place for each in one.got] == [28, 29, 30]
        async with writing(server) as other:
            await until(lambda: other.check.checked_to == 30)
            assert other.got == [], "the first one has told it"


async def test_purge_by_hand_is_counted_also_while_nothing_is_pulled(
    server: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """For example while the database is away."""
    async with writing(server) as one:
        await until(lambda: one.check._looks)
        one.puller.wanted.clear()
        await asyncio.sleep(0.4)
        await fill(server, *BODIES)
        await api(admin, f"STREAM.PURGE.{STREAM}", {"seq": 21})
        await until(lambda: one.check.skipped == 20)
        one.puller.wanted.set()
        await until(lambda: one.check.checked_to == 30)
        assert _places(one) == list(range(21, 31))
        assert one.check.skipped == 20


async def test_another_stream_of_the_same_name_is_checked_from_its_begin(
    tmp_path: Path, server: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """Its places begin again."""
    async with writing(server, purges=True) as one:
        await fill(server, *BODIES)
        await until(lambda: one.check.checked_to == 30)
        await api(admin, f"STREAM.DELETE.{STREAM}")
        await manage.apply(admin, WANTED)
        await fill(server, *BODIES[:9])
        await until(lambda: one.check.checked_to == 9)
        assert one.check.skipped == 0


async def test_what_is_no_telling_is_ignored(server: EmbeddedBroker) -> None:
    """Other writers only may say something there, but who knows."""
    async with writing(server) as one, joined(server, "writer") as other:
        for said in (b"", b"{}", b"[]", b'["x","y",[[1]]]', b'["x",1,2]'):
            other.send(GIVEN, said)
        await fill(server, b"a")
        await until(lambda: one.check.checked_to == 1)
        assert one.connection.up


async def test_gateway_may_not_tell_what_writers_were_given(server: EmbeddedBroker) -> None:
    """It could hide a loss."""
    async with writing(server) as one, joined(server, "gateway") as gateway:
        await until(lambda: one.check._looks)
        gateway.send(GIVEN, b'["0","x",[[1,9]]]')
        await asyncio.sleep(0.2)
        assert one.check._others == {}


async def _skip_one(server: EmbeddedBroker, one: StreamWriter) -> None:
    """Let nobody be given message 7, who lives: who has done it is gone. It can still be read."""
    one.check._others["0"] = float("inf")  # a writer that looks, `one` thinks; it is frozen
    await until(lambda: one.check._looks)
    await fill(server, *BODIES[:6])
    await until(lambda: len(one.got) == 6)
    one.puller.wanted.clear()
    await until(one.puller._over.is_set)
    async with writing(server, checks=False) as dead:
        await fill(server, BODIES[6])
        await until(lambda: dead.got)
    one.puller.wanted.set()
    await fill(server, *BODIES[7:])
    await until(lambda: len(one.got) == 29)


async def test_successor_does_not_hide_what_was_given_to_nobody(
    server: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has more done messages behind it than it reads again. Its guess is not what it knows."""
    monkeypatch.setattr(given_check, "BACK_MAX", 3)
    async with writing(server) as one:
        await _skip_one(server, one)
        async with writing(server) as successor:
            successor.check._name = "0"  # so it is the one that looks
            await until(lambda: successor.check.checked_to)
            assert one.check.checked_to == 6
            assert 7 not in one.check._settled
            await until(lambda: successor.got)
            assert [each.data for each in successor.got] == [BODIES[6]]
            await until(lambda: one.check.checked_to == successor.check.checked_to == 30)


async def test_successor_hears_the_last_word_before_it_has_looked(
    server: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer steps down as soon as its successor is connected, and says last what it knows."""
    monkeypatch.setattr(given_check, "BACK_MAX", 3)
    async with writing(server, checks=False, pulls=False) as successor:
        async with writing(server) as one:
            await _skip_one(server, one)
        await until(lambda: successor.check._others)
        successor.puller.wanted.set()
        stopping = asyncio.Event()
        checking = asyncio.create_task(successor.check.run(stopping))
        await until(lambda: successor.check.checked_to == 30)
        stopping.set()
        await checking
        assert [each.data for each in successor.got] == [BODIES[6]]


async def test_guess_counts_only_once_others_must_have_been_heard(
    server: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the purge could remove what another writer has not seen to. Later it does count."""
    monkeypatch.setattr(given_check, "BACK_MAX", 3)
    await fill(server, *BODIES)
    async with writing(server) as gone:
        await until(lambda: len(gone.got) == 30)
    monkeypatch.setattr(given_check, "KNOWN_S", 60)
    async with writing(server) as one:
        await until(lambda: len(one.check._looks) > 2)
        assert one.check.checked_to == 0
        monkeypatch.setattr(given_check, "KNOWN_S", 0.1)
        await until(lambda: one.check.checked_to == 30)
