"""The composition root of a writer: it takes messages of the stream, and writes them to the table.

It takes no posts. A message is done once its rows are in the table or dead-lettered. The stream
keeps it until then, so a writer that is killed loses nothing: another one gets its messages.
Order of the start: connection to the broker, admin port, database; once the table has been checked,
writers, messages, replay.
Order of the stop: no new messages; the writers store what is here, if the database is there; the
rest goes back to the stream.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable
from typing import Any

from ingest.admin.dashboard.tail import ObservedDeadLetters, Tail
from ingest.app.admin import AdminSide
from ingest.app.advice import advice
from ingest.app.buffer import keep_rest
from ingest.app.dead_letters import make_dead_letters, make_stream_replayer
from ingest.app.fill import Fill
from ingest.app.health import Health
from ingest.app.refusals import Refusals
from ingest.app.role import Place, Role
from ingest.app.status import StatusSource
from ingest.app.writing import WritingHalf
from ingest.broker.given_check import GivenCheck
from ingest.broker.pulling import Delivery, Puller
from ingest.broker.purge import StreamPurge
from ingest.broker.roles import STREAM, WRITER
from ingest.broker.streams import ACK_WAIT_S
from ingest.buffers.stream.outlet import StreamOutlet
from ingest.config.reread_url import RereadUrl
from ingest.model.errors import DeadLettersBroken, DeadLettersFull, StartError
from ingest.model.ledger import BrokerFigures, Gauges
from ingest.model.letter import NOT_OURS, Letter
from ingest.sinks.postgres.connection import DatabaseUrl
from ingest.system.clock import monotonic_s, sleep_unless, unix_us
from ingest.system.logs import get_logger

HANDLERS_GRACE_S = 1.0
FOREIGN_AGAIN_S = 5.0  # before a message that is no block is dead-lettered once more
FOREIGN_MAX = 100  # of these at once; further ones come again by themselves
UNIX_EPOCH_AGE = 0.0


class StreamWriter:
    """One writer process. Make it in the running event loop; then `run` it once.

    `announce` gets lines for a person. `url_origin` is where database_url was set.
    """

    def __init__(self, place: Place, announce: Callable[[str], None], url_origin: str = "") -> None:
        settings = self._settings = place.settings
        self._place = place
        self._announce = announce
        role = self._role = Role(place, "writer")
        ledger = self.ledger = role.ledger
        self._writing_ends = asyncio.Event()
        self._foreign: set[asyncio.Task[None]] = set()
        self._log = get_logger("writer")
        self.outlet = StreamOutlet(
            ledger,
            self._on_foreign,
            rows_max=settings.buffer_rows_max,
            bytes_max=settings.buffer_bytes_max,
            put_wait_s_max=settings.put_wait_s_max,
        )
        self._puller = Puller(
            role.connection, stream=STREAM, consumer=WRITER, take=self.outlet.deliver
        )
        self._check = GivenCheck(role.connection, self._puller)
        self._purge = StreamPurge(
            role.connection,
            forwards=settings.forward_names,
            keep_s=settings.stream_keep_s,
            checked_to=lambda: self._check.checked_to,
            done_bytes=lambda: self._puller.done_bytes,
        )
        self.writing = WritingHalf(
            settings,
            outlet=self.outlet,
            ledger=ledger,
            halted=self._writing_ends,
            keeps_rest=lambda: True,
        )
        self.dead_letters = make_dead_letters(settings, role.connection)
        self._connect_parts(advice(settings, url_origin))
