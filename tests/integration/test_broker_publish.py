"""Publishing to the real nats-server: stored when it says so, and once, whatever happens."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.buffers.frames import HEAD_BYTES, encode_head, is_whole
from ingest.model.errors import (
    BrokerAway,
    BrokerFull,
    BrokerOutcomeUnknown,
    BrokerRefused,
)
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats import session as line
from ingest.roles.nats.connection import BrokerConnection, connected
from ingest.roles.nats.protocol import STREAM, SUBJECT, Address
from ingest.roles.nats.publishing import Publisher
from tests.support.brokers import (
    api,
    is_up,
    joined,
    messages,
    plain_server,
    put,
    until,
)
from tests.support.faulty_proxy import FaultyProxy
from tests.support.journals import make_block


@pytest.fixture
async def proxy(own_nats: EmbeddedBroker) -> AsyncIterator[FaultyProxy]:
    """Give a proxy to the broker that misbehaves on request."""
    async with FaultyProxy("127.0.0.1", own_nats.published.endpoints.port) as running:
        yield running


@pytest.fixture
async def gateway(own_nats: EmbeddedBroker, proxy: FaultyProxy) -> AsyncIterator[BrokerConnection]:
    """Give a connection of a gateway, by the proxy."""
    direct = own_nats.published.address("gateway")
    by_proxy = Address((f"nats://127.0.0.1:{proxy.port}",), direct.user, direct.password)
    async with joined(lambda: by_proxy, "gateway") as connection:
        yield connection


def publisher(connection: BrokerConnection, **more: float) -> Publisher:
    """Return a publisher to the stream."""
    return Publisher(connection, subject=SUBJECT, stream=STREAM, **more)


async def stored(admin: BrokerConnection) -> list[bytes]:
    """Return the messages of the stream, in order."""
    count = await messages(admin)
    found = [
        await api(admin, f"STREAM.MSG.GET.{STREAM}", {"seq": sequence})
        for sequence in range(1, count + 1)
    ]
    return [base64.b64decode(each["message"]["data"]) for each in found]


async def test_published_frame_is_stored_byte_for_byte(
    gateway: BrokerConnection, admin: BrokerConnection
) -> None:
    """The result has the place in the stream; the message is the frame, with its CRC."""
    block = make_block(3)
    block.sequence = 7
    frame = encode_head(block, 0) + block.tuples
    ack = await publisher(gateway).publish("life-7", frame)
    assert (ack.sequence, ack.duplicate) == (1, False)
    (found,) = await stored(admin)
    assert found == frame
    assert is_whole(found, 0)
    assert found[HEAD_BYTES:] == block.tuples


def tries(publishing: Publisher) -> int:
    """Return how often the only message under way was sent."""
    (publish,) = publishing._under_way
    return len(publish.tokens)


async def test_lost_answer_is_asked_for_again_on_reconnect_and_stored_once(
    gateway: BrokerConnection, proxy: FaultyProxy, admin: BrokerConnection
) -> None:
    """T4: what was under way is sent again at once, long before the time of a try is over."""
    publishing = publisher(gateway, try_s_max=30, wait_s_max=60)
    lost = proxy.lose_replies(until=b'"seq"', after=(b"HPUB",))
    async with asyncio.timeout(5):
        acks = await asyncio.gather(*(publishing.publish(f"m{n}", b"x") for n in range(4)))
    assert lost.is_set()
    assert any(each.duplicate for each in acks)
    assert await messages(admin) == 4
    assert not publishing._under_way


async def test_answer_that_does_not_come_is_asked_for_again(
    gateway: BrokerConnection, proxy: FaultyProxy, admin: BrokerConnection
) -> None:
    """A connection that only stalls is not left; the late answer to the first try counts too."""
    publishing = publisher(gateway, try_s_max=0.1)
    proxy.stall("to_client")
    result = publishing.publish("m", b"x")
    await until(lambda: tries(publishing) >= 3)
    proxy.resume()
    assert (await result).sequence == 1
    assert await messages(admin) == 1


@pytest.mark.parametrize("size_bytes", [10, 7 * 1024**2])
async def test_stop_does_not_wait_for_a_server_that_takes_nothing(
    own_nats: EmbeddedBroker, proxy: FaultyProxy, size_bytes: int
) -> None:
    """Also in the middle of a large message, where the library hides that we cancel."""
    direct = own_nats.published.address("gateway")
    by_proxy = Address((f"nats://127.0.0.1:{proxy.port}",), direct.user, direct.password)
    async with asyncio.timeout(8):
        async with joined(lambda: by_proxy, "gateway") as gateway:
            proxy.stall()
            for _ in range(3):
                assert gateway.send(SUBJECT, bytes(size_bytes))
            await asyncio.sleep(0.2)
        assert not gateway.up
        proxy.resume()


async def test_frozen_server_is_left_and_found_again(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, admin: BrokerConnection
) -> None:
    """A server that does not answer pings is away; a message waits and is stored once."""
    monkeypatch.setattr(line, "PING_S", 0.1)
    monkeypatch.setattr(line, "PONG_S_MAX", 0.3)
    async with joined(own_nats, "gateway") as gateway:
        publishing = publisher(gateway)
        assert own_nats.pid is not None
        os.kill(own_nats.pid, signal.SIGSTOP)
        result = publishing.publish("m", b"x" * 400_000)
        await is_up(gateway, False)
        assert "ping" in gateway.why_away
        os.kill(own_nats.pid, signal.SIGCONT)
        assert (await result).sequence == 1
    await is_up(admin)
    assert await messages(admin) == 1


async def test_missing_stream_is_a_broker_that_is_away(
    gateway: BrokerConnection, admin: BrokerConnection
) -> None:
    """Nobody answers: nothing is stored, and the message fails at its deadline, not before."""
    await api(admin, f"STREAM.DELETE.{STREAM}")
    began = asyncio.get_running_loop().time()
    with pytest.raises(BrokerAway, match="no stream"):
        await publisher(gateway, wait_s_max=0.4).publish("m", b"x")
    assert 0.35 <= asyncio.get_running_loop().time() - began < 2


async def test_broker_out_of_reach_is_known_to_store_nothing(
    gateway: BrokerConnection, proxy: FaultyProxy
) -> None:
    """A message that was never sent is not in doubt; one that was sent is."""
    publishing = publisher(gateway, wait_s_max=0.4)
    proxy.stall()
    sent = publishing.publish("sent", b"x")
    await asyncio.sleep(0.05)
    await proxy.close()
    await is_up(gateway, False)
    with pytest.raises(BrokerAway):
        await publishing.publish("never sent", b"x")
    with pytest.raises(BrokerOutcomeUnknown):
        await sent


async def test_full_stream_refuses_at_once_and_takes_the_same_message_later(
    gateway: BrokerConnection, admin: BrokerConnection
) -> None:
    """`discard new`: what is there stays, and the id of a refused message is not remembered."""
    await _shrink(admin, 3_000)
    publishing = publisher(gateway)
    assert (await publishing.publish("a", b"x" * 2_000)).sequence == 1
    with pytest.raises(BrokerFull, match="maximum bytes"):
        await publishing.publish("b", b"y" * 2_000)
    await api(admin, f"STREAM.PURGE.{STREAM}")
    assert not (await publishing.publish("b", b"y" * 2_000)).duplicate
    assert await messages(admin) == 1


async def test_full_stream_is_no_definite_answer_once_a_try_was_in_doubt(
    own_nats: EmbeddedBroker,
    gateway: BrokerConnection,
    admin: BrokerConnection,
    proxy: FaultyProxy,
) -> None:
    """The first try may have been stored and purged, so nobody says that nothing was kept."""
    publishing = publisher(gateway, try_s_max=0.1, wait_s_max=0.8)
    proxy.stall("to_server")
    result = publishing.publish("m", b"x" * 2_000)
    await until(lambda: tries(publishing) >= 2)
    await _shrink(admin, 100)
    proxy.resume()
    with pytest.raises(BrokerOutcomeUnknown, match="maximum bytes"):
        await result
    assert await messages(admin) == 0


async def _shrink(admin: BrokerConnection, bytes_max: int) -> None:
    config = (await api(admin, f"STREAM.INFO.{STREAM}"))["config"]
    answer = await api(admin, f"STREAM.UPDATE.{STREAM}", config | {"max_bytes": bytes_max})
    assert "error" not in answer


async def test_refused_message_is_refused_at_once(
    own_nats: EmbeddedBroker, gateway: BrokerConnection, admin: BrokerConnection
) -> None:
    """Larger than the broker allows, and a stream that is not the expected one."""
    with pytest.raises(BrokerRefused, match="max_payload"):
        await publisher(gateway).publish("m", bytes(8 * 1024**2))
    assert gateway.up, "the server would have cut the connection"
    other = Publisher(gateway, subject=SUBJECT, stream="ANOTHER")
    with pytest.raises(BrokerRefused, match="10060"):
        await other.publish("m", b"x")
    assert await messages(admin) == 0


async def test_cancelled_publish_is_forgotten(
    gateway: BrokerConnection, proxy: FaultyProxy
) -> None:
    """Nothing of it stays in memory."""
    publishing = publisher(gateway, try_s_max=0.05)
    proxy.stall()
    result = publishing.publish("m", b"x")
    await asyncio.sleep(0.1)
    result.cancel()
    await until(lambda: not publishing._under_way)
    proxy.resume()
    assert (await publishing.publish("n", b"x")).sequence >= 1


async def test_request_ends_with_its_connection(
    own_nats: EmbeddedBroker, gateway: BrokerConnection, proxy: FaultyProxy
) -> None:
    """It does not wait for its own time; afterwards the connection is there again."""
    proxy.stall("to_client")
    asking = asyncio.create_task(gateway.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", 30))
    await asyncio.sleep(0.05)
    proxy.resume()
    proxy.stall("to_client")
    await proxy.cut()
    async with asyncio.timeout(5):
        with pytest.raises(BrokerAway):
            await asking
        proxy.resume()
        await is_up(gateway)
        await put(gateway, b"x")


async def test_another_users_server_is_not_sent_a_password(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, admin: BrokerConnection
) -> None:
    """If another user has our port, we do not log in."""
    monkeypatch.setattr(line, "has_foreign_owner", lambda _: True)
    connection = BrokerConnection(lambda: own_nats.published.address("gateway"), "gateway")
    stopping = asyncio.Event()
    running = asyncio.create_task(connection.run(stopping))
    await connection.tried.wait()
    assert not connection.up
    assert "another user" in connection.why_away
    stopping.set()
    await running


async def test_broker_is_reached_by_tls_and_only_with_the_right_certificate(
    tmp_path: Path, free_port: int
) -> None:
    """A tls:// URL checks the server; one that it does not know is not sent a password."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1")
    named = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(key), "-out", str(certificate))
    done = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", *words, *named, *files), stderr=asyncio.subprocess.DEVNULL
    )
    assert await done.wait() == 0
    config = f"""
tls {{ cert_file: "{certificate}", key_file: "{key}" }}
authorization {{ user: me, password: secret }}
"""
    async with plain_server(config, tmp_path, free_port):
        address = Address((f"tls://127.0.0.1:{free_port}",), "me", "secret", str(certificate))
        async with connected(address, "admin") as connection:
            assert connection.up
            assert connection.send("anything", b"x" * 100_000)
        with pytest.raises(BrokerAway, match="certificate"):
            async with connected(address._replace(ca_file=""), "admin"):
                pass


async def test_tls_url_sends_nothing_to_a_server_that_says_it_has_no_tls(free_port: int) -> None:
    """Whoever sits between could say so, to get the password: the library would log in."""
    got: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"version":"2.15.1","max_payload":8000000,"auth_required":true}\r\n')
        got.append(await reader.read())
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", free_port):
        address = Address((f"tls://127.0.0.1:{free_port}",), "me", "secret")
        with pytest.raises(BrokerAway, match="offers no TLS"):
            async with connected(address, "admin"):
                pass
        await until(lambda: got)
    assert got == [b""]


async def test_connection_ends_also_if_a_ping_misses_its_cancellation(
    own_nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `wait_for` on Python 3.11, if the answer comes in the same moment."""
    pinging = asyncio.Event()

    async def rtt(client: object, timeout: int) -> float:
        pinging.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(5)
        return 0.0

    monkeypatch.setattr(line, "PING_S", 0.01)
    monkeypatch.setattr("nats.aio.client.Client.rtt", rtt)
    async with asyncio.timeout(3), joined(own_nats, "gateway"):
        await pinging.wait()
