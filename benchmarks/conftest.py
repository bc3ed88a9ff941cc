"""Fixtures of the parts, and rounds on data that no round had before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from benchmarks.database import Database, running_database


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give the event loop that the service runs on."""
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    """Give a server for all tests of a file."""
    with running_database() as database:
        yield database
