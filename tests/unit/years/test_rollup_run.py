"""A run of the rollups takes at most half of a core."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.sinks.postgres.schema import READINGS
from ingest.years.rollups import run as rollup_run
from ingest.years.rollups.run import REST_S_MAX, Run


async def test_run_rests_as_long_as_it_has_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short work is added up, a long pause is cut, and the pause itself is no work."""
    now_s, rests = 100.0, list[float]()

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        rests.append(seconds)
        now_s += seconds

    monkeypatch.setattr(rollup_run, "monotonic_s", lambda: now_s)
    monkeypatch.setattr("asyncio.sleep", sleep)
    connection: Any = None
    run = Run(
        connection,
        0,
        READINGS,
        end_s=0.0,
        stopped=lambda: False,
        part_us=1,
    )
    for worked_s in (0.5, 0.004, 0.004, 0.0, 100.0, 0.25):
        now_s += worked_s
        await run.rest()
    assert rests == pytest.approx([0.5, 0.008, REST_S_MAX, 0.25])
