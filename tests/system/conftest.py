"""Gives a service a database of the tests' server; says whose services are measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.service import Service

# Services of these files run what those of the others run. To measure one costs 0.2 s more.
MEASURED = ("start_without_database", "up_roles")


@pytest.fixture
def at_hand(database_url: str) -> dict[str, Any]:
    """Give the settings of a service that needs no server of its own: it starts a second earlier.

    Its database is empty, as an embedded one is. The tests' server does not fsync.
    """
    return {"database_url": database_url, "database_unsafe": True}


@pytest.fixture(scope="module", autouse=True)
def _some_services_are_measured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure the coverage of the services of some files only."""
    Service.measured = request.module.__name__.endswith(tuple(f".test_{each}" for each in MEASURED))
    yield
    Service.measured = True
