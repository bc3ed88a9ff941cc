"""Makes the data of databases once in a test process; later databases copy it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.database import Database


@pytest.fixture(scope="session", autouse=True)
def _data_is_made_once(open_tmp: Path) -> Iterator[None]:
    """Make the data once: to copy it is several times faster, and it is always the same."""
    Database.template = open_tmp / "databases" / "data"
    yield
    Database.template = None
