"""The one admin port of `ingest up`: probes, metrics of all processes, hold release, the page.

Promises: what a process sends cannot break the port; a status that is not readable is left out, and
logged now and then. The port answers also while processes start, stop or are replaced.
Does not: start processes, or hold their channels; the supervisor does, and calls `status` and
`gone`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from os import getpid
from typing import Any

from ingest import __version__
from ingest.admin.dashboard.pages import Dashboard
from ingest.admin.dashboard.tail import GatheredTail
from ingest.admin.exposition import JointExposition
from ingest.app.admin import AdminSide, Joint
from ingest.app.fill import Fill
from ingest.app.instances import WRITER, Instances
from ingest.app.roles_balance import RolesBalance, Sample
from ingest.app.status import read_status
from ingest.app.up_health import UpHealth
from ingest.config.settings import Settings
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.model.ledger import Gauges, Ledger
from ingest.model.ports import BufferStats
from ingest.sinks.postgres.connection import DatabaseUrl
from ingest.sinks.postgres.known_server import KnownServer
from ingest.system.clock import monotonic_s
from ingest.system.logs import Occasionally, get_logger

LATE_S = 0.5  # the processes send their statuses at the full second
EMPTY = BufferStats(0, 0, 0, 0, 0, 0, 0, None)

Tell = Callable[[str, dict[str, Any]], object]  # sends a message to the process with this name


class UpAdmin:
    """The admin port of several processes.

    `token` is the admin token. `advice` are the words of the next steps: a text for each of
    causes.FIELDS. `free_bytes` returns the free space of the state folder, and may raise OSError.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        dead_letters: DeadLetterQueue,
        token: str,
        tell: Tell,
        free_bytes: Callable[[], int],
        advice: Mapping[str, str],
    ) -> None:
        self._admin_listen = settings.admin_listen
        self._bound = ""
        self._tell = tell
        self._free_bytes = free_bytes
        self._dead_letters = dead_letters
        self._disk_free_bytes = 0
        self._stopping = asyncio.Event()
        self._ticking: asyncio.Task[None] | None = None
        self._log = get_logger("admin")
        self._occasionally = Occasionally(60.0)
        fill = Fill(settings, lambda: 0)
        self.ledger = Ledger()  # of this process: for example what it has published itself
        self.ledger.gauges = Gauges(
            buffer=lambda: EMPTY,
            dead_letters=dead_letters.stats,
            database_up=lambda: None,
            hold_reason=lambda: None,
            state=self._state,
            disk_free_bytes=lambda: self._disk_free_bytes,
            limits=fill.limits._replace(journal_bytes_max=0),
        )
        self._tail = GatheredTail()
        self._balance = RolesBalance()
        self.instances = Instances(self.ledger, __version__, getpid())
        self.health = UpHealth(self.instances, fill, advice)
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
            joint=Joint(
                self.ledger,
                JointExposition(self.instances.shown, lambda: self._balance.lost),
                self._tail,
            ),
        )

    @property
    def dashboard(self) -> Dashboard:
        """The page."""
        return self._side.dashboard

    async def start(self, listen: str) -> str:
        """Listen; return the bound HOST:PORT. `listen` is where posts go.

        Raises StartError that names --admin-listen.
        """
        bound = self._bound = await self._side.start(listen, self._admin_listen)
        self._ticking = asyncio.create_task(
            self._side.dashboard.run(self._stopping, late_s=LATE_S, before=self._tick)
        )
        return bound

    def page(self, *, with_key: bool) -> str:
        """Return the address of the page; the key, if there is one, logs in the first browser."""
        return self._side.page_address(self._bound, with_key=with_key)

    def state(self) -> str:
        """Return the state and its reason as a text for a process manager."""
        return self.health.in_words()

    def database(self, url: DatabaseUrl, known: KnownServer) -> None:
        """Set what returns the database's URL, for the page's questions and replays."""
        self._side.database(url, known)

    def status(self, instance: str, blob: Mapping[str, Any]) -> None:
        """Take the status of a process, which StatusSource has made. Never fails."""
        try:
            status = read_status(blob)
            self._tail.add(status.tail)
            self.instances.heard(instance, status)
        except ValueError as error:
            if (left_out := self._occasionally.due(instance)) is not None:
                self._log.error(
                    "status_not_read",
                    instance=instance,
                    why=str(error)[:200],
                    similar_suppressed=left_out,
                )

    def gone(self, instance: str) -> None:
        """Note that a process of this name has ended; if two have it, the older one."""
        self.instances.gone(instance)

    def draining(self) -> None:
        """Note that all processes stop: /readyz says so from now on."""
        self.health.draining()

    async def close(self) -> None:
        """Close the streams of the page, the database connection and the port. Repeatable."""
        self._stopping.set()
        if self._ticking is not None:
            await asyncio.wait([self._ticking])
        await self._side.close()

    def _tick(self) -> None:
        try:
            self._disk_free_bytes = self._free_bytes()
        except OSError:
            self._disk_free_bytes = 0
        instances = self.instances
        instances.refresh()
        self.health.tick(self._dead_letters.stats().size_bytes, self._disk_free_bytes)
        total, figures = instances.ledger, instances.broker()
        self._balance.tick(
            Sample(
                monotonic_s(),
                total.published,
                total.delivered,
                total.returned,
                all_report=all(each.runs for each in instances.of(WRITER)),
                unclean=instances.unclean,
                messages_waiting=_of_writer(figures.get("consumer_pending")),
                messages_unacknowledged=_of_writer(figures.get("consumer_ack_pending")) or 0,
            )
        )

    def _state(self) -> str:
        return self.health.state()

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


def _of_writer(value: Any) -> float | None:
    found = value.get(WRITER) if isinstance(value, Mapping) else value
    return found if isinstance(found, int | float) else None
