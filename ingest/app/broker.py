"""The broker that the settings choose: where it is, what its stream must be, the embedded one."""

from __future__ import annotations

import asyncio
import contextlib

from ingest.app.buffer import check_promise
from ingest.app.dead_letters import make_dead_letters
from ingest.app.leftovers import LeftInBroker, note_left
from ingest.broker import manage
from ingest.broker.connection import BrokerConnection
from ingest.broker.envelope import Address
from ingest.broker.messages import StreamMessages
from ingest.broker.roles import DEAD_LETTERS, FORWARD
from ingest.broker.stream_state import state_of
from ingest.broker.streams import WantedDeadLetters, WantedStream
from ingest.buffers.frames import HEAD_BYTES
from ingest.config.broker_url import split_broker_url
from ingest.config.forward_names import forward_names
from ingest.config.settings import ROW_BYTES_MAX, Settings
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.dead_letters.stream.backend import StreamBackend
from ingest.embedded.broker import PAYLOAD_BYTES_MAX, EmbeddedBroker
from ingest.embedded.broker_program import find_program
from ingest.model.errors import IngestError
from ingest.system.state_folder import StateFolder
from ingest.system.stream_mark import MarkFile

LAST_LOOK_S_MAX = 5.0


def configured_address(settings: Settings) -> Address | None:
    """Return where the servers of `broker_url` are; None means: the embedded one."""
    if not settings.broker_url:
        return None
    servers, user, password = split_broker_url(settings.broker_url)
    return Address(servers, user, password, ca_file=settings.broker_ca_file)


def configured_monitors(settings: Settings) -> tuple[str, ...]:
    """Return the monitor ports of these servers."""
    return tuple(each.strip() for each in settings.broker_monitor_url.split(",") if each.strip())


def wanted_stream(settings: Settings) -> WantedStream:
    """Return what the stream must be."""
    return WantedStream(
        replicas=settings.stream_replicas,
        bytes_max=settings.stream_bytes_max,
        forwards=tuple(FORWARD + each for each in forward_names(settings.forwards)),
    )


def wanted_dead_letters(settings: Settings) -> WantedDeadLetters:
    """Return what the stream of the dead letters must be."""
    return WantedDeadLetters(replicas=settings.stream_replicas, bytes_max=settings.dlq_bytes_max)


def stream_letters(settings: Settings, connection: BrokerConnection) -> DeadLetterQueue:
    """Return the dead letters of a process that has this connection, in the running event loop."""
    backend = StreamBackend(connection)
    return make_dead_letters(settings, backend, auto_replay=settings.dlq_auto_replay)


def make_embedded(settings: Settings, folder: StateFolder) -> EmbeddedBroker:
    """Return the embedded broker, not started. Raises StartError if its disk forgets.

    Call `note_rest` before you stop it: `serve` does not start without that note.
    """
    check_promise([folder.broker], unsafe=settings.broker_unsafe, unless="--broker-unsafe true")
    largest_block = settings.post_rows_max * ROW_BYTES_MAX + HEAD_BYTES
    return EmbeddedBroker(
        folder.broker,
        find_program(),
        payload_bytes_max=max(PAYLOAD_BYTES_MAX, 2 * largest_block),
    )


async def left_in(connection: BrokerConnection) -> LeftInBroker:
    """Ask the broker what is not done. Raises BrokerAway, and BrokerRefused."""
    state = state_of(await manage.look(connection))
    letters = await StreamMessages(connection, DEAD_LETTERS).find_state()
    messages = 0
    if state is not None:
        messages = state.waiting + state.pending if state.consumer_made else state.messages
    return LeftInBroker(messages, 0 if letters is None else letters.messages)


async def note_rest(folder: StateFolder, connection: BrokerConnection) -> None:
    """Note what the embedded broker holds, before it is stopped. Without an answer no note.

    Nor if it lacks something that was acknowledged: the next `up` has to tell of that.
    """
    with contextlib.suppress(IngestError, OSError, TimeoutError):
        async with asyncio.timeout(LAST_LOOK_S_MAX):
            mark, state = MarkFile(folder.path).read(), state_of(await manage.look(connection))
            is_whole = state and state.made == mark.made and state.last >= mark.acknowledged_to
            if is_whole or not mark.made:
                note_left(folder, await left_in(connection))
