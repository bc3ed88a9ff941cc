"""The composition root of the admin side: the admin port, its guard and its dashboard."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ingest.access.tokens import Tokens
from ingest.admin.dashboard.letters import Letters
from ingest.admin.dashboard.pages import Dashboard
from ingest.admin.dashboard.tail import Observed
from ingest.admin.exposition import Exposition
from ingest.admin.guard import Guard
from ingest.admin.port import Actions, Admin
from ingest.app.annexes import annexes
from ingest.app.database import make_replay_sink
from ingest.app.metrics_and_causes import own_metrics
from ingest.app.post_rules import make_rules
from ingest.config.declared_tables import make_tables
from ingest.config.settings import Settings, hold_probe_s, split_address
from ingest.config.values import MIB
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.http.bodies import Bodies
from ingest.model.ports import Sink
from ingest.sinks.postgres.checked_connection import KnownServer
from ingest.sinks.postgres.connection import DatabaseUrl
from ingest.sinks.postgres.lookup import Lookup
from ingest.system.words import command_words


class AdminSide:
    """The admin port of one process, its dashboard, its guard, its own database connections.

    Figures of the buffer and the journal come from the ledger's gauges. `database` sets the
    database's URL later. `tokens` are those of the file, some of which may be for this port.
    `several` are the processes that the page shows in place of the `own` one. Then `releases` names
    the only one that `hold release` reaches, if it does not reach all. `exposition` is that of
    /metrics, if it does not show the own process alone.
    """

    def __init__(
        self,
        settings: Settings,
        own: Observed,
        *,
        dead_letters: DeadLetterQueue,
        token: str,
        release_hold: Callable[[bool], bool],
        tokens: Tokens | None = None,
        several: Observed | None = None,
        releases: str = "",
        exposition: Exposition | None = None,
    ) -> None:
        observed = several or own
        self._settings = settings
        self._bound = ""
        self._sink: Callable[[], Sink | None] = lambda: None
        self._lookup: Lookup | None = None
        # Who has set a token uses it: no key then, so that there is one way to log in.
        self.guard = Guard(token, with_key=not settings.admin_token, tokens=tokens)
        # These limits are not those of the data port. The dashboard has bodies of its own, because
        # everybody may send a log-in, and these must not use up the memory for `hold/release`.
        bodies = partial(Bodies, body_bytes_max=MIB, body_s_max=10.0, all_bytes_max=64 * MIB)
        self._words = command_words()
        buffer = "stream" if several else settings.buffer
        self.dashboard = Dashboard(
            self._shown(buffer, releases),
            observed,
            Letters(dead_letters.letters, make_rules(settings), lambda: self._sink()),  # noqa: PLW0108  set later
            self.guard,
            bodies(),
            lookup=lambda: self._lookup,
        )
        actions = Actions(
            self.guard,
            bodies(),
            message=observed.message,
            release_hold=release_hold,
            refused_posts=observed.refused_posts,
            senders=observed.ledger.listed_senders,
            pages=self.dashboard.pages,
        )
        self.admin = Admin(
            exposition or own_metrics(own.ledger), own.readyz, ledger=own.ledger, actions=actions
        )

    def _shown(self, buffer: str, releases: str) -> dict[str, Any]:
        """Return the settings that the page shows."""
        return {
            "typed": self._words,
            "buffer": buffer,
            "buffer_rows_max": self._settings.buffer_rows_max,
            "journal_bytes_max": self._settings.journal_bytes_max,
            "stream_bytes_max": self._settings.stream_bytes_max,
            "batch_rows_max": self._settings.batch_rows_max,
            "dlq_bytes_max": self._settings.dlq_bytes_max,
            "hold_probe_s": hold_probe_s(self._settings),
            "releases": releases,
        }

    async def start(self, listen: str, given: Sequence[socket.socket] = ()) -> str:
        """Listen; return the bound HOST:PORT. `listen` is that of the data port.

        `given` are sockets that listen already, in place of the address. Raises StartError that
        names --admin-listen.
        """
        address = split_address(self._settings.admin_listen)
        bound = self._bound = await self.admin.start(*address, given)
        self.dashboard.listen = listen
        self.guard.bound(bound)
        return bound

    def page_address(self, *, with_key: bool) -> str:
        """Return the address of the page; the key, if there is one, logs in the first browser."""
        return f"http://{self._bound}{self.guard.key_target if with_key else '/'}"

    def database(self, url: DatabaseUrl, known: KnownServer) -> None:
        """Set what returns the database's URL, and what the writers know of the server."""
        settings = self._settings
        self._sink = lambda: make_replay_sink(
            url, settings, name="iot-ingest dashboard replay", known=known
        )
        curves = (each.rolled_curve() for each in annexes() if each.rolled_curve is not None)
        self._lookup = Lookup(
            url,
            known,
            tables=make_tables(settings),
            run=self._words["run"],
            rolled_curve=next(curves, None),
        )

    async def close(self) -> None:
        """Close the streams, the database connection and the port. Repeatable."""
        self.dashboard.close()
        if self._lookup is not None:
            await self._lookup.close()
        await self.admin.close()
