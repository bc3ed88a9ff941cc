"""docs/tables.md: its tables are declared, what it posts is posted, and its SQL is run."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.config.declared_tables import PRESETS
from tests.support.commands import Here
from tests.support.documents import DOCUMENTS, fences
from tests.system.service import Service
from tests.unit.config.test_declared_tables import LINES

PAGE = DOCUMENTS["docs/tables.md"]
FIRST, TELEGRAF, LATER = (each.text for each in fences(PAGE) if each.language == "toml")


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    return tmp_path / "tables.toml"


async def test_values_of_docs_tables_md_are_a_row_and_a_panel(
    readings_url: str,
    readings_connection: asyncpg.Connection,
    tmp_path: Path,
    file: Path,
    here: Here,
) -> None:
    """As a newcomer does it: the first table, then the presets, and one more column."""
    (commands,) = (each.text for each in fences(PAGE) if each.language == "sh")
    (panel,) = (each.text for each in fences(PAGE) if each.language == "sql")
    curl, psql = map(shlex.split, commands.splitlines())
    database: dict[str, Any] = {
        "database_url": readings_url,
        "database_unsafe": True,
        "tables_file": file,
    }
    file.write_text(FIRST)
    async with Service(tmp_path / "state", **database) as service:
        assert curl[3] == "http://127.0.0.1:8080/v1/readings"
        assert (await service.post(curl[2].encode(), ack="committed")).status == 200
        shown = await readings_connection.fetch(psql[psql.index("-c") + 1])
        assert [[*each.items()][1:] for each in shown] == [
            [("device_id", "esp-1"), ("temperature", 21.4), ("humidity", 40), ("co2", 612)]
        ]
    file.write_text(FIRST + TELEGRAF + LATER)
    assert (await here("doctor", "--state-dir", tmp_path / "state", *flags(database))).code == 0
    async with Service(tmp_path / "state", **database) as service:
        line = LINES["cpu"].replace("cpu0", "cpu-total").encode()
        url = f"{service.url}/api/v2/write?org=any&bucket=any"
        assert (await service.request("POST", url, body=line)).status == 204
        assert (await service.post(curl[2].encode(), ack="committed")).status == 200
        expanded = panel.replace("$__timeFilter(ts)", "ts > now() - interval '1 hour'")
        (row,) = await readings_connection.fetch(expanded)
        assert [*row.values()][1:] == [2.02, 1.01, 0]
        assert datetime.now(UTC) >= row["time"]
        assert await readings_connection.fetchval("select count(*) from all_readings") == 16
        assert await readings_connection.fetchval("select count(noise) from climate") == 0
        assert await readings_connection.fetchval("select count(*) from readings") == 0


def flags(settings: dict[str, Any]) -> list[str]:
    """Return settings as flags."""
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items())
    return [word for pair in pairs for word in pair]


def test_docs_tables_md_names_every_preset() -> None:
    """With its table."""
    named = dict(re.findall(r"^\| `(telegraf_\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE))
    assert named == {name: preset["name"] for name, preset in PRESETS.items()}
