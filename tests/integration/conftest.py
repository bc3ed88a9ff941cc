"""Fixtures of several tests: commands run in this process, a role, a database for a whole file."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ingest.sinks.postgres import schema
from tests.support.commands import Here
from tests.system.database import Database

if TYPE_CHECKING:
    from tests.conftest import Server


@pytest.fixture(scope="session", autouse=True)
def _data_is_made_once(open_tmp: Path) -> Iterator[None]:
    """Make the data of embedded databases once, as for system tests."""
    Database.template = open_tmp / "databases" / "data"
    yield
    Database.template = None


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """Give a way to run commands in this process, without what the machine sets."""
    for name in list(os.environ):
        if name.startswith("INGEST_"):
            monkeypatch.delenv(name)
    return Here(capsys)


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
