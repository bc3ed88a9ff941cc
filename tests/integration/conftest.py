"""Fixtures of several tests: a role, and a database for a whole file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats.connection import BrokerConnection
from ingest.sinks.postgres import schema
from tests.support.brokers import embedded, joined
from tests.support.constants import constants

if TYPE_CHECKING:
    from tests.conftest import Server


@pytest.fixture
def role(server: Server) -> Iterator[str]:
    """Give a role that may log in and nothing else; it must own nothing at the end."""
    name = "plain_role"
    server.run(lambda connection: connection.execute(f"create role {name} login"))
    yield name
    server.run(lambda connection: connection.execute(f"drop role {name}"))


@pytest.fixture(scope="module")
def shared_url(server: Server) -> Iterator[str]:
    """Give one database for all tests of a file: making one takes a second on a busy machine."""
    name = server.create("template0")
    yield server.url_of(name)
    server.drop(name)


@pytest.fixture
async def connection(shared_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Give a connection to the shared database, which is empty again."""
    connection = await asyncpg.connect(shared_url)
    await connection.execute("drop schema public cascade; create schema public")
    yield connection
    await connection.close()


@pytest.fixture
async def operator(connection: asyncpg.Connection) -> asyncpg.Connection:
    """Give the operator's connection to a fresh table in the shared database."""
    await schema.apply(connection)
    return connection


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Let the housekeeping of a service look often."""
    with constants(housekeeping_pause_s=0.05):
        yield


@pytest.fixture
async def own_nats(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    """Give a broker of the test's own, with the stream."""
    async with embedded(tmp_path / "broker") as running:
        yield running


@pytest.fixture
async def admin(own_nats: EmbeddedBroker) -> AsyncIterator[BrokerConnection]:
    """Give a connection of the admin to that broker."""
    async with joined(own_nats, "admin") as connection:
        yield connection
