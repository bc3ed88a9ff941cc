"""Gives each test of a contract every implementation in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.model.ports import Buffer
from tests.contract.buffers import FACTORIES, NOT_OF_A_STREAM, MakeBuffer, joined


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of a buffer with each of them."""
    if "make" in metafunc.fixturenames:
        of_stream = metafunc.function.__name__ not in NOT_OF_A_STREAM
        factories = [*FACTORIES, *([joined] if of_stream else [])]
        ids = [each.__name__ for each in factories]
        metafunc.parametrize("make", factories, ids=ids, indirect=True)


@pytest.fixture
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeBuffer]:
    """Make buffers (rows_max, bytes_max, put_wait_s_max); they are closed at the end."""
    made: list[Buffer] = []

    def make_one(rows_max: int, bytes_max: int, put_wait_s_max: float) -> Buffer:
        made.append(request.param(tmp_path, rows_max, bytes_max, put_wait_s_max))
        return made[-1]

    yield make_one
    for buffer in made:
        await buffer.close()
