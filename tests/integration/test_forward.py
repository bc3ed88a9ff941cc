"""A forwarder between a real nats-server and a real target, with all that can go wrong there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ingest.app.process import Process
from ingest.config.settings import Settings
from ingest.dead_letters.folder.segments import live_letters
from ingest.http_client.client import target_of
from ingest.model.errors import StartError
from ingest.model.reading import REFUSED_BY_TARGET, Reading
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.forward import forwarder
from ingest.roles.forward.options import ForwardOptions
from ingest.roles.forward.service import ForwardService, ForwardWanted
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import FORWARD, STREAM, WRITER
from ingest.roles.nats.pulling import Delivery, Pull, Puller
from ingest.roles.nats.purge import StreamPurge
from ingest.roles.nats.streams import wanted_readings
from ingest.system.service_manager import Notifier
from ingest.system.state_folder import StateFolder
from tests.support.brokers import api, embedded, joined, put, until
from tests.support.brokers import messages as messages_left
from tests.support.journals import block_of
from tests.support.rows import readings
from tests.support.stream_writers import new_mark
from tests.support.webhook import Came, Webhook, items_of, message_of, messages_of

NAME = "x"
CONSUMER = FORWARD + NAME
MIB = 1024**2
WANTED = wanted_readings(replicas=1, bytes_max=64 * MIB, forwards=(CONSUMER,))
QUICK = ForwardOptions(send_retry_s_max=0.05, send_s_max=5)


@pytest.fixture
async def own_nats(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    """Give a broker with the stream and the consumer of a forwarder."""
    async with embedded(tmp_path / "broker", wanted=WANTED) as running:
        yield running


class Forwarding:
    """A service in this process, and its end."""

    def __init__(self, service: ForwardService, folder: StateFolder, process: Process) -> None:
        self.service = service
        self.folder = folder
        self.process = process

    async def stop(self) -> None:
        """Stop in order."""
        self.process.stopping.set()
        await self.service.stop()
        await self.service.close()

    def state(self) -> tuple[int, str]:
        """Return what /readyz says."""
        status, document = self.service.readyz()
        return status, json.loads(document)["state"]


@asynccontextmanager
async def forwarding(
    own_nats: EmbeddedBroker,
    url: str,
    folder: Path,
    options: ForwardOptions = QUICK,
    *,
    lag_bytes_max: int = 0,
    **wanted: Any,
) -> AsyncIterator[Forwarding]:
    """Run a forwarder in this process."""
    settings = Settings(stream_bytes_max=64 * MIB, forward_lag_bytes_max=lag_bytes_max)
    state = StateFolder.open(folder / "state")
    process = Process("forward", lambda _line: None, Notifier())
    service = ForwardService(
        settings,
        ForwardWanted(NAME, target_of(url), options=options, **wanted),
        state,
        process,
        lambda: own_nats.published.address("forward"),
    )
    try:
        await service.start("127.0.0.1:0")
        running = Forwarding(service, state, process)
        try:
            yield running
        finally:
            await running.stop()
    finally:
        process.stopping.set()
        await service.close()


async def fill(own_nats: EmbeddedBroker, messages: list[bytes]) -> None:
    """Put messages into the stream."""
    async with joined(own_nats, "gateway") as gateway:
        await put(gateway, *messages)


async def floor(admin: BrokerConnection, consumer: str = CONSUMER) -> int:
    """Return the place up to which a consumer has done all."""
    place: int = (await api(admin, f"CONSUMER.INFO.{STREAM}.{consumer}"))["ack_floor"]["stream_seq"]
    return place


async def floor_is(admin: BrokerConnection, place: int, consumer: str = CONSUMER) -> None:
    """Wait until all up to a place is done."""
    async with asyncio.timeout(10):
        while await floor(admin, consumer) != place:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.01)


async def write_all(own_nats: EmbeddedBroker, admin: BrokerConnection, place: int) -> None:
    """Let the writers have done all messages up to a place."""
    count = place - await floor(admin, WRITER)
    async with joined(own_nats, "writer") as connection:
        stopping = asyncio.Event()

        def take(each: Delivery) -> None:
            puller.done([each])
            if each.place == place:
                stopping.set()  # or it would pull more

        puller = Puller(
            connection,
            consumer=WRITER,
            take=take,
            skipped=lambda _: None,
            pull=Pull(count),
        )
        puller.wanted.set()
        running = asyncio.create_task(puller.run(stopping))
        await floor_is(admin, place, WRITER)
        await running


async def test_each_reading_comes_once_by_its_key_though_the_target_fails(
    own_nats: EmbeddedBroker, admin: BrokerConnection, tmp_path: Path
) -> None:
    """It fails before it has kept a post and after it, cuts connections, and asks for pauses."""
    those = readings(600)

    async def behave(came: Came) -> web.StreamResponse | None:
        if came.number % 3:
            return None
        kind = came.number // 3 % 5
        if kind == 1:  # the answer is lost
            target.keep(came)
            raise ConnectionResetError
        if kind == 2:
            target.keep(came)
        return web.Response(status=(500, 0, 503, 429, 408)[kind], headers={"Retry-After": "0"})

    async with Webhook(behave) as target:
        await fill(own_nats, messages_of(those, 20))
        async with forwarding(own_nats, target.url, tmp_path) as running:
            await floor_is(admin, 30)
            tally = running.service.tally
            assert (tally.sent, tally.dead_lettered, tally.skipped) == (600, 0, 0)
            assert tally.posts["204"] == 30
            assert tally.posts["503"] > 0
    assert sorted(target.items) == sorted(items_of(those))
    assert len(target.kept) == 30
    assert target.again > 0


async def test_order_is_that_of_the_stream_with_one_post_at_once(
    own_nats: EmbeddedBroker, admin: BrokerConnection, tmp_path: Path
) -> None:
    """While nothing is delivered twice; a failure delays all that come behind it."""
    those = readings(60)

    async def behave(came: Came) -> web.StreamResponse | None:
        return web.Response(status=500) if came.number % 4 == 0 else None

    async with Webhook(behave) as target:
        await fill(own_nats, messages_of(those, 3))
        async with forwarding(own_nats, target.url, tmp_path, replace(QUICK, in_flight=1)):
            await floor_is(admin, 20)
    assert target.items == items_of(those)


async def test_broker_is_told_that_messages_are_still_in_work(
    own_nats: EmbeddedBroker,
    admin: BrokerConnection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that are sent and those that wait: a slow target gets no post twice."""
    monkeypatch.setattr(forwarder, "WORKING_S", 0.1)
    config = (await api(admin, f"CONSUMER.INFO.{STREAM}.{CONSUMER}"))["config"]
    body = {"stream_name": STREAM, "config": {**config, "ack_wait": 500_000_000}}
    await api(admin, f"CONSUMER.CREATE.{STREAM}.{CONSUMER}", {**body, "action": "update"})

    async def slow(_came: Came) -> web.StreamResponse | None:
        await asyncio.sleep(0.8)
        return None

    async with Webhook(slow) as target:
        await fill(own_nats, messages_of(readings(80), 10))
        async with forwarding(own_nats, target.url, tmp_path):
            await floor_is(admin, 8)
            info = await api(admin, f"CONSUMER.INFO.{STREAM}.{CONSUMER}")
            assert info["delivered"]["consumer_seq"] == 8


async def test_what_is_refused_becomes_dead_letters_and_no_redirect_is_followed(
    own_nats: EmbeddedBroker, admin: BrokerConnection, tmp_path: Path
) -> None:
    """Each reading is one; the rest goes on. A redirect is a refusal."""
    those = readings(50)

    async def behave(came: Came) -> web.StreamResponse | None:
        if b'"value":0.0' in came.body:
            return web.Response(status=422, text="no zero, please")
        if b'"value":1.0' in came.body:
            return web.Response(status=307, headers={"Location": elsewhere.url})
        return None

    async with Webhook() as elsewhere, Webhook(behave) as target:
        await fill(own_nats, messages_of(those, 10))
        async with forwarding(
            own_nats, target.url, tmp_path, replace(QUICK, in_flight=1)
        ) as running:
            await floor_is(admin, 5)
            tally = running.service.tally
            assert (tally.sent, tally.dead_lettered) == (30, 20)
            letters = [each.letter for each in live_letters(running.folder.dead_letters)]
        assert elsewhere.came == []
    assert sorted(target.items) == sorted(items_of(those[20:]))
    assert [each.reading for each in letters] == those[:20]
    assert {each.reason for each in letters} == {REFUSED_BY_TARGET}
    assert [each.code for each in letters] == ["http_422"] * 10 + ["http_307"] * 10
    assert letters[0].message == "the target has answered 422: no zero, please"


async def test_target_that_refuses_all_costs_few_dead_letters(
    own_nats: EmbeddedBroker, admin: BrokerConnection, tmp_path: Path
) -> None:
    """After ten posts in a row it is the target that is wrong: it is tried until it takes one."""
    those = readings(200)

    async def behave(came: Came) -> web.StreamResponse | None:
        return web.Response(status=404) if broken else None

    broken = True
    async with Webhook(behave) as target:
        await fill(own_nats, messages_of(those, 10))
        async with forwarding(own_nats, target.url, tmp_path) as running:
            await until(lambda: len(target.came) > 40)
            assert running.service.tally.dead_lettered == 100
            assert running.state() == (503, "target_away")
            broken = False
            await floor_is(admin, 20)
            assert running.state() == (200, "forwarding")
            letters = [each.letter.reading for each in live_letters(running.folder.dead_letters)]
    kept = {tuple(each) for each in items_of([each for each in letters if each is not None])}
    assert len(kept) == 100
    assert kept | set(target.items) == set(items_of(those))
    assert len(target.items) == 100


async def test_stop_gives_back_at_once_what_was_not_taken(
    own_nats: EmbeddedBroker, tmp_path: Path
) -> None:
    """The next process has it long before the broker would give up the first one."""
    those = readings(40)
    hanging = asyncio.Event()

    async def hang(_came: Came) -> web.StreamResponse | None:
        await hanging.wait()
        return web.Response(status=500)

    async with Webhook(hang) as target:
        await fill(own_nats, messages_of(those, 8))  # so few that the last request stays open
        async with forwarding(own_nats, target.url, tmp_path) as first:
            await until(lambda: len(target.came) == 4)
            first.process.stopping.set()
            first.process.halted.set()  # as a second signal
            await first.service.stop()
            assert first.service.tally.sent == 0
        target.behave = _take
        async with forwarding(own_nats, target.url, tmp_path):
            await until(lambda: len(target.items) == 40, within_s=5)
        hanging.set()
    assert sorted(target.items) == sorted(items_of(those))


async def _take(_came: Came) -> web.StreamResponse | None:
    return None


async def test_forwarder_beyond_its_lag_passes_over_what_the_writers_have_done(
    own_nats: EmbeddedBroker,
    admin: BrokerConnection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Never more; the newest messages are sent when the target is back, and all are counted."""
    monkeypatch.setattr(forwarder, "LOOK_S", 0.05)
    those = readings(4_000)
    messages = messages_of(those, 40)
    target = Webhook()  # it does not listen yet
    await fill(own_nats, messages)
    size = sum(map(len, messages))
    async with forwarding(own_nats, target.url, tmp_path, lag_bytes_max=size // 2) as running:
        service = running.service
        await until(lambda: service.tally.posts["none"] > 3)
        await asyncio.sleep(0.3)  # many looks
        assert service.tally.skipped_messages["lag"] == 0
        assert service.watch.lag.messages == 100
        await write_all(own_nats, admin, 30)
        await until(lambda: service.tally.skipped_messages["lag"] == 30)
        await write_all(own_nats, admin, 100)
        await until(lambda: service.watch.lag.messages < 50)
        skipped = service.tally.skipped_messages["lag"]
        assert 50 <= skipped < 70
        assert service.tally.skipped == 40 * skipped
        async with target:
            await floor_is(admin, 100)
        assert service.tally.sent == 4_000 - 40 * skipped
    assert sorted(target.items) == sorted(items_of(those[40 * skipped :]))


async def test_purge_does_not_wait_for_a_forwarder_that_does_not_run(
    own_nats: EmbeddedBroker, admin: BrokerConnection, tmp_path: Path
) -> None:
    """Beyond the bound only, and never beyond the writers; what is left is sent later."""
    those = readings(1_000)
    messages = messages_of(those, 10)
    await fill(own_nats, messages)
    size = sum(map(len, messages))
    async with joined(own_nats, "writer") as connection:

        def purge_at(lag_bytes: int) -> StreamPurge:
            return StreamPurge(
                connection,
                forwards=(CONSUMER,),
                keep_s=0,
                checked_to=lambda _made: 1_000,
                delivered_bytes=int,
                mark=new_mark(),
                forward_lag_bytes_max=lag_bytes,
            )

        await write_all(own_nats, admin, 20)
        for bound, left in ((2 * size, 100), (size // 2, 80)):
            purge = purge_at(bound)
            assert await purge.purge()
            assert await messages_left(admin) == left
            assert purge.unforwarded == 100 - left
        await write_all(own_nats, admin, 100)
        purge = purge_at(size // 2)
        assert await purge.purge()
        left = await messages_left(admin)
        assert 30 < left < 50
        assert purge.unforwarded == 80 - left
    async with Webhook() as target, forwarding(own_nats, target.url, tmp_path):
        await floor_is(admin, 100)
    assert sorted(target.items) == sorted(items_of(those[-10 * left :]))


async def test_retry_after_holds_all_posts_back(
    own_nats: EmbeddedBroker, admin: BrokerConnection, tmp_path: Path
) -> None:
    """Also those that were not under way when the target asked for it."""
    loop = asyncio.get_running_loop()
    began: list[float] = []

    async def behave(came: Came) -> web.StreamResponse | None:
        began.append(loop.time())
        return web.Response(status=503, headers={"Retry-After": "1"}) if came.number == 1 else None

    async with Webhook(behave) as target:
        options = replace(QUICK, in_flight=1, send_retry_s_max=60)
        async with forwarding(own_nats, target.url, tmp_path, options):
            await fill(own_nats, messages_of(readings(30), 10))
            await floor_is(admin, 3)
    assert len(began) == 4
    assert began[1] - began[0] >= 0.99


async def test_message_of_nobody_and_a_removed_one_are_passed_over_and_counted(
    own_nats: EmbeddedBroker, admin: BrokerConnection, tmp_path: Path
) -> None:
    """The writers keep the bytes of the first; of the second only its number is known."""
    garbled = bytearray(message_of(block_of(readings(3)), 1))
    garbled[-1] ^= 1
    forged = block_of(readings(3))
    forged.tuples = forged.tuples[:-1]
    good = messages_of(readings(6), 3)
    async with Webhook() as target, forwarding(own_nats, target.url, tmp_path) as running:
        await fill(own_nats, [b"", bytes(garbled), message_of(forged, 2), good[0]])
        await floor_is(admin, 4)
        tally = running.service.tally
        assert (tally.skipped_messages["not_ours"], tally.sent) == (3, 3)
    await fill(own_nats, good)
    answer = await api(admin, f"STREAM.PURGE.{STREAM}", {"seq": 6})
    assert answer["purged"] == 5
    async with Webhook() as target, forwarding(own_nats, target.url, tmp_path) as running:
        await floor_is(admin, 6)
        assert running.service.tally.sent == 3


async def test_messages_that_the_stream_does_not_deliver_are_counted(
    own_nats: EmbeddedBroker, admin: BrokerConnection, tmp_path: Path
) -> None:
    """As those that somebody has removed, or that are damaged."""
    hanging = asyncio.Event()

    async def hang(_came: Came) -> web.StreamResponse | None:
        await hanging.wait()
        return None

    async with Webhook(hang) as target:
        await fill(own_nats, messages_of(readings(30), 3))
        options = replace(QUICK, in_flight=1)
        async with forwarding(own_nats, target.url, tmp_path, options) as running:
            tally = running.service.tally
            await until(lambda: len(target.came) == 1)
            await api(admin, f"STREAM.PURGE.{STREAM}", {"seq": 9})
            hanging.set()
            await until(lambda: tally.sent == 4 * 3)  # two were held
            assert tally.skipped_messages["missing"] == 6


async def test_full_dead_letters_hold_a_message_and_lose_nothing(
    own_nats: EmbeddedBroker, admin: BrokerConnection, tmp_path: Path
) -> None:
    """It is sent again until there is space, or the target takes it."""
    those = [Reading(1_700_000_000_000_000 + n, f"device-{n}", "m" * 120, 0.5) for n in range(600)]

    async def refuse(came: Came) -> web.StreamResponse | None:
        return web.Response(status=400) if refusing else None

    refusing = True
    async with Webhook(refuse) as target:
        await fill(own_nats, messages_of(those, 100))
        settings = Settings(dlq_bytes_max=96 * 1024)
        state = StateFolder.open(tmp_path / "state")
        process = Process("forward", lambda _line: None, Notifier())
        service = ForwardService(
            settings,
            ForwardWanted(NAME, target_of(target.url), options=QUICK),
            state,
            process,
            lambda: own_nats.published.address("forward"),
        )
        await service.start("127.0.0.1:0")
        running = Forwarding(service, state, process)
        await until(lambda: "no space" in service.readyz()[1].decode())
        set_aside = service.tally.dead_lettered
        assert 0 < set_aside < 600
        refusing = False
        await floor_is(admin, 6)
        await running.stop()
        assert service.tally.sent == 600 - set_aside
        assert len(list(live_letters(state.dead_letters))) == set_aside


async def test_start_without_the_consumer_says_what_to_do(
    own_nats: EmbeddedBroker, admin: BrokerConnection, tmp_path: Path
) -> None:
    """It makes nothing itself: a name with a fault would keep the stream for ever."""
    await api(admin, f"CONSUMER.DELETE.{STREAM}.{CONSUMER}")
    with pytest.raises(StartError, match="no consumer forward-x: name this forwarder in the set"):
        async with forwarding(own_nats, "http://localhost:9/", tmp_path):
            pass


async def test_consumer_deleted_meanwhile_is_told(
    own_nats: EmbeddedBroker,
    admin: BrokerConnection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until it is there again."""
    monkeypatch.setattr(forwarder, "LOOK_S", 0.05)
    async with forwarding(own_nats, "http://localhost:9/", tmp_path) as running:
        await until(lambda: running.state() == (200, "forwarding"))
        await api(admin, f"CONSUMER.DELETE.{STREAM}.{CONSUMER}")
        await until(lambda: running.state() == (503, "no_consumer"))


async def test_role_may_not_use_the_consumer_of_the_writers(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """Nor make or delete one: the counts of the broker stay as they are."""
    await fill(own_nats, messages_of(readings(3), 3))
    async with joined(own_nats, "forward") as connection:
        connection.send(f"$JS.API.CONSUMER.DELETE.{STREAM}.{WRITER}")
        connection.send(f"$JS.API.CONSUMER.CREATE.{STREAM}.forward-y", b"{}")
        connection.send(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{WRITER}", b'{"batch":1}')
        await connection.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", 5)  # all of it has arrived
    names = (await api(admin, f"CONSUMER.NAMES.{STREAM}"))["consumers"]
    assert sorted(names) == [CONSUMER, WRITER]
    info = await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}")
    assert info["delivered"]["consumer_seq"] == 0
