"""Fixtures of several tests: a role, and a database for a whole file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ingest.sinks.postgres import schema
from tests.support.brokers import joined
from tests.support.constants import constants

if TYPE_CHECKING:
    from ingest.broker.connection import BrokerConnection
    from ingest.embedded.broker import EmbeddedBroker
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


@pytest.fixture
async def admin(server: EmbeddedBroker) -> AsyncIterator[BrokerConnection]:
    """Give a connection of the admin to the broker that a file gives as `server`."""
    async with joined(server, "admin") as connection:
        yield connection


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Let the housekeeping of a service look often."""
    with constants(housekeeping_pause_s=0.05):
        yield
