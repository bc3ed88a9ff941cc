"""The admin port of a writer that runs alone: its own probes and metrics, and the page of all.

Gateways and writers that nobody leads tell each other their statuses by the broker. So the page of
each writer shows all of them. Its figures are the sum over all; /metrics has those of this writer
alone, since each process is scraped on its own.
Does not: act on other processes; `hold release` is for this writer, and the page says so.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from ingest.access.tokens import Tokens
from ingest.app.admin import AdminSide, Joint
from ingest.app.metrics import own_metrics
from ingest.app.overview import LATE_S, Overview
from ingest.app.status import read_message
from ingest.broker.envelope import Message
from ingest.config.settings import Settings
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.model.ledger import Ledger

FORGET_S = 30.0  # a process that was silent for so long is gone: nobody else says it


class WriterAdmin:
    """The admin port of one writer, whose name is `instance`. `ledger` and `readyz` are its own.

    `release_hold(dead_letter)` makes it try at once. `advice` are the words of the next steps.
    """

    def __init__(
        self,
        settings: Settings,
        instance: str,
        *,
        ledger: Ledger,
        dead_letters: DeadLetterQueue,
        readyz: Callable[[], tuple[int, bytes]],
        release_hold: Callable[[bool], bool],
        advice: Mapping[str, str],
        tokens: Tokens | None = None,
    ) -> None:
        self._instance = instance
        overview = self._overview = Overview(
            settings,
            dead_letters=dead_letters.stats,
            free_bytes=None,
            advice=advice,
            forget_s=FORGET_S,
        )
        self.side = AdminSide(
            settings,
            ledger=overview.instances.ledger,
            dead_letters=dead_letters,
            readyz=readyz,
            message=overview.instances.message,
            token=settings.admin_token or secrets.token_urlsafe(24),
            release_hold=release_hold,
            refused_posts=overview.instances.refused_posts,
            buffer="stream",
            tokens=tokens,
            joint=Joint(
                ledger,
                own_metrics(ledger),
                overview.tail,
                page_readyz=overview.health.readyz,
                releases=instance,
            ),
        )

    def status(self, status: Mapping[str, Any]) -> None:
        """Take the status of this process."""
        self._overview.status(self._instance, status)

    def hear(self, message: Message) -> None:
        """Take what a process has told the others. Never fails."""
        try:
            instance, status = read_message(message.data)
        except ValueError:
            instance, status = "", {}  # which is logged as one that cannot be read
        if instance != self._instance:
            self._overview.status(instance, status)

    async def run(self, stop: asyncio.Event) -> None:
        """Update the page each second until `stop` is set."""
        await self.side.dashboard.run(stop, late_s=LATE_S, before=self._overview.tick)
