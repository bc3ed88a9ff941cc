"""A service with a partition for each day, from its first start on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.system.service import Service, run_command

SETTINGS: dict[str, Any] = {"partition_span": "day", "late_days_max": 20_000}
FLAGS = ["--partition-span=day"]
NAMES_SQL = (
    "select inhrelid::regclass::text as name from pg_inherits where inhparent = $1::regclass"
)


async def test_service_makes_partitions_and_stores_late_readings_in_new_ones(
    open_tmp_path: Path,
) -> None:
    """The table is made, readings of all times are stored, and status, doctor, metrics say so."""
    state = open_tmp_path / "state"
    times = ["2003-02-28T23:59:59Z", "2024-02-29T12:00:00Z", None, None]
    items = [
        {"device_id": "d", "metric": f"m{n}", "value": n} | ({"ts": ts} if ts else {})
        for n, ts in enumerate(times)
    ]
    async with Service(state, **SETTINGS, housekeeping_pause_s=1) as service:
        await service.wait_state("accepting")
        answer = await service.post(items, ack="committed")
        assert (answer.status, answer.document["accepted"]) == (200, 4)
        found = {row["name"] for row in await service.query(NAMES_SQL, "readings")}
        assert {"readings_p20030228", "readings_p20240229"} < found
        await service.wait_sample("ingest_partitions", len(found))
        samples = await service.metrics()
        assert samples["ingest_partition_spans_ahead"] >= 8
        assert samples["ingest_table_oldest_age_seconds"] > 86_400 * 365 * 20
        assert samples["ingest_ledger_imbalance_rows"] == 0
        assert (await service.readyz()).document["cause"] == ""
        status = await run_command("ingest", "housekeeping", "status", "--state-dir", state, *FLAGS)
        assert status.code == 0, status.stderr
        assert f"{len(found)} partitions, {len(found)} of them made or adopted" in status.stdout
        doctor = await run_command("ingest", "doctor", "--state-dir", state, *FLAGS)
        assert "after the present one have a partition" in doctor.stdout
