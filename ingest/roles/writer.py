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
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from ingest.admin.dashboard.tail import Observed, ObservedDeadLetters, Tail
from ingest.app import housekeeping
from ingest.app.admin import AdminSide
from ingest.app.health import Health
from ingest.app.metrics_and_causes import advice
from ingest.app.post_rules import open_tokens
from ingest.app.space import Fill, Waiting
from ingest.app.writing import HANDLERS_GRACE_S, WritingHalf
from ingest.buffers.waiting import PUT_WAIT_S_MAX
from ingest.config.database_url import RereadUrl
from ingest.model.block import Ack
from ingest.model.errors import DeadLettersBroken, DeadLettersFull
from ingest.model.reading import NOT_OURS, Letter
from ingest.roles import broker_state, outlet
from ingest.roles.nats import audit, purge
from ingest.roles.nats.audit import Audit
from ingest.roles.nats.protocol import COMMIT, COMMITTERS, STATUS, WRITER, Message, outcomes_for
from ingest.roles.nats.pulling import Delivery, Puller
from ingest.roles.nats.purge import ABSENT, StreamPurge, lag_bytes_max
from ingest.roles.nats.stream_state import StreamState, Undone
from ingest.roles.nats.streams import ACK_WAIT_S
from ingest.roles.outlet import StreamOutlet, encode_outcome
from ingest.roles.role import Place, Role, forwards_of, stream_letters
from ingest.roles.supervisor.overview import Overview
from ingest.system.clock import unix_us
from ingest.system.logs import get_logger
from ingest.writer.refused_rows import set_aside_rest

TIDY_S_MAX = 1.0  # at a stop, for the purge
FORGET_S = 30.0  # a process that was silent for so long is gone: nobody else says it
FOREIGN_MAX = 100  # of these at once; further ones come again


class StreamWriter(Role):
    """One writer process. Make it in the running event loop; then `run` it once.

    `announce` gets lines for a person. `url_origin` is where database_url was set.
    """

    def __init__(self, place: Place, announce: Callable[[str], None], url_origin: str = "") -> None:
        super().__init__(place, "writer", announce)
        self.actions = {
            "release_hold": lambda asked: self.writing.release_hold(bool(asked.get("dead_letter")))
        }
        settings, connection = self.settings, self.connection
        self._undone = Undone()
        self._foreign: set[asyncio.Task[None]] = set()
        self._log = get_logger("writer")
        self.outlet = StreamOutlet(
            self.ledger,
            self._on_foreign,
            self._on_outcome,
            rows_max=settings.buffer_rows_max,
            bytes_max=settings.buffer_bytes_max,
            put_wait_s_max=PUT_WAIT_S_MAX,
        )
        self._puller = Puller(connection, consumer=WRITER, take=self.outlet.deliver)
        self._audit = Audit(connection, self._puller, self.mark)
        self._purge = StreamPurge(
            connection,
            forwards=forwards_of(settings),
            keep_s=settings.stream_keep_s,
            checked_to=self._audit.checked_in,
            delivered_bytes=lambda: self._puller.delivered_bytes,
            forward_lag_bytes_max=int(
                ABSENT * lag_bytes_max(settings.forward_lag_bytes_max, settings.stream_bytes_max)
            ),
            mark=self.mark,
        )
        self.writing = WritingHalf(
            settings,
            outlet=self.outlet,
            ledger=self.ledger,
            keeps_rest=lambda: True,
            stream=self._waiting,
        )
        self.dead_letters = stream_letters(settings, connection)
        connection.hear(COMMIT, self._say_if_stored, group=COMMITTERS)
        self._connect_parts(advice(settings, url_origin))

    def _connect_parts(self, words: Mapping[str, str]) -> None:
        settings = self.settings
        database_state = self.writing.database_state
        self._reread = RereadUrl(settings)
        self.health = Health(
            buffer=self.outlet.stats,
            database_state=database_state,
            url_fault=self._reread.fault,
            disk=None,
            untaken="nothing is written until the table has been checked",
            dead_letters=self.dead_letters.stats,
            parts=(
                self.broker_state.trouble,
                *self.writing.troubles,
                lambda: broker_state.loss(self._audit.skipped or self.watch.removed),
            ),
            ledger=self.ledger,
            fill=Fill(settings, has_folder=False),
            advice=words,
        )
        self.ledger.gauges = self.health.gauges(
            (broker_state.METRICS, lambda: self.broker_state),
            (broker_state.OF_STREAM, self._stream),
            (audit.METRICS, lambda: self._audit),
            (purge.METRICS, lambda: self._purge),
            (outlet.METRICS, lambda: self.outlet),
            (housekeeping.METRICS, lambda: self.writing.housekeeping),
        )
        self.own = Observed(self.ledger, self.health.readyz, Tail(), lambda: database_state.message)
        self._admin: AdminSide | None = None
        if self.place.channel is None:
            self._make_admin(words)

    def _make_admin(self, words: Mapping[str, str]) -> None:
        """Make the admin port of a writer that runs alone.

        Gateways and writers that nobody leads tell each other their statuses by the broker. So the
        page of each writer shows all of them. Its figures are the sum over all; /metrics has those
        of this writer alone, since each process is scraped on its own. `hold release` is for this
        writer, and the page says so.
        """
        settings, instance = self.settings, self.place.instance
        # The tokens are for posts, mostly, and a writer takes none: so they may be missing.
        self._token_file = open_tokens(settings, may_be_missing=True)
        overview = self._overview = Overview(
            settings,
            dead_letters=self.dead_letters.stats,
            free_bytes=None,
            advice=words,
            unheard=self.broker_state.trouble,
            forget_s=FORGET_S,
        )
        self.on_status = partial(overview.status, instance)
        self.connection.hear(STATUS, partial(overview.hear, instance))
        self._admin = AdminSide(
            settings,
            self.own,
            dead_letters=self.dead_letters,
            token=settings.admin_token or secrets.token_urlsafe(24),
            tokens=self._token_file.tokens,
            release_hold=self.writing.release_hold,
            several=overview.observed,
            releases=instance,
        )

    async def close(self) -> None:
        """Close everything. Called in any case."""
        self.writing.abort()
        await self.dead_letters.close()
        if self._admin is not None:
            await self._admin.close()

    async def start(self) -> None:
        """Check the table, then take messages. Raises StartError."""
        process, stopping = self.process, self.process.stopping
        # Without a setting it is the embedded one's, and does not change.
        url = self._reread if self.settings.database_url else lambda: self.place.database_url
        if self._admin is not None:
            await self._admin.start("the gateways")
            self._admin.database(url, self.writing.known)
            process.spawn(self._overview.show(self._admin.dashboard, process.halted))
            process.spawn(self._token_file.follow(process.halted))
            process.announce(
                f"writer {self.place.instance}, dashboard: "
                f"{self._admin.page_address(with_key=False)}"
            )
            process.notifier.ready()
        process.spawn(self.health.run(stopping))
        self.ready()  # a server that is away is no reason to replace this process
        if not await self.writing.open(
            url,
            stopping,
            posts_taken=lambda: True,
            on_away=lambda _why: None,
            on_checked=lambda _url: None,
        ):
            return
        self.health.started()
        observed = ObservedDeadLetters(self.dead_letters, self.own.tail)
        self.writing.start(observed, process, self.dead_letters.backend.replay_source, self.outlet)
        process.spawn(self._puller.run(stopping))
        process.spawn(self._audit.run(stopping))
        process.spawn(self._purge.run(stopping))
        process.spawn(self.outlet.run(process.halted, ACK_WAIT_S / 3))
        self.outlet.pull_from(self._puller)

    async def stop(self) -> Mapping[str, int]:
        """Store what is here, give back the rest; return the sums."""
        self.health.draining()
        self.outlet.shut_inlet()
        writing, process = self.writing, self.process
        halt = asyncio.create_task(process.halt(writing.drain_s_max, writing.abort))
        await writing.finish()
        process.halted.set()
        await halt
        if self._foreign:
            await asyncio.wait(self._foreign, timeout=HANDLERS_GRACE_S)
        await self.outlet.keep_rest()
        await set_aside_rest(self.outlet, self.dead_letters, self.ledger)  # replayed blocks
        await self.dead_letters.close()
        await self._tidy_stream()
        await self.flush()
        ledger = self.ledger
        return {
            "committed": ledger.committed + ledger.duplicate,
            "dead_lettered": ledger.set_aside,
            "returned": ledger.returned,
            "held": ledger.held,
            "lost": max(0, ledger.imbalance) + ledger.held,
        }

    async def _tidy_stream(self) -> None:
        """Tell what is settled, and purge what is done: the next start need not look at it."""
        self._audit.tell()
        with suppress(TimeoutError):
            async with asyncio.timeout(TIDY_S_MAX):
                await self._purge.purge()

    def _say_if_stored(self, message: Message) -> None:
        """Tell a gateway why its posts cannot wait for their commit: a code, or nothing."""
        database_state, refusal = self.writing.database_state, ""
        if database_state.hold_reason is not None:
            refusal = "database_on_hold"
        elif not (self.writing.checked and database_state.is_open and not self.outlet.shut):
            refusal = "database_away"
        elif (waits := self._waiting()) is not None and waits[-1] > self.settings.ack_wait_s_max:
            refusal = "database_away"  # its outcome would come too late: each retry is one more
        self.connection.send(message.reply_to, refusal.encode())

    def _on_outcome(self, message_id: str, ack: Ack) -> None:
        if ack.outcome is not None and (subject := outcomes_for(message_id)):
            self.connection.send(subject, encode_outcome(message_id, ack.outcome))

    def _stream(self) -> tuple[StreamState, float] | None:
        """Return the stream and how old what is not done was then; None before it was asked."""
        state = self.watch.state
        return None if state is None else (state, self._undone.age_s(self.watch.looked_s, state))

    def _waiting(self) -> Waiting | None:
        if (now := self._stream()) is None:
            return None
        state, oldest_s = now
        return state.waiting + state.pending, "messages", oldest_s

    # Messages that are no block

    def _on_foreign(self, delivery: Delivery, why: str) -> None:
        if len(self._foreign) >= FOREIGN_MAX:
            self._puller.give_back([delivery], ACK_WAIT_S)
            return
        task = asyncio.create_task(self._set_foreign_aside(delivery, why))
        self._foreign.add(task)
        task.add_done_callback(self._foreign.discard)

    async def _set_foreign_aside(self, delivery: Delivery, why: str) -> None:
        """Dead-letter a message that is no block; then the stream need not keep it."""
        self._log.error("message_not_ours", place=delivery.place, why=why)
        letter = Letter(NOT_OURS, "no_block", why, unix_us(), original=delivery.data)
        try:
            await self.dead_letters.append([letter._replace(source="stream")])
        except (DeadLettersBroken, DeadLettersFull) as error:
            self._log.error("message_not_set_aside", place=delivery.place, why=str(error))
            self._puller.give_back([delivery], ACK_WAIT_S)
            return
        self.ledger.delivered += 1
        self.ledger.dead_lettered[NOT_OURS] += 1
        self._puller.drop([delivery])
