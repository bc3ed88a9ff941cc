"""Mapped sources at the real service: what got a 200 is in the table once, also after kill -9."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.service import Service, run_command

SOURCES = """
[[source]]
name = "esp"
device = "id"
time = "at"

[[source]]
preset = "telegraf_json"
"""


@pytest.mark.slow
async def test_killed_service_has_every_document_that_got_a_200(
    open_tmp_path: Path, readings_url: str
) -> None:
    """Small posts, one of 10,000 readings, faults; kill -9; then a better table, and a replay."""
    file = open_tmp_path / "sources.toml"
    file.write_text(SOURCES)
    state = open_tmp_path / "state"
    service = Service(
        state, database_url=readings_url, database_unsafe=True, sources_file=str(file)
    )
    async with service:
        await service.wait_state("accepting")
        fields = {f"f{at}": at + 0.5 for at in range(10)}
        rows = [
            {"name": "m", "tags": {"host": "h"}, "fields": fields, "timestamp": 1777636800 + at}
            for at in range(1_000)
        ]
        body = json.dumps({"metrics": rows}).encode()
        large = await service.request("POST", f"{service.url}/v1/in/telegraf_json", body=body)
        assert large.document == {"accepted": 10_000, "faulty": 0, "ignored": 0}
        for number in range(50):
            documents = [
                {"id": "e", "at": 1777636800 + number, "v": number},
                {"name": "late", "at": 1777636800 + number, "v": number},
            ]
            body = json.dumps(documents).encode()
            reply = await service.request("POST", f"{service.url}/v1/in/esp", body=body)
            assert (reply.document["accepted"], reply.document["faulty"]) == (1, 1)
        await service.kill()
        await service.start()
        await service.wait_rows(10_050)
        samples = await service.wait_quiet()
        (row,) = await service.query("select count(*) from readings")
        assert row[0] == 10_050
        assert samples["ingest_dlq_readings"] == 50
        assert samples["ingest_ledger_imbalance_rows"] == 0
        file.write_text(SOURCES.replace('"id"', '["id", "name"]'))
        words = ("--state-dir", state, "--database-url", readings_url, "--database-unsafe", "true")
        done = await run_command("ingest", "dlq", "replay", "--sources-file", str(file), *words)
        assert "50 dead letters replayed: 50 readings, 50 new" in done.stdout, done
        (row,) = await service.query("select count(*) from readings where device_id = 'late'")
        assert row[0] == 50
