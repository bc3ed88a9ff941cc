"""The dead letters of a gateway or a writer, which are in the broker's stream INGEST_DLQ."""

from __future__ import annotations

from ingest.app.rules import make_rules
from ingest.broker.connection import BrokerConnection
from ingest.broker.streams import WantedDeadLetters
from ingest.config.settings import Settings
from ingest.dead_letters.sending import REPLAY_PAUSE_S, BlockSender
from ingest.dead_letters.stream.auto_replay import StreamReplayer
from ingest.dead_letters.stream.queue import StreamDeadLetters


def wanted_dead_letters(settings: Settings) -> WantedDeadLetters:
    """Return what the stream of the dead letters must be."""
    return WantedDeadLetters(replicas=settings.stream_replicas, bytes_max=settings.dlq_bytes_max)


def make_dead_letters(settings: Settings, connection: BrokerConnection) -> StreamDeadLetters:
    """Return the dead letters of a process that has this connection, in the running event loop."""
    return StreamDeadLetters(
        connection,
        bytes_max=settings.dlq_bytes_max,
        auto_replay=settings.dlq_auto_replay,
        rules=make_rules(settings),
    )


def make_stream_replayer(
    settings: Settings,
    connection: BrokerConnection,
    dead_letters: StreamDeadLetters,
    sender: BlockSender,
) -> StreamReplayer | None:
    """Return the automatic replay of a writer, None if the settings want none."""
    if not settings.dlq_auto_replay:
        return None
    return StreamReplayer(
        connection,
        dead_letters.messages,
        dead_letters.replaying,
        sender,
        post_rows_max=settings.post_rows_max,
        rows_per_s=settings.dlq_replay_rows_per_s,
        pause_s=REPLAY_PAUSE_S,
    )
