"""Processes of `up` for tests: a real ledger and status, with a pid that the test chooses."""

from __future__ import annotations

import itertools
import json
from typing import Any

import orjson

from ingest.admin.dashboard.tail import Observed, Tail
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from ingest.model.ports import BufferStats
from ingest.roles.status import StatusSource

_PIDS = itertools.count(1001)


class FakeProcess:
    """One process: change its `ledger` and `ready`, then take its `sent`."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.pid = next(_PIDS)
        self.started_us = self.sent_us = self.pid * 1_000_000
        self.held = 0
        self.oldest_s: float | None = None
        self.database_up: bool | None = True if role == "writer" else None
        self.hold_reason: str | None = None
        self.broker: dict[str, Any] = {}
        self.ready: dict[str, Any] = {"state": "accepting", "cause": "", "reason": ""}
        self.message = ""
        self.refused: list[dict[str, Any]] = []
        self.ledger = Ledger()
        self.ledger.gauges = Gauges(
            buffer=lambda: BufferStats(self.held, 100, 0, 1000, 0, 0, 0, self.oldest_s),
            dead_letters=DeadLetterStats,
            database_up=lambda: self.database_up,
            hold_reason=lambda: self.hold_reason,
            state=lambda: str(self.ready["state"]),
            figures=lambda: self.broker,
        )
        self.source = StatusSource(
            role,
            Observed(
                self.ledger,
                lambda: (200, json.dumps(self.ready).encode()),
                Tail(),
                lambda: self.message,
                lambda: self.refused,
            ),
        )

    def sent(self, *, after_s: float = 1.0, final: bool = False) -> dict[str, Any]:
        """Return the next status, as it comes out of a channel."""
        self.sent_us += round(after_s * 1e6)
        status = self.source.status(final=final)
        status |= {"pid": self.pid, "started_us": self.started_us, "sent_us": self.sent_us}
        found: dict[str, Any] = orjson.loads(orjson.dumps(status))
        return found

    def takes(self, rows: int) -> None:
        """A gateway receives and publishes readings; a writer is delivered and stores them."""
        if self.role == "gateway":
            self.ledger.received += rows
            self.ledger.published += rows
        else:
            self.ledger.delivered += rows
            self.ledger.batch_stored("copy", 0.01, rows, 0)
