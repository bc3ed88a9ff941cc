"""`loadgen csv` into the real service: the example of docs/reference/loadgen.md, and wide files."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import DOCUMENTS, fences
from tests.system.service import REPOSITORY, Service, environment, run_command

ROWS = "select device_id, metric, ts, value from readings order by 1, 2, 3"
WIDE = (
    b"\xef\xbb\xbfat;sensor;temp;hum;note;temp2\r\n"
    b'2026-09-01T08:00:00+02:00;"cellar; north";11.5;;dry;1\r\n'
    b"1788242400;attic;20;41.25;warm;\r\n"
)


@pytest.fixture
async def service(open_tmp_path: Path, at_hand: dict[str, Any]) -> AsyncIterator[Service]:
    """Give a service."""
    async with Service(open_tmp_path / "state", **at_hand) as started:
        yield started


async def test_example_of_the_page_stores_its_lines(service: Service, open_tmp_path: Path) -> None:
    """A file whose columns have other names, as it is typed in a checkout."""
    example = fences(DOCUMENTS["docs/reference/loadgen.md"])[0].text
    (open_tmp_path / "run").write_text(
        f'#!/bin/sh\nshift\nexec "{sys.executable}" -m loadgen "$@"\n'
    )
    (open_tmp_path / "run").chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        *("sh", "-euc", example),
        cwd=open_tmp_path,
        env={
            **environment(measured=False),
            "INGEST_STATE_DIR": str(service.state_dir),
            "PYTHONPATH": str(REPOSITORY),
        },
    )
    assert await process.wait() == 0
    await service.wait_quiet()
    assert [tuple(each.values()) for each in await service.query(ROWS)] == [
        ("cellar", "temperature", datetime(2026, 9, 1, 8, 0, tzinfo=UTC), 11.5),
        ("cellar", "temperature", datetime(2026, 9, 1, 8, 10, tzinfo=UTC), 11.4),
    ]


async def test_wide_file_gives_a_reading_for_each_number(
    service: Service, open_tmp_path: Path
) -> None:
    """All columns of numbers are metrics, or the named ones; twice the same is stored once."""
    path = open_tmp_path / "wide.csv"
    path.write_bytes(WIDE)
    for columns in ("time=at,device=sensor", "time=at,device=sensor,warmth=temp"):
        words = ("--url", service.url, "--columns", columns, "--batch", 2)
        for _ in range(2):
            done = await run_command("loadgen", "csv", path, *words)
            assert done.code == 0, done.stderr
            assert ("not read (no number in the first line): note" in done.stdout) == (
                "warmth" not in columns
            )
    await service.wait_quiet()
    at = datetime(2026, 9, 1, 6, 0, tzinfo=UTC)
    north = [(n, at, v) for n, v in (("temp", 11.5), ("temp2", 1.0), ("warmth", 11.5))]
    attic = [(n, at, v) for n, v in (("hum", 41.25), ("temp", 20.0), ("warmth", 20.0))]
    assert [tuple(each.values()) for each in await service.query(ROWS)] == [
        *(("attic", *each) for each in attic),
        *(("cellar; north", *each) for each in north),
    ]
