"""Each row of data is answered, kept and counted as it says, over a real socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.ways import each_way
from tests.unit.receiver import rows_access, rows_lines, rows_readings, rows_sources
from tests.unit.receiver.rows import Group, faults

GROUPS = rows_access.GROUPS | rows_lines.GROUPS | rows_readings.GROUPS | rows_sources.GROUPS


@each_way
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())
async def test_requests_are_answered_as_their_rows_say(group: Group, tmp_path: Path) -> None:
    """All differences are told."""
    assert await faults(group, tmp_path) == []
