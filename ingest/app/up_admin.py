"""The one admin port of `ingest up`: probes, metrics of all processes, hold release, the page.

Promises: the port answers also while processes start, stop or are replaced.
Does not: start processes, or hold their channels; the supervisor does, and calls `status` and
`gone`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ingest.access.tokens import Tokens
from ingest.admin.dashboard.pages import Dashboard
from ingest.admin.exposition import Exposition
from ingest.app.admin import AdminSide, Joint
from ingest.app.instances import WRITER
from ingest.app.overview import LATE_S, Overview
from ingest.config.settings import Settings
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.model.ledger import Ledger
from ingest.sinks.postgres.connection import DatabaseUrl
from ingest.sinks.postgres.known_server import KnownServer

Tell = Callable[[str, dict[str, Any]], object]  # sends a message to the process with this name


class UpAdmin:
    """The admin port of several processes.

    `token` is the admin token. `guard` starts a task, as Process does. `advice` are the words of
    the next steps: a text for each of causes.FIELDS. `free_bytes` returns the free space of the
    state folder, and may raise OSError.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        dead_letters: DeadLetterQueue,
        token: str,
        guard: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        tell: Tell,
        free_bytes: Callable[[], int],
        advice: Mapping[str, str],
        tokens: Tokens | None = None,
    ) -> None:
        self._guard, self._tell = guard, tell
        self._stopping = asyncio.Event()
        self._ticking: asyncio.Task[None] | None = None
        overview = self._overview = Overview(
            settings, dead_letters=dead_letters.stats, free_bytes=free_bytes, advice=advice
        )
        self.ledger = overview.own  # of the supervisor: for example what it has published itself
        self.instances, self.health = overview.instances, overview.health
        self._side = AdminSide(
            settings,
            ledger=self.instances.ledger,
            dead_letters=dead_letters,
            readyz=self.health.readyz,
            message=self.instances.message,
            token=token,
            release_hold=self._release_hold,
            refused_posts=self.instances.refused_posts,
            buffer="stream",
            tokens=tokens,
            joint=Joint(self.ledger, Exposition(self.instances.shown), overview.tail),
        )

    @property
    def dashboard(self) -> Dashboard:
        """The page."""
        return self._side.dashboard

    async def start(self, listen: str) -> str:
        """Listen; return the bound HOST:PORT. `listen` is where posts go.

        Raises StartError that names --admin-listen.
        """
        bound = await self._side.start(listen)
        self._ticking = self._guard(
            self._side.dashboard.run(self._stopping, late_s=LATE_S, before=self._overview.tick)
        )
        return bound

    def page(self, *, with_key: bool) -> str:
        """Return the address of the page; the key, if there is one, logs in the first browser."""
        return self._side.page_address(with_key=with_key)

    def state(self) -> str:
        """Return the state and its reason as a text for a process manager."""
        return self.health.in_words()

    def database(self, url: DatabaseUrl, known: KnownServer) -> None:
        """Set what returns the database's URL, for the page's questions and replays."""
        self._side.database(url, known)

    def status(self, instance: str, blob: Mapping[str, Any]) -> None:
        """Take the status of a process, which StatusSource has made. Never fails."""
        self._overview.status(instance, blob)

    def gone(self, instance: str, pid: int) -> None:
        """Note that a process of this name has ended."""
        self.instances.gone(instance, pid)

    def ledger_now(self) -> Ledger:
        """Return the sum of all processes, those that have ended included."""
        self.instances.refresh()
        return self.instances.ledger

    def draining(self) -> None:
        """Note that all processes stop: /readyz says so from now on."""
        self.health.draining()

    async def close(self) -> None:
        """Close the streams of the page, the database connection and the port. Repeatable."""
        self._stopping.set()
        if self._ticking is not None:
            await asyncio.wait([self._ticking])
        await self._side.close()

    def _release_hold(self, dead_letter: bool) -> bool:
        """Tell all writers that wait; return whether there are any."""
        waiting = [
            each
            for each in self.instances.of(WRITER)
            if each.runs
            and (gauges := each.status.ledger.gauges) is not None
            and (gauges.database_up() is False or gauges.hold_reason() is not None)
        ]
        for each in waiting:
            self._tell(each.name, {"do": "release_hold", "dead_letter": dead_letter})
        return bool(waiting)
