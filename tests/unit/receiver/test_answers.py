"""Each row of data is answered, kept and counted as it says, over a real socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.http.routes import POST, Route
from ingest.receiver.pages.json import READINGS, Readings, _problem
from tests.support.ways import each_way
from tests.unit.receiver import rows_access, rows_lines, rows_readings, rows_sources
from tests.unit.receiver.rows import Group, faults

GROUPS = rows_access.GROUPS | rows_lines.GROUPS | rows_readings.GROUPS | rows_sources.GROUPS


@each_way
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())
async def test_requests_are_answered_as_their_rows_say(group: Group, tmp_path: Path) -> None:
    """All differences are told."""
    assert await faults(group, tmp_path) == []


@pytest.mark.parametrize("group", rows_readings.GROUPS.values(), ids=rows_readings.GROUPS.keys())
async def test_page_of_readings_answers_as_if_it_were_not_written_in_one_piece(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `take` is the way of Posts once more, for speed: both must do the same."""

    def routes(self: Readings) -> dict[str, Route]:
        return {READINGS: Route(POST, self._posts.page(self), _problem)}

    monkeypatch.setattr(Readings, "pages", routes)
    assert await faults(group, tmp_path) == []
