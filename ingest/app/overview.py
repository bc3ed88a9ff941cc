"""All processes as one: their statuses, their sum, and their state.

The port of `ingest up` and that of a writer show it.
Promises: what a process sends cannot break it; a status that is not readable is left out, and
logged now and then.
Does not: know how statuses come, or which processes there should be.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any

from ingest.admin.dashboard.pages import Dashboard
from ingest.admin.dashboard.tail import Observed, Tail
from ingest.app import fill
from ingest.app.fill import Fill
from ingest.app.instances import WRITER, Instances
from ingest.app.status import read_message, read_status
from ingest.app.up_health import UpHealth
from ingest.broker.envelope import Message
from ingest.config.settings import Settings
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from ingest.model.metrics import figures_of
from ingest.model.ports import BufferStats
from ingest.system.logs import Occasionally, get_logger

LATE_S = 0.5  # a tick comes so long after the full second, at which the processes send
Tell = Callable[[str, dict[str, Any]], object]  # sends a message to the process with this name
EMPTY = BufferStats(0, 0, 0, 0, 0, 0, 0, None)


class Overview:
    """The processes that this one shows.

    `free_bytes` returns the free space of the state folder, and may raise OSError; None: it has no
    folder. `advice` are the words of the next steps. `forget_s`: see Instances.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        dead_letters: Callable[[], DeadLetterStats],
        free_bytes: Callable[[], int] | None,
        advice: Mapping[str, str],
        forget_s: float = math.inf,
    ) -> None:
        self._dead_letters = dead_letters
        self._free_bytes = free_bytes
        self._log = get_logger("admin")
        self._occasionally = Occasionally(60.0)
        filling = Fill(settings, has_folder=free_bytes is not None)
        own = figures_of((fill.METRICS, lambda: filling))
        self.own = Ledger()  # of this process, for what it counts itself
        self.own.gauges = Gauges(
            buffer=lambda: EMPTY,
            dead_letters=dead_letters,
            database_up=lambda: None,
            hold_reason=lambda: None,
            state=lambda: self.health.state(),  # noqa: PLW0108  made below
            figures=lambda: {**own(), **self.instances.losses()},
        )
        self._tail = Tail()
        self.instances = Instances(self.own, forget_s=forget_s)
        self.health = UpHealth(self.instances, filling, advice)
        self.observed = Observed(
            self.instances.ledger,
            self.health.readyz,
            self._tail,
            self.instances.message,
            self.instances.refused_posts,
        )

    def status(self, instance: str, blob: Mapping[str, Any]) -> None:
        """Take the status of a process, which StatusSource has made. Never fails."""
        try:
            status = read_status(blob)
            self._tail.add(status.tail)
            self.instances.heard(instance, status)
        except ValueError as error:
            if (left_out := self._occasionally.due("status")) is not None:
                self._log.error(
                    "status_not_read",
                    instance=instance[:100],
                    why=str(error)[:200],
                    similar_suppressed=left_out,
                )

    def hear(self, own: str, message: Message) -> None:
        """Take what a process that nobody leads has told the others, of which one is `own`."""
        try:
            instance, status = read_message(message.data)
        except ValueError:
            instance, status = "", {}  # which is logged as one that cannot be read
        if instance != own:
            self.status(instance, status)

    def release_hold(self, tell: Tell, dead_letter: bool) -> bool:
        """Tell all writers that wait to try at once; return whether there are any."""
        waiting = [
            each
            for each in self.instances.of(WRITER)
            if each.runs
            and (gauges := each.status.ledger.gauges) is not None
            and (gauges.database_up() is False or gauges.hold_reason() is not None)
        ]
        for each in waiting:
            tell(each.name, {"do": "release_hold", "dead_letter": dead_letter})
        return bool(waiting)

    async def show(self, dashboard: Dashboard, stop: asyncio.Event) -> None:
        """Update the page each second until `stop` is set."""
        await dashboard.run(stop, late_s=LATE_S, before=self.tick)

    def tick(self) -> None:
        """Add all up; once a second, some time after the statuses have come."""
        try:
            free_bytes = None if self._free_bytes is None else self._free_bytes()
        except OSError:
            free_bytes = 0
        self.instances.refresh()
        self.health.tick(self._dead_letters(), free_bytes)
