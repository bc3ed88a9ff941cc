"""Lets the databases of one test process have their data made once, and copied from then on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.database import Database


@pytest.fixture(scope="session", autouse=True)
def _data_is_made_once(open_tmp: Path) -> Iterator[None]:
    """To make it takes several times as long as to copy it, and it is the same each time."""
    Database.template = open_tmp / "databases" / "data"
    yield
    Database.template = None
