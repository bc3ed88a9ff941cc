"""Fixtures of the tests of the commands: a runner in this process, and a role without rights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import Here

if TYPE_CHECKING:
    from tests.conftest import Server


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
