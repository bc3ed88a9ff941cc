"""What the bridge holds has a bound; and what answers of the service mean for its messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest

from ingest.http_client.client import ServerReply, target_of
from ingest.model.errors import DeadLettersFull
from ingest.mqtt.bridge import HELD_BYTES_MAX, MqttBridge, PostVerdict, answer_of
from ingest.mqtt.connection import MqttMessage
from ingest.mqtt.gathering import JsonForm
from ingest.mqtt.options import MqttOptions, MqttWanted, mqtt_address
from ingest.mqtt.session import MqttSession
from ingest.mqtt.tally import MqttTally
from tests.support.receiver import until

TAKEN, REFUSED = PostVerdict.TAKEN, PostVerdict.REFUSED
NOT_NOW, AGAIN = PostVerdict.NOT_NOW, PostVerdict.AGAIN
LARGE = b" " * (HELD_BYTES_MAX // 4)


@asynccontextmanager
async def bridge(letters: AsyncMock, tally: MqttTally) -> AsyncIterator[MqttBridge]:
    """Run a bridge to a service that answers 413 to everything."""
    poster = Mock()
    poster.post = AsyncMock(return_value=ServerReply(413, "", b'{"code": "body_too_large"}'))
    made = MqttBridge(
        poster,
        JsonForm(),
        letters,
        tally,
        headers=dict,
        options=MqttOptions(
            send_messages_max=10,
            send_rows_max=10,
            send_bytes_max=1_000,
            send_linger_s=0.001,
            send_retry_s_max=60.0,
        ),
    )
    stopping, aborted = asyncio.Event(), asyncio.Event()
    work = asyncio.create_task(made.run(stopping, aborted, 1.0))
    try:
        yield made
    finally:
        stopping.set()
        await work


async def test_large_messages_that_are_set_aside_have_a_bound() -> None:
    """Further ones become dead letters: nobody knows when the limit is raised."""
    letters, tally = AsyncMock(), MqttTally()
    async with bridge(letters, tally) as made:
        connection = Mock(is_open=True)
        for number in range(1, 8):
            body = b'{"n": %d, "text": "%b"}' % (number, LARGE)
            made.take(MqttMessage("t", body, number, packet_id=number, connection=connection))
            await asyncio.sleep(0.01)
        await until(lambda: letters.append.await_count == 4)
        assert made.set_aside_messages == 3


async def test_large_messages_that_find_no_place_stop_the_reading() -> None:
    """While there is no space for dead letters, what is no JSON waits here, up to a bound."""
    letters, tally = AsyncMock(), MqttTally()
    letters.append.side_effect = DeadLettersFull("full")
    async with bridge(letters, tally) as made:
        connection = Mock(is_open=True)
        for number in range(1, 5):
            made.take(MqttMessage("t", b"x" + LARGE, number, packet_id=1, connection=connection))
            await asyncio.sleep(0.01)
        connection.pause.assert_called()
        made.take(MqttMessage("t", b"{}", 9))  # QoS 0: nobody keeps it
        assert tally.dropped == 1


@pytest.mark.parametrize(
    ("status", "code", "verdict"),
    [
        *((status, "", TAKEN) for status in (200, 202, 204)),
        (400, "not_json", REFUSED),
        (400, "not_lines", REFUSED),
        (400, "bad_parameter", REFUSED),
        (422, "all_invalid", REFUSED),
        (422, "dead_letters_full", REFUSED),
        *((413, code, NOT_NOW) for code in ("body_too_large", "too_many_readings", "")),
        (403, "outside_scope", NOT_NOW),
        (403, "foreign_site", AGAIN),
        *((status, "", AGAIN) for status in (301, 400, 401, 403, 404, 405, 408, 415, 421, 429)),
        *((400, code, AGAIN) for code in ("ack_unavailable", "needs_tls")),
        *((status, "buffer_full", AGAIN) for status in (500, 502, 503, 504, 599)),
    ],
)
def test_only_what_is_about_the_messages_gives_them_up(
    status: int, code: str, verdict: PostVerdict
) -> None:
    """In both forms of an error: that of our own path, and that of line protocol."""
    assert answer_of(status, json.dumps({"code": code}).encode()).verdict is verdict
    lines = {"code": "invalid", "problem": code}
    assert answer_of(status, json.dumps(lines).encode()).verdict is verdict


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code":7,"detail":[]}', b"\xff"])
def test_any_body_can_be_read(body: bytes) -> None:
    """A proxy may answer; and its 400 is not about messages."""
    assert answer_of(400, body).verdict is AGAIN
    assert answer_of(204, body).verdict is TAKEN


def test_an_answer_that_holds_for_each_message_needs_no_halves() -> None:
    """The reason of the first error is told."""
    body = json.dumps({"code": "all_invalid", "detail": "x", "errors": [{"message": "y"}]})
    answer = answer_of(422, body.encode())
    assert answer.for_each
    assert answer.why == "422 all_invalid: x: y"
    assert not answer_of(400, b'{"code":"not_json"}').for_each


CONNACK = bytes.fromhex("2003000000")
TAKEN_OVER = bytes.fromhex("e0028e00")


async def greet_and_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a client; end it for another one when it subscribes."""
    for answer in (CONNACK, TAKEN_OVER):
        await reader.read(1024)
        writer.write(answer)
    writer.close()


async def test_take_over_before_the_subscription_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And with its reason: the failed start of the same connection is no news."""
    told = list[str]()
    monkeypatch.setattr(MqttSession, "_failed", lambda _session, why: told.append(why))
    server = await asyncio.start_server(greet_and_end, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    address, target = mqtt_address(f"mqtt://127.0.0.1:{port}"), target_of("http://127.0.0.1:9/")
    session = MqttSession(
        MqttWanted("x", address, "mine", ("a/#",), target),
        MqttTally(),
        tls=None,
        take=lambda _: None,
        topics_file=tmp_path / "topics",
    )
    stopping = asyncio.Event()
    async with server, asyncio.timeout(20):
        running = asyncio.create_task(session.run(stopping))
        while not told:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        stopping.set()
        await running
    assert told == ["another client has connected with our client id mine (--client-id)"]
