"""What the bridge holds has a bound in bytes, whatever becomes of the messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import AsyncMock, Mock

from ingest.http_client.client import ServerReply
from ingest.model.errors import DeadLettersFull
from ingest.mqtt.bridge import HELD_BYTES_MAX, MqttBridge
from ingest.mqtt.connection import MqttMessage
from ingest.mqtt.gathering import JsonForm, PostBounds
from ingest.mqtt.tally import MqttTally
from tests.support.receiver import until

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
        bounds=PostBounds(10, 10, 1_000),
        held_max=1_000,
        in_flight=2,
        linger_s=0.001,
        retry_s_max=60.0,
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
