"""Fixtures of the tests that start servers of their own."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.embedded import running


@pytest.fixture(scope="module")
def data_template(open_tmp: Path) -> Path:
    """Make data once, for the tests to copy: making it costs more than all else that they do."""

    async def make(folder: Path) -> Path:
        async with running(folder):
            return folder / "data"

    with asyncio.Runner() as runner:
        return runner.run(make(open_tmp / "template"))


@pytest.fixture
def made(open_tmp_path: Path, data_template: Path) -> Path:
    """Give a folder with fresh data, as a stopped server leaves it."""
    subprocess.run(["cp", "-a", str(data_template), str(open_tmp_path / "data")], check=True)
    return open_tmp_path
