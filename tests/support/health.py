"""Health for tests: with figures and partners that stand still, unless a test gives others."""

from __future__ import annotations

from typing import Any

from ingest.app.fill import Fill
from ingest.app.health import Health
from ingest.app.refusals import Refusals
from ingest.config.settings import Settings
from ingest.model.causes import FIELDS
from ingest.model.ledger import Ledger
from ingest.model.ports import BufferStats
from tests.support.fakes import FakeDatabase

EMPTY = BufferStats(0, 1000, 0, 10**6, 0, 0, 0, None)


def make_health(**given: Any) -> Health:
    """Return a Health; `given` replaces some of its arguments."""
    arguments: dict[str, Any] = {
        "settings": Settings(),
        "buffer": lambda: EMPTY,
        "database_state": FakeDatabase(),
        "free_bytes": lambda: 10**12,
        "refusals": Refusals(Ledger()),
        "fill": Fill(Settings()),
        "advice": {name: f"<{name}>" for name in FIELDS},
        **given,
    }
    return Health(**arguments)
