"""Health for tests: with figures and partners that stand still, unless a test gives others."""

from __future__ import annotations

from typing import Any

from ingest.app.health import Health
from ingest.app.space import DiskSpace, Fill
from ingest.config.settings import Settings
from ingest.model.causes import FIELDS
from ingest.model.ledger import Ledger
from ingest.model.ports import BufferStats
from tests.support.fakes import FakeDatabase

EMPTY = BufferStats(0, 1000, 0, 10**6, 0, 0, 0, None)


class FakeDisk:
    """A state folder with so much free space."""

    def __init__(self, free: int | OSError = 10**12) -> None:
        self.free = free

    def room(self) -> tuple[int, str]:
        """Return the free space and its place, or fail as a disk does."""
        if isinstance(self.free, OSError):
            raise self.free
        return self.free, "/srv/state, on the disk that is mounted at /srv"


def make_health(**given: Any) -> Health:
    """Return a Health; `given` replaces some of its arguments."""
    settings = given.pop("settings", Settings())
    disk = given.pop("disk", FakeDisk())
    arguments: dict[str, Any] = {
        "buffer": lambda: EMPTY,
        "database_state": FakeDatabase(),
        "disk": DiskSpace(disk, free_bytes_min=settings.disk_free_bytes_min, broken=lambda: ""),
        "ledger": Ledger(),
        "fill": Fill(Settings()),
        "advice": {name: f"<{name}>" for name in FIELDS},
        **given,
    }
    return Health(**arguments)
