"""The audit of several writers (T1), with the real nats-server.

The writers take one message each in turn. So none of them ever sees two neighbours, and what is
skipped between them shows only if they tell each other what they were given.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from ingest.model.errors import BrokerAway
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats import audit, pulling, purge, streams
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import GIVEN, STREAM, Message
from ingest.roles.nats.streams import Names
from tests.support.brokers import WANTED, api, embedded, fill, hit, joined, put, set_ack_wait, until
from tests.support.stream_writers import FEW, StreamWriter, first_place, in_turns, purged, writing

BODIES = [b"payload-number-%03d-" % n + b"x" * 200 for n in range(1, 31)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it check more often."""
    monkeypatch.setattr(audit, "EVERY_S", 0.05)
    monkeypatch.setattr(audit, "HEARD_S", 0.5)
    monkeypatch.setattr(pulling, "EXPIRES_S", 0.3)
    monkeypatch.setattr(pulling, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(purge, "_LOOK_S", 0.05)
    monkeypatch.setattr(purge, "EVERY_S", 0.1)


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
        await until(lambda: one.audit.skipped + other.audit.skipped == 5)
        assert min(one.audit.skipped, other.audit.skipped) == 0, "one of them counts"
        assert abs(len(one.got) - len(other.got)) <= 1
        assert _places(one, other) == [n for n in range(1, 31) if n not in {1, 7, 8, 20, 30}]
        await purged(admin, 30)
        await asyncio.sleep(0.5)
        assert one.audit.skipped + other.audit.skipped == 5, "each once"
        assert one.audit.read_again + other.audit.read_again == 0


async def test_purge_waits_for_the_check(tmp_path: Path) -> None:
    """All stays until somebody has seen to it."""
    await _damaged(tmp_path / "broker", 7)
    async with (
        embedded(tmp_path / "broker", wanted=None) as server,
        joined(server, "admin") as admin,
        writing(server, purges=True, pull=FEW) as one,
    ):
        one.audit._others["0"] = float("inf")  # the auditor, they think; it is frozen
        await until(lambda: len(one.got) == 29)
        await asyncio.sleep(1.0)
        assert await first_place(admin) == 1
        assert one.audit.skipped == 0
        one.audit._others.clear()
        await purged(admin, 30)
        assert one.audit.skipped == 1


async def test_writers_that_come_and_go_find_nothing_in_a_sound_stream(
    own_nats: EmbeddedBroker, admin: BrokerConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under traffic, with purges, and a kill of the server. Who dies may leave a few to be read."""
    monkeypatch.setattr(audit, "HEARD_S", 1.5)  # a slow machine takes nobody for gone
    await set_ack_wait(admin, 1)
    stopping = asyncio.Event()

    async def publish() -> int:
        count = 0
        async with joined(own_nats, "gateway") as gateway:
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
        writers = [
            await stack.enter_async_context(writing(own_nats, purges=True)) for _ in range(3)
        ]
        for number in range(4):
            async with writing(own_nats, purges=True) as guest:
                await until(lambda: guest.got, 5)
                writers.append(guest)
            if number == 2:
                hit(own_nats.pid, signal.SIGKILL)
            await asyncio.sleep(0.3)
        stopping.set()
        count = await publishing
        last = (await api(admin, f"STREAM.INFO.{STREAM}"))["state"]["last_seq"]
        await until(lambda: set(_places(*writers)) >= set(range(1, last + 1)))
        await purged(admin, last)
        assert count > 50
        assert [each.audit.skipped for each in writers] == [0] * 7


async def test_message_that_a_dead_writer_has_done_is_written_again(
    own_nats: EmbeddedBroker,
) -> None:
    """Nobody knows whether it was given to anybody, so it is; and the purge waits for it."""
    async with writing(own_nats) as one:
        await until(lambda: one.audit._is_auditor)
        # Another writer takes one and says nothing of it.
        one.puller.wanted.clear()
        await asyncio.sleep(0.4)
        async with writing(own_nats, checks=False) as dead:
            await fill(own_nats, b"a")
            await until(lambda: dead.got)
        one.acknowledges = False
        await asyncio.sleep(1.0)
        assert one.audit.checked_to == 0
        assert one.got == [], "no room for it"
        one.puller.wanted.set()
        await until(lambda: one.got)
        (again,) = one.got
        assert (again.data, again.place, again.tries, again.ack_subject) == (b"a", 1, 2, "")
        await fill(own_nats, b"b")
        await until(lambda: len(one.got) == 2)
        await asyncio.sleep(0.2)
        assert one.audit.checked_to == 0
        one.puller.working([again])
        one.puller.give_back([again])
        await until(lambda: len(one.got) == 3)
        one.puller.done(one.got[1:])
        await until(lambda: one.audit.checked_to == 2)
        assert (one.audit.read_again, one.audit.skipped) == (2, 0)


async def test_message_that_is_pending_at_a_dead_writer_comes_by_itself(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """It is not written twice."""
    await set_ack_wait(admin, 1)
    await fill(own_nats, b"a")
    async with writing(own_nats, checks=False, acknowledges=False) as dead:
        await until(lambda: dead.got)
    async with writing(own_nats) as one:
        await until(lambda: one.got, 5)
        await until(lambda: one.audit.checked_to == 1)
        assert (one.got[0].tries, one.audit.read_again) == (2, 0)


async def test_first_writer_reads_the_last_messages_again(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No writer is left that knows what was given. Up to a bound."""
    monkeypatch.setattr(audit, "BACK_MAX", 3)
    await fill(own_nats, *BODIES)
    async with writing(own_nats) as gone:
        await until(lambda: len(gone.got) == 30)
    async with writing(own_nats) as one:
        await until(lambda: one.audit.checked_to == 30)
        assert [each.place for each in one.got] == [28, 29, 30]
        async with writing(own_nats) as other:
            await until(lambda: other.audit.checked_to == 30)
            assert other.got == [], "the first one has told it"


async def test_another_stream_of_the_same_name_is_checked_from_its_begin(
    tmp_path: Path, own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """Its places begin again."""
    async with writing(own_nats, purges=True) as one:
        await fill(own_nats, *BODIES)
        await until(lambda: one.audit.checked_to == 30)
        await api(admin, f"STREAM.DELETE.{STREAM}")
        await streams.apply(admin, WANTED)
        await fill(own_nats, *BODIES[:9])
        await until(lambda: one.audit.checked_to == 9)
        assert one.audit.skipped == 0


async def test_what_is_no_telling_is_ignored(own_nats: EmbeddedBroker) -> None:
    """Other writers only may say something there, but who knows."""
    async with writing(own_nats) as one, joined(own_nats, "writer") as other:
        for said in (b"", b"{}", b"[]", b'["x","y",[[1]]]', b'["x",1,2]'):
            other.send(GIVEN, said)
        await fill(own_nats, b"a")
        await until(lambda: one.audit.checked_to == 1)
        assert one.connection.up


async def test_gateway_may_not_tell_what_writers_were_given(own_nats: EmbeddedBroker) -> None:
    """It could hide a loss."""
    async with writing(own_nats) as one, joined(own_nats, "gateway") as gateway:
        await until(lambda: one.audit._looks)
        telling = audit.Telling("0", one.audit._made, 0, 9, [], [])
        gateway.send(GIVEN, msgspec.json.encode(telling))
        await asyncio.sleep(0.2)
        assert one.audit.others == set()


async def test_successor_goes_on_where_the_auditor_has_ended(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has more done messages behind it than it reads again if nobody tells it anything."""
    monkeypatch.setattr(audit, "BACK_MAX", 3)
    async with writing(own_nats) as one:
        await until(lambda: one.audit._is_auditor)
        await fill(own_nats, *BODIES[:6])
        await until(lambda: one.audit.checked_to == 6)
        one.puller.wanted.clear()
        await until(one.puller._over.is_set)
        async with writing(own_nats, checks=False) as dead:  # it has done 7, and tells nobody
            await fill(own_nats, BODIES[6])
            await until(lambda: dead.got)
        await asyncio.sleep(0.5)
        async with writing(own_nats, pulls=False) as successor:
            successor.audit._name = "0"  # so it is the auditor
            await until(lambda: one.audit._auditor == "0")  # it knows, and has told so
            await asyncio.sleep(0.2)  # what `one` was reading has ended
            monkeypatch.setattr(audit, "HEARD_S", 2.0)  # a slow machine does not take it for gone
            assert (one.audit.checked_to, set(one.audit._open)) == (6, {7})
            one.puller.wanted.set()
            await fill(own_nats, *BODIES[7:])
            await until(lambda: len(one.got) == 29)
            await asyncio.sleep(0.5)
            assert one.audit.checked_to == successor.audit.checked_to == 6
            successor.puller.wanted.set()
            await until(lambda: successor.got)
            assert [each.data for each in successor.got] == [BODIES[6]]
            await until(lambda: one.audit.checked_to == successor.audit.checked_to == 30)
        await fill(own_nats, b"a")
        await until(lambda: one.audit.checked_to == 31)
        assert one.audit.read_again == one.audit.skipped == 0


async def test_who_knows_takes_no_guess_of_a_newcomer(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newcomer has heard nobody, and begins behind what is open. It takes over what is told."""
    monkeypatch.setattr(audit, "BACK_MAX", 3)
    async with writing(own_nats) as one:
        await until(lambda: one.audit._is_auditor)
        one.puller.wanted.clear()
        await until(one.puller._over.is_set)
        monkeypatch.setattr(one.audit, "_read_open", _nothing)
        async with writing(own_nats, checks=False) as dead:  # it has done 1, and tells nobody
            await fill(own_nats, BODIES[0])
            await until(lambda: dead.got)
        await until(lambda: set(one.audit._open) == {1})
        one.puller.wanted.set()
        await fill(own_nats, *BODIES[1:])
        await until(lambda: len(one.got) == 29)
        with monkeypatch.context() as silent:
            silent.setattr(one.audit, "tell", lambda: None)
            await asyncio.sleep(0.6)
            async with writing(own_nats) as newcomer:
                newcomer.audit._name = "0"
                monkeypatch.setattr(newcomer.audit, "_take", _nothing)
                await until(lambda: newcomer.audit._seen_to >= 27)
                await asyncio.sleep(0.2)
                assert set(one.audit._open) == {1}
                silent.undo()
                await until(lambda: 1 in newcomer.audit._open and newcomer.audit._seen_to == 30)
                await until(lambda: newcomer.audit.checked_to == 0)
                await until(lambda: one.audit._auditor == newcomer.audit._auditor == "0")
                assert 1 in one.audit._open


async def _nothing(*_: object) -> None:
    pass


def _change_looks(
    monkeypatch: pytest.MonkeyPatch,
    seen: Callable[[BrokerConnection, streams.Found], Awaitable[streams.Found]],
) -> None:
    """Let the audits see something else, and not the pullers, which give names."""
    look = streams.look

    async def changed(connection: BrokerConnection, *names: Names) -> streams.Found:
        found = await look(connection, *names)
        return found if names else await seen(connection, found)

    monkeypatch.setattr(streams, "look", changed)


async def test_writer_tells_while_the_broker_does_not_answer(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is silent is taken for gone."""
    async with writing(own_nats) as one, writing(own_nats) as other:
        await until(lambda: one.audit._is_auditor or other.audit._is_auditor)

        async def late(_: BrokerConnection, found: streams.Found) -> streams.Found:
            await asyncio.sleep(1.5)
            return found

        _change_looks(monkeypatch, late)
        await asyncio.sleep(1.0)
        assert one.audit.others
        assert other.audit.others


async def test_telling_that_comes_during_a_look_is_kept(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is older than what another writer tells of it."""
    async with writing(own_nats, pulls=False) as one, writing(own_nats) as other:
        other.audit._name = "0"
        await fill(own_nats, *BODIES[:10])
        await until(lambda: one.audit._seen_to == 10)
        late = asyncio.Event()

        async def slow(connection: BrokerConnection, found: streams.Found) -> streams.Found:
            if connection is one.connection:
                await late.wait()
            return found

        _change_looks(monkeypatch, slow)
        await asyncio.sleep(0.2)
        await fill(own_nats, *BODIES[10:])
        await until(lambda: one.audit._seen_to == 30)
        late.set()
        await _stays(one, 30)


async def _stays(writer: StreamWriter, seen_to: int) -> None:
    """Look at each step of the loop for a while: what is forgotten is soon told again."""
    async with asyncio.timeout(5):
        for _ in range(500):
            await asyncio.sleep(0.0005)
            assert writer.audit._seen_to == seen_to


def _ends_at(last: int, found: streams.Found) -> streams.Found:
    assert found.stream is not None
    state = found.stream["state"] | {"last_seq": last}
    return found._replace(stream={**found.stream, "state": state})


@pytest.mark.parametrize("seen", [True, False])
async def test_one_old_answer_changes_nothing(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, *, seen: bool
) -> None:
    """A server that is cut off may give it. The second one counts, also of what was only given."""
    async with writing(own_nats) as one:
        await fill(own_nats, *BODIES)
        await until(lambda: one.audit._seen_to == 30)
        if not seen:
            one.audit._seen_to, one.audit._given = 10, set(range(12, 31))
        old = [20]

        async def cut_off(_: BrokerConnection, found: streams.Found) -> streams.Found:
            return _ends_at(old.pop(), found) if old else found

        before = one.audit._seen_to
        _change_looks(monkeypatch, cut_off)
        monkeypatch.setattr(one.audit, "_pass", lambda *_: None)
        await until(lambda: not old)
        await _stays(one, before)
        old += [20, 20]
        await until(lambda: one.audit._seen_to < 0)
        assert one.audit._given == set()
        assert one.audit.checked_to <= 0


async def test_restored_stream_is_noticed_by_all_writers(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not tell each other for ever what was true before."""
    monkeypatch.setattr(audit, "EVERY_S", 0.4)
    monkeypatch.setattr(audit, "HEARD_S", 1.0)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(writing(own_nats))
        await asyncio.sleep(0.2)  # so they look in turns
        other = await stack.enter_async_context(writing(own_nats))
        await fill(own_nats, *BODIES)
        await until(lambda: one.audit.checked_to == other.audit.checked_to == 30)

        async def restored(_: BrokerConnection, found: streams.Found) -> streams.Found:
            return _ends_at(20, found)

        _change_looks(monkeypatch, restored)
        both = one.audit, other.audit
        await until(lambda: all(0 <= each._seen_to <= 20 for each in both))


async def test_what_does_not_fit_into_a_telling_is_not_told_as_seen_to(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 29 open messages five are told."""
    monkeypatch.setattr(audit, "TOLD_MAX", 5)
    async with writing(own_nats, pulls=False) as one, writing(own_nats, pulls=False) as other:
        one.audit._name = "0"
        await fill(own_nats, *BODIES)
        await until(lambda: one.audit._seen_to == other.audit._seen_to == 0)
        monkeypatch.setattr(one.audit, "_read_open", _nothing)
        one.audit._seen_to, one.audit._open = 30, {each: set() for each in range(2, 31)}
        await until(lambda: other.audit._open)
        assert set(other.audit._open) == {2, 3, 4, 5, 6}
        assert other.audit._seen_to == 6


async def test_what_was_checked_of_an_older_stream_is_nothing_in_a_new_one(
    own_nats: EmbeddedBroker, admin: BrokerConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The purge may see the new one first."""
    async with writing(own_nats) as one:
        await fill(own_nats, *BODIES)
        await until(lambda: one.audit.checked_to == 30)
        monkeypatch.setattr(one.audit, "_see", _nothing)
        await api(admin, f"STREAM.DELETE.{STREAM}")
        await streams.apply(admin, WANTED)
        await fill(own_nats, *BODIES[:9])
        await until(lambda: len(one.got) == 39)
        await asyncio.sleep(0.2)
        await one.purge.purge()
        assert await first_place(admin) == 1


async def test_place_that_comes_while_its_copy_is_looked_for_is_no_loss(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer was given it."""
    async with writing(own_nats) as one:
        await until(lambda: one.audit._is_auditor)
        look = streams.look_at_stream

        async def meanwhile(connection: BrokerConnection, *names: str) -> streams.Info:
            one.audit._on_given(7)
            return await look(connection, *names)

        monkeypatch.setattr(streams, "look_at_stream", meanwhile)
        one.audit._open = {7: set()}
        await one.audit._take(7, None, one.audit._looks[-1][1].leader)
        assert one.audit.skipped == 0


@pytest.mark.parametrize(
    ("since", "seen_to", "is_taken_over"),
    [
        (0, 199_999, True),
        (0, 60, False),
        (70, 200_001, False),
        (70, 400_000, True),
        (50, 199_999, False),
        (50, 200_001, True),
    ],
)
async def test_earlier_begin_is_taken_over_but_for_who_was_away_for_long(
    own_nats: EmbeddedBroker, *, since: int, seen_to: int, is_taken_over: bool
) -> None:
    """Ours is 50, and all up to 200,000 was seen to."""
    async with writing(own_nats, checks=False) as one:
        one.audit._since, one.audit._seen_to = 50, 200_000
        told = audit.Telling("0", "", since, seen_to, [], [])
        one.audit._heard(Message("", msgspec.json.encode(told), {}))
        assert (one.audit._seen_to == seen_to) is is_taken_over
