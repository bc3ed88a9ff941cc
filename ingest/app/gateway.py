"""The composition root of a gateway: it takes posts, and publishes them to the stream.

It knows no database. It holds only posts that are not answered yet, and those that were answered as
`buffered`.
Order of the start: connection to the broker, ports (they answer `starting`), the first look at the
stream; then posts are taken.
Order of the stop: no new posts (at a restart they wait for the next process); posts in work are
finished; all messages are published; what is left of buffered posts goes to the dead letters.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress

from ingest.access import tokens
from ingest.admin.dashboard.tail import Observed, Tail
from ingest.app import broker_state, fill
from ingest.app.access import open_tokens
from ingest.app.advice import advice
from ingest.app.broker import stream_letters
from ingest.app.broker_state import BrokerAdmission
from ingest.app.fill import Fill
from ingest.app.gateway_admin import GatewayAdmin
from ingest.app.health import Health
from ingest.app.receiving import leave, make_endpoint, taking
from ingest.app.refusals import Refusals
from ingest.app.role import Place, Role
from ingest.app.status import StatusSource
from ingest.broker.publishing import PUBLISH_WAIT_S_MAX, Publisher
from ingest.broker.roles import STREAM, SUBJECT, outcomes_for
from ingest.buffers.stream.commits import Commits
from ingest.buffers.stream.group_queue import GROUP_BYTES_MAX, GROUPS_IN_FLIGHT
from ingest.buffers.stream.inlet import StreamInlet
from ingest.buffers.waiting import PUT_WAIT_S_MAX
from ingest.config.settings import split_address
from ingest.http import certificate
from ingest.model.ledger import Gauges
from ingest.model.metrics import figures_of
from ingest.receiver import senders
from ingest.receiver.refused_posts import RefusedPosts
from ingest.system.clock import sleep_unless
from ingest.system.waiting import first_of
from ingest.writer.set_aside import set_aside_rest

HANDLERS_GRACE_S = 1.0
LAST_LOOK_S_MAX = 1.0
LOOK_S = 0.02


class NoDatabase:
    """What the receiver and the state see in place of a database: implements ports.Database."""

    hold_reason: str | None = None
    up = True
    cause = ""

    async def wait_hold(self) -> str:
        """Wait for ever: writers may pause, and posts are kept all the same."""
        await asyncio.Event().wait()
        return ""


class Gateway:
    """One gateway. Make it in the running event loop; then `run` it once.

    `announce` gets lines for a person.
    """

    def __init__(self, place: Place, announce: Callable[[str], None]) -> None:
        settings = self._settings = place.settings
        self._place = place
        self._announce = announce
        self._role = Role(
            place,
            "gateway",
            announce,
            unanswered_s=lambda: self.inlet.stuck_s,
            published=lambda: self._publisher.published,
            refused=lambda: self.inlet.refused,
            acknowledged_s=lambda: self._publisher.acknowledged_s,
        )
        self.ledger = self._role.ledger
        self._publisher = Publisher(
            self._role.connection,
            subject=SUBJECT,
            stream=STREAM,
            wait_s_max=PUBLISH_WAIT_S_MAX,
        )
        life = os.urandom(6).hex()
        commits = Commits(
            self._role.connection,
            outcome_s_max=PUBLISH_WAIT_S_MAX + settings.ack_wait_s_max,
        )
        self._role.connection.hear(outcomes_for(f"{life}-1"), commits.heard)
        self.inlet = StreamInlet(
            self._publisher,
            self.ledger,
            life=life,
            rows_max=settings.buffer_rows_max,
            bytes_max=settings.buffer_bytes_max,
            put_wait_s_max=PUT_WAIT_S_MAX,
            group_rows_max=settings.batch_rows_max,
            group_bytes_max=GROUP_BYTES_MAX,
            groups_in_flight=GROUPS_IN_FLIGHT,
            wait_s_max=PUBLISH_WAIT_S_MAX,
            commits=commits,
        )
        self.dead_letters = stream_letters(settings, self._role.connection)
        self._connect_parts()

    def _connect_parts(self) -> None:
        settings, role = self._settings, self._role
        refused_posts = RefusedPosts(self.ledger)
        self._token_file = open_tokens(settings)
        self.health = Health(
            buffer=self.inlet.stats,
            database_state=NoDatabase(),
            disk=None,
            untaken="posts are not taken until the stream has been checked",
            dead_letters=self.dead_letters.stats,
            parts=(
                role.broker_state.trouble,
                lambda: broker_state.loss(role.watch.removed),
                lambda: self.endpoint.senders.not_stored(),  # noqa: PLW0108  made below
            ),
            refusals=Refusals(self.ledger),
            fill=Fill(settings, has_folder=False),
            advice=advice(settings, ""),
        )
        tail = Tail()
        tail.watched = 1  # the page is elsewhere, so this does not know whether one is open
        self.endpoint = make_endpoint(
            settings,
            inlet=self.inlet,
            levels=self.inlet.levels,
            dead_letters=self.dead_letters,
            ledger=self.ledger,
            admission=BrokerAdmission(
                self.health, role.broker_state, away_s_max=PUBLISH_WAIT_S_MAX
            ),
            database=NoDatabase(),
            health=self.health.readyz_for_devices,
            on_refused=refused_posts.refused,
            on_decoded=tail.observe,
            tokens=self._token_file.tokens,
        )
        self.ledger.gauges = self._gauges()
        own = Observed(self.ledger, self.health.readyz, tail, refused_posts=refused_posts.listed)
        self._status = StatusSource("gateway", own)
        self._admin = None
        if self._place.channel is None:
            self._admin = GatewayAdmin(
                settings,
                own,
                token=settings.admin_token or secrets.token_urlsafe(24),
                tokens=self._token_file.tokens,
            )

    def _gauges(self) -> Gauges:
        return Gauges(
            buffer=self.inlet.stats,
            dead_letters=self.dead_letters.stats,
            database_up=lambda: None,
            hold_reason=lambda: None,
            state=self.health.state,
            figures=figures_of(
                (fill.METRICS, lambda: self.health.fill),
                (broker_state.METRICS, lambda: self._role.broker_state),
                (senders.METRICS, lambda: self.endpoint.senders),
                (certificate.METRICS, lambda: self.endpoint.certificate),
                (tokens.METRICS, lambda: self._token_file.tokens),
            ),
        )

    async def run(self) -> int:
        """Run until a signal or the supervisor ends it; return the exit code.

        Raises StartError if it cannot begin.
        """
        return await self._role.run(
            self._start,
            self._stop,
            self._close,
            self._status,
            actions={},
            in_words=self.health.in_words,
        )

    async def _close(self) -> None:
        await self.endpoint.close()
        await self.inlet.close()
        await self.dead_letters.close()
        if self._admin is not None:
            await self._admin.close()

    async def _start(self) -> None:
        settings, role = self._settings, self._role
        listening = self._place.listening
        accepts = taking(lambda: not self.health.starting, role.process.stopping)
        given = [] if listening is None else [listening]
        listen = await self.endpoint.start(*split_address(settings.listen), given, accepts)
        if self._admin is not None:
            bound = await self._admin.start(listen)
            scheme = "https" if settings.tls_cert_file else "http"
            self._announce(
                f"posts: {scheme}://{listen}/v1/readings, probes and metrics: http://{bound}"
            )
            role.process.notifier.ready()
        role.process.spawn(self.health.run(role.process.stopping))
        role.process.spawn(self._token_file.follow(role.process.halted))
        while not role.watch.checked:  # posts get `starting` until then
            if listening is not None and accepts():
                listening = None
                role.ready()
            if await sleep_unless(role.process.stopping, LOOK_S):
                return
        self.health.started()
        role.ready()

    async def _stop(self) -> Mapping[str, int]:
        """Drain; return the sums."""
        role, inlet = self._role, self.inlet
        if role.steps_down:
            await leave(self.endpoint, role.drained, role.process.halted)
        self.health.draining()
        halting = asyncio.create_task(role.process.halt(self._settings.drain_s_max))
        await self.endpoint.finish(self._settings.drain_s_max + HANDLERS_GRACE_S)
        inlet.shut_inlet()
        await first_of(inlet.finish(), role.process.halted.wait())
        halting.cancel()
        await inlet.close()
        await self.endpoint.close()
        await set_aside_rest(inlet, self.dead_letters, self.ledger)
        await self.dead_letters.close()
        with suppress(TimeoutError):  # the mark has what was acknowledged last, too
            async with asyncio.timeout(LAST_LOOK_S_MAX):
                await role.watch.look()
        await role.flush()
        ledger = self.ledger
        return {
            "published": ledger.published,
            "dead_lettered": sum(ledger.dead_lettered.values()),
            "held": ledger.held,
            "lost": max(0, ledger.imbalance) + ledger.held,
        }
