"""Dead letters in the stream of a real broker, for tests."""

from __future__ import annotations

from typing import Any

from ingest.dead_letters.queue import DeadLetterQueue
from ingest.dead_letters.store import LetterStore, LiveLetter, Selection, Tally, once
from ingest.model.reading import Letter
from ingest.roles.letters import StreamBackend, StreamLetterStore
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.messages import StreamMessages
from ingest.roles.nats.protocol import DEAD_LETTERS
from tests.support.brokers import LETTERS, api


def stream_queue(
    connection: BrokerConnection, bytes_max: int = LETTERS.stream["max_bytes"], **waits: float
) -> DeadLetterQueue:
    """Return dead letters in the stream, in the running event loop."""
    return DeadLetterQueue(StreamBackend(connection, **waits), bytes_max=bytes_max)


def store_of(connection: BrokerConnection) -> StreamLetterStore:
    """Return the letters of the stream."""
    return StreamLetterStore(StreamMessages(connection))


async def live(store: LetterStore, where: Selection = Selection()) -> list[LiveLetter]:  # noqa: B008
    """Return the live letters, oldest first, with every copy."""
    return [each async for part in store.oldest(where, Tally()) for each in part]


async def kept(connection: BrokerConnection) -> list[Letter]:
    """Return the live letters of the stream as they are listed: each once."""
    return [each.letter async for each in once(store_of(connection).oldest(Selection(), Tally()))]


async def count(connection: BrokerConnection) -> int:
    """Return how many messages the stream has."""
    found: int = (await api(connection, f"STREAM.INFO.{DEAD_LETTERS}"))["state"]["messages"]
    return found


async def change(connection: BrokerConnection, **settings: Any) -> None:
    """Change settings of the stream, as an operator may."""
    config = (await api(connection, f"STREAM.INFO.{DEAD_LETTERS}"))["config"]
    answer = await api(connection, f"STREAM.UPDATE.{DEAD_LETTERS}", config | settings)
    assert "error" not in answer, answer
