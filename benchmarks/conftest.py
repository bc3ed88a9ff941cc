"""A database for the parts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.database import Database, running_database


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    """Give a server for all tests of a file."""
    with running_database() as database:
        yield database
