"""The programs of docs/use/library.md, run as they stand there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg

from tests.support.documents import DOCUMENTS, REPOSITORY, fences

PAGE = [each.text for each in fences(DOCUMENTS["docs/use/library.md"]) if each.language == "python"]


def _block(said: str) -> str:
    (found,) = [each for each in PAGE if said in each]
    return found


async def test_script_moves_a_csv_and_may_be_run_again(
    readings_url: str, readings_connection: asyncpg.Connection, open_tmp_path: Path
) -> None:
    """Each reading is in the table once; a row whose value is not a number does not stop it."""
    script = _block("Move a CSV").replace('state_dir="', 'database_unsafe=True, state_dir="')
    (open_tmp_path / "move.py").write_text(script)
    rows = "".join(f"2026-01-01T00:{at // 60:02}:{at % 60:02}Z,d,m,{at}\n" for at in range(2_500))
    (open_tmp_path / "readings.csv").write_text(f"time,device,metric,value\n,d,m,n/a\n{rows}")
    for _ in range(2):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "move.py", "readings.csv"],
            cwd=open_tmp_path,
            env={**os.environ, "DATABASE_URL": readings_url, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "Drained(committed=2500, dead_lettered=1, held=0, lost=0)\n"
        assert await readings_connection.fetchval("select count(*) from readings") == 2_500


async def test_test_of_a_program_needs_no_database() -> None:
    """It is a test as users write it."""
    names: dict[str, Any] = {}
    exec(_block("Pipeline.in_memory()"), names)  # noqa: S102  the text of our own page
    await names["test_sample_stores_what_the_sensor_says"]()
