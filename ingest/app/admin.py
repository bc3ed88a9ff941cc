"""The composition root of the admin side: the admin port, its guard and its dashboard."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ingest import __version__
from ingest.access.tokens import Tokens
from ingest.admin.dashboard.letters import Letters
from ingest.admin.dashboard.pages import Dashboard, Sources
from ingest.admin.dashboard.tail import ObservedDeadLetters, TailSource
from ingest.admin.exposition import Exposition
from ingest.admin.guard import Guard
from ingest.admin.port import Actions, Admin
from ingest.app.database import housekeeping_url, late_partitions
from ingest.app.metrics import own_metrics
from ingest.app.rules import make_rules
from ingest.app.writing import make_sink
from ingest.config.settings import Settings, hold_probe_s, split_address
from ingest.config.values import MIB
from ingest.dead_letters.store import ReadableDeadLetters
from ingest.http.bodies import Bodies
from ingest.model.ledger import Ledger
from ingest.model.ports import Sink
from ingest.sinks.postgres.connection import DatabaseUrl
from ingest.sinks.postgres.known_server import KnownServer
from ingest.sinks.postgres.lookup import Lookup
from ingest.system.surroundings import command_words


class Joint(NamedTuple):
    """What an admin port of several processes shows in place of the figures of one.

    `own` is the ledger of the process that has the port. `page_readyz` is the state that the page
    shows, if it is not that of the probes. `releases` names the only process that `hold release`
    reaches, if it does not reach all.
    """

    own: Ledger
    exposition: Exposition
    tail: TailSource
    page_readyz: Callable[[], tuple[int, bytes]] | None = None
    releases: str = ""


class AdminSide:
    """The admin port of one service, its dashboard, its guard, its own database connections.

    `readyz` is that of Health. `message` returns the last message of the database. Figures of the
    buffer and the journal come from the ledger's gauges. `database` sets the database's URL later.
    `tokens` are those of the file, some of which may be for this port.
    `buffer` is the one that the page shows, if it is not that of the settings (`stream`). With
    `joint` the ledger is the sum of several processes.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        ledger: Ledger,
        dead_letters: ReadableDeadLetters,
        readyz: Callable[[], tuple[int, bytes]],
        message: Callable[[], str],
        token: str,
        release_hold: Callable[[bool], bool],
        refused_posts: Callable[[], list[dict[str, Any]]],
        buffer: str = "",
        joint: Joint | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        self._settings = settings
        self._bound = ""
        self._database_url: DatabaseUrl | None = None
        self._known: KnownServer | None = None
        self._lookup: Lookup | None = None
        # Who has set a token uses it: no key then, so that there is one way to log in.
        self.guard = Guard(token, with_key=not settings.admin_token, tokens=tokens)
        self._dead_letters = dead_letters
        # These limits are not those of the data port. The dashboard has bodies of its own, because
        # everybody may send a log-in, and these must not use up the memory for `hold/release`.
        bodies = partial(Bodies, body_bytes_max=MIB, body_s_max=10.0, all_bytes_max=64 * MIB)
        self._words = command_words()
        self.dashboard = Dashboard(
            self._shown(buffer, joint),
            Sources(
                __version__,
                ledger,
                (joint.page_readyz if joint else None) or readyz,
                message,
                lambda: self._lookup,
            ),
            Letters(dead_letters.letters, make_rules(settings), self._sink),
            self.guard,
            bodies(),
            tail=joint.tail if joint else None,
        )
        actions = Actions(
            self.guard,
            bodies(),
            message=message,
            release_hold=release_hold,
            refused_posts=refused_posts,
            senders=ledger.listed_senders,
            pages=self.dashboard.pages,
        )
        self.admin = Admin(
            joint.exposition if joint else own_metrics(ledger),
            readyz,
            ledger=joint.own if joint else ledger,
            actions=actions,
        )

    def _shown(self, buffer: str, joint: Joint | None) -> dict[str, Any]:
        """Return the settings that the page shows."""
        return {
            "typed": self._words,
            "buffer": buffer or self._settings.buffer,
            "buffer_rows_max": self._settings.buffer_rows_max,
            "journal_bytes_max": self._settings.journal_bytes_max,
            "stream_bytes_max": self._settings.stream_bytes_max,
            "batch_rows_max": self._settings.batch_rows_max,
            "dlq_bytes_max": self._settings.dlq_bytes_max,
            "hold_probe_s": hold_probe_s(self._settings),
            "releases": joint.releases if joint else "",
        }

    def _sink(self) -> Sink | None:
        if self._database_url is None:
            return None
        settings, url = self._settings, self._database_url
        return make_sink(
            url,
            settings,
            name="iot-ingest dashboard replay",
            known=self._known,
            late=late_partitions(settings, housekeeping_url(settings, url), eager=True),
        )

    @property
    def observed_dead_letters(self) -> ObservedDeadLetters:
        """The dead letters for the writers. The page counts refused readings by device."""
        return ObservedDeadLetters(self._dead_letters, self.dashboard.tail)

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
        self._database_url, self._known = url, known
        self._lookup = Lookup(url, known, run=self._words["run"])

    async def close(self) -> None:
        """Close the streams, the database connection and the port. Repeatable."""
        self.dashboard.close()
        if self._lookup is not None:
            await self._lookup.close()
        await self.admin.close()
