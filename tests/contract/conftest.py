"""Gives each test of a contract every implementation in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.model.ports import Buffer
from tests.contract.buffers import FACTORIES, MakeBuffer


@pytest.fixture(params=FACTORIES, ids=lambda each: each.__name__)
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeBuffer]:
    """Make buffers (rows_max, bytes_max, put_wait_s_max); they are closed at the end."""
    made: list[Buffer] = []

    def make_one(rows_max: int, bytes_max: int, put_wait_s_max: float) -> Buffer:
        made.append(request.param(tmp_path, rows_max, bytes_max, put_wait_s_max))
        return made[-1]

    yield make_one
    for buffer in made:
        await buffer.close()
