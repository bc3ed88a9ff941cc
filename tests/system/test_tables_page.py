"""docs/run/database.md: its tables are declared, what it posts is posted, and its SQL is run."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg

from ingest.config.declared_tables import PRESETS
from tests.support.commands import Here
from tests.support.documents import DOCUMENTS, REPOSITORY, fences
from tests.system.service import Service
from tests.system.test_readme import NEEDS_CURL
from tests.unit.config.test_declared_tables import LINES

PAGE = DOCUMENTS["docs/run/database.md"].split("\n## Tables with columns\n")[1]
FIRST, TELEGRAF, LATER = (each.text for each in fences(PAGE) if each.language == "toml")


@NEEDS_CURL
async def test_values_of_docs_tables_md_are_a_row_and_a_panel(
    readings_url: str, readings_connection: asyncpg.Connection, tmp_path: Path, here: Here
) -> None:
    """As a newcomer does it: the first table, then the presets, and one more column."""
    start, commands, suggest = (each.text for each in fences(PAGE) if each.language == "sh")
    (panel,) = (each.text for each in fences(PAGE) if each.language == "sql")
    file = tmp_path / "tables.toml"
    database = {"database_url": readings_url, "database_unsafe": True, "tables_file": file}
    database["sources_file"] = tmp_path / "sources.toml"
    settings: dict[str, Any] = {"state_dir": tmp_path / "state", **database}
    file.write_text(FIRST)
    (tmp_path / "sources.toml").write_text('[[source]]\nname = "esp"\ndevice = "id"\n')
    async with Service(**settings) as service:
        (tmp_path / "run").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ingest "$@"\n')
        (tmp_path / "run").chmod(0o755)
        post, _, look = commands.replace("http://127.0.0.1:8080", service.url).rpartition("./run")
        assert json.loads(await shell(post, tmp_path, readings_url))["accepted"] == 3
        await service.wait_quiet()
        text = start.replace("./run", f"{suggest.strip()} || test $? = 1  # no more\n./run {look}")
        shown = await shell(text, tmp_path, readings_url)
        head, _, row, *_ = (
            [each.strip() for each in each.split("|")] for each in shown.split("\n")
        )
        assert [*zip(head, row, strict=True)][1:] == [
            ("device_id", "esp-1"),
            ("temp", "21.4"),
            ("hum", "40"),
            ("co2", "612"),
        ]
    file.write_text(FIRST + TELEGRAF + LATER)
    flags = [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value).lower())
    ]
    listed = json.loads((await here("doctor", "--json", *flags)).stdout)
    states = {each["name"]: each["state"] for each in listed}
    assert (states["tables"], states["table climate"], states["table cpu"]) == (
        "ok",
        "warn",
        "warn",
    )
    async with Service(**settings) as service:
        line = LINES["cpu"].replace("cpu0", "cpu-total").encode()
        url = f"{service.url}/api/v2/write?org=any&bucket=any"
        assert (await service.request("POST", url, body=line)).status == 204
        await service.wait_quiet()
        assert await readings_connection.fetchval("select count(*) from all_readings") == 13
        expanded = panel.replace("$__timeFilter(ts)", "ts > now() - interval '1 hour'")
        (found,) = await readings_connection.fetch(expanded)
        assert [*found.items()][1:] == [
            ("usage_user", 2.02),
            ("usage_system", 1.01),
            ("usage_iowait", 0),
        ]
        assert await readings_connection.fetchval("select count(noise) from climate") == 0
        assert await readings_connection.fetchval("select count(*) from readings") == 0


async def shell(script: str, folder: Path, url: str) -> str:
    """Run commands of the page; return their output."""
    done = await asyncio.to_thread(
        subprocess.run,
        ["sh", "-euc", script],
        cwd=folder,
        env={"PATH": os.defpath, "PYTHONPATH": str(REPOSITORY), "INGEST_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def test_docs_tables_md_names_every_preset() -> None:
    """With its table."""
    assert all(f"`{name}`" in PAGE or f'"{name}"' in PAGE for name in PRESETS)
