"""Makes the data of databases once in a test process, and says whose services are measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.database import Database
from tests.system.service import Service

# Services of these files run what those of the others run. To measure one costs 0.2 s more.
MEASURED = (
    *("access", "drain", "forward", "kill_9", "refused_rows", "start_without_database"),
    *("tls", "up_roles"),
)


@pytest.fixture(scope="session", autouse=True)
def _data_is_made_once(open_tmp: Path) -> Iterator[None]:
    """Make the data once: to copy it is several times faster, and it is always the same."""
    Database.template = open_tmp / "databases" / "data"
    yield
    Database.template = None


@pytest.fixture(scope="module", autouse=True)
def _some_services_are_measured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure the coverage of the services of some files only."""
    Service.measured = request.module.__name__.endswith(tuple(f".test_{each}" for each in MEASURED))
    yield
    Service.measured = True
