"""The composition root of a gateway: it takes posts, and publishes them to the stream.

It knows no database. It holds only posts that are not answered yet, and those that were answered as
`buffered`.
Order of the start: connection to the broker, ports (they answer `starting`), the first look at the
stream; then posts are taken.
Order of the stop: no new posts (at a restart they wait for the next process); posts in work are
finished; all messages are published; what is left of buffered posts goes to the dead letters.
One that runs alone has a small admin port. A gateway sees a part of the posts, so its page would
show little: it links to that of a writer. `/refused` lists its last refused posts for who has the
token.
"""

from __future__ import annotations

import asyncio
import html as markup
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress

from ingest.access import tokens
from ingest.access.tokens import Tokens
from ingest.admin.dashboard.assets import assets, html, page
from ingest.admin.dashboard.tail import Observed, Tail
from ingest.admin.guard import Guard
from ingest.admin.port import Actions, Admin
from ingest.app.health import Health
from ingest.app.metrics_and_causes import advice, own_metrics
from ingest.app.post_rules import open_tokens
from ingest.app.receiving import leave, make_endpoint, taking
from ingest.app.space import Fill
from ingest.buffers.waiting import PUT_WAIT_S_MAX
from ingest.config.settings import Settings, split_address
from ingest.config.values import MIB
from ingest.http import tls
from ingest.http.bodies import Bodies
from ingest.http.request_and_answer import Answer, Request
from ingest.http.routes import READ, Route
from ingest.receiver import senders
from ingest.receiver.senders import RefusedPosts
from ingest.roles import broker_state
from ingest.roles.group_queue import GROUP_BYTES_MAX, GROUPS_IN_FLIGHT, Commits
from ingest.roles.inlet import StreamInlet
from ingest.roles.nats.protocol import STREAM, SUBJECT, outcomes_for
from ingest.roles.nats.publishing import PUBLISH_WAIT_S_MAX, Publisher
from ingest.roles.role import Place, Role, stream_letters
from ingest.system.clock import sleep_unless
from ingest.system.waiting import first_of
from ingest.writer.refused_rows import set_aside_rest

_ASSETS = ("/page/style.css", "/page/icon.svg")
HANDLERS_GRACE_S = 1.0
LAST_LOOK_S_MAX = 1.0
LOOK_S = 0.02


class GatewayAdmin:
    """The admin port of one gateway. `token` is the admin token."""

    def __init__(
        self,
        settings: Settings,
        own: Observed,
        *,
        token: str,
        tokens: Tokens | None = None,
    ) -> None:
        self._admin_listen = settings.admin_listen
        self._listen = ""
        self._guard = Guard(token, tokens=tokens)
        files = assets()
        actions = Actions(
            self._guard,
            Bodies(body_bytes_max=MIB, body_s_max=10.0, all_bytes_max=MIB),
            message=str,
            release_hold=lambda _dead_letter: False,
            refused_posts=own.refused_posts,
            senders=own.ledger.listed_senders,
            pages={
                "/": Route(READ, self._front),
                **{path: Route(READ, files[path].handle) for path in _ASSETS},
            },
        )
        self._admin = Admin(own_metrics(own.ledger), own.readyz, ledger=own.ledger, actions=actions)

    async def start(self, listen: str) -> str:
        """Listen; return the bound HOST:PORT. `listen` is that of the data port.

        Raises StartError that names --admin-listen.
        """
        bound = await self._admin.start(*split_address(self._admin_listen))
        self._listen = listen
        self._guard.bound(bound)
        return bound

    async def close(self) -> None:
        """Close the port. Repeatable."""
        await self._admin.close()

    async def _front(self, request: Request, _query: str, _received_s: float) -> Answer:
        self._guard.check_host(request.headers)
        listen = markup.escape(self._listen).encode()
        return html(request.headers, page("gateway").replace(b"{{listen}}", listen))


class NoDatabase:
    """What the receiver and the state see in place of a database: implements ports.Database."""

    hold_reason: str | None = None
    up = None
    cause = ""

    async def wait_hold(self) -> str:
        """Wait for ever: writers may pause, and posts are kept all the same."""
        await asyncio.Event().wait()
        return ""


class Gateway(Role):
    """One gateway. Make it in the running event loop; then `run` it once.

    `announce` gets lines for a person.
    """

    def __init__(self, place: Place, announce: Callable[[str], None]) -> None:
        super().__init__(
            place,
            "gateway",
            announce,
            unanswered_s=lambda: self.inlet.stuck_s,
            published=lambda: self._publisher.published,
            refused=lambda: self.inlet.queue.refused,
            acknowledged_s=lambda: self._publisher.acknowledged_s,
        )
        settings = self.settings
        self._publisher = Publisher(
            self.connection,
            subject=SUBJECT,
            stream=STREAM,
            wait_s_max=PUBLISH_WAIT_S_MAX,
        )
        life = os.urandom(6).hex()
        commits = Commits(
            self.connection,
            outcome_s_max=PUBLISH_WAIT_S_MAX + settings.ack_wait_s_max,
        )
        self.connection.hear(outcomes_for(f"{life}-1"), commits.heard)
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
        self.dead_letters = stream_letters(settings, self.connection)
        self._connect_parts()

    def _connect_parts(self) -> None:
        settings = self.settings
        refused_posts = RefusedPosts(self.ledger)
        self._token_file = open_tokens(settings)
        self.health = Health(
            buffer=self.inlet.stats,
            database_state=NoDatabase(),
            disk=None,
            untaken="posts are not taken until the stream has been checked",
            dead_letters=self.dead_letters.stats,
            parts=(
                self.broker_state.trouble,
                lambda: broker_state.loss(self.watch.removed),
                lambda: self.endpoint.senders.not_stored(),  # noqa: PLW0108  made below
            ),
            refused=self.broker_state.refusal,
            ledger=self.ledger,
            fill=Fill(settings, has_folder=False),
            advice=advice(settings, ""),
        )
        tail = Tail()
        tail.watched = 1  # the page is elsewhere, so this does not know whether one is open
        self.endpoint = make_endpoint(
            settings,
            gateways=settings.gateways,
            inlet=self.inlet,
            levels=self.inlet.levels,
            dead_letters=self.dead_letters,
            ledger=self.ledger,
            admission=self.health,
            database=NoDatabase(),
            health=self.health.readyz_for_devices,
            on_refused=refused_posts.refused,
            on_decoded=tail.observe,
            tokens=self._token_file.tokens,
        )
        self.ledger.gauges = self.health.gauges(
            (broker_state.METRICS, lambda: self.broker_state),
            (senders.METRICS, lambda: self.endpoint.senders),
            (tls.METRICS, lambda: self.endpoint.certificate),
            (tokens.METRICS, lambda: self._token_file.tokens),
        )
        self.own = Observed(
            self.ledger, self.health.readyz, tail, refused_posts=refused_posts.listed
        )
        self._admin = None
        if self.place.channel is None:
            self._admin = GatewayAdmin(
                settings,
                self.own,
                token=settings.admin_token or secrets.token_urlsafe(24),
                tokens=self._token_file.tokens,
            )

    async def close(self) -> None:
        """Close everything. Called in any case."""
        await self.endpoint.close()
        await self.inlet.close()
        await self.dead_letters.close()
        if self._admin is not None:
            await self._admin.close()

    async def start(self) -> None:
        """Listen; take posts once the stream has been checked. Raises StartError."""
        settings, process = self.settings, self.process
        listening = self.place.listening
        accepts = taking(lambda: not self.health.starting, process.stopping)
        given = [] if listening is None else [listening]
        listen = await self.endpoint.start(*split_address(settings.listen), given, accepts)
        if self._admin is not None:
            bound = await self._admin.start(listen)
            scheme = "https" if settings.tls_cert_file else "http"
            process.announce(
                f"posts: {scheme}://{listen}/v1/readings, probes and metrics: http://{bound}"
            )
            process.notifier.ready()
        process.spawn(self.health.run(process.stopping))
        process.spawn(self._token_file.follow(process.halted))
        while not self.watch.checked:  # posts get `starting` until then
            if listening is not None and accepts():
                listening = None
                self.ready()
            if await sleep_unless(process.stopping, LOOK_S):
                return
        self.health.started()
        self.ready()

    async def stop(self) -> Mapping[str, int]:
        """Drain; return the sums."""
        inlet, halted = self.inlet, self.process.halted
        if self.steps_down:
            await leave(self.endpoint, self.drained, halted)
        self.health.draining()
        halting = asyncio.create_task(self.process.halt(self.settings.drain_s_max))
        await self.endpoint.finish(self.settings.drain_s_max + HANDLERS_GRACE_S)
        inlet.shut_inlet()
        await first_of(inlet.finish(), halted.wait())
        halting.cancel()
        await inlet.close()
        await self.endpoint.close()
        await set_aside_rest(inlet, self.dead_letters, self.ledger)
        await self.dead_letters.close()
        with suppress(TimeoutError):  # the mark has what was acknowledged last, too
            async with asyncio.timeout(LAST_LOOK_S_MAX):
                await self.watch.look()
        await self.flush()
        ledger = self.ledger
        return {
            "published": ledger.published,
            "dead_lettered": ledger.set_aside,
            "held": ledger.held,
            "lost": max(0, ledger.imbalance) + ledger.held,
        }
