"""A service with a partition for each day, from its first start on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.system.service import Service, run_command

SETTINGS: dict[str, Any] = {"partition_span": "day", "late_days_max": 20_000}
NAMES_SQL = (
    "select inhrelid::regclass::text as name from pg_inherits where inhparent = $1::regclass"
)
DECLARED = """
[[table]]
name = "climate"
metrics = ["temperature", "humidity"]
since = 2003-01-01T00:00:00Z
"""


async def test_service_makes_partitions_and_stores_late_readings_in_new_ones(
    open_tmp_path: Path,
) -> None:
    """The tables are made, readings of all times are stored, and status, doctor, metrics say so."""
    state, declared = open_tmp_path / "state", open_tmp_path / "tables.toml"
    declared.write_text(DECLARED)
    flags = ["--partition-span=day", f"--tables-file={declared}", "--state-dir", state]
    times = ["2003-02-28T23:59:59Z", "2024-02-29T12:00:00Z", None, None]
    items = [
        {"device_id": "d", "metric": f"m{n}", "value": n} | ({"ts": ts} if ts else {})
        for n, ts in enumerate(times)
    ]
    values = {"temperature": 20.5, "humidity": 0.25}
    moments = ("2024-02-29T12:00:00Z", "2024-03-01T00:00:00Z")
    items += [{"device_id": "d", "values": values, "ts": ts} for ts in moments]
    async with Service(state, **SETTINGS, tables_file=declared, housekeeping_pause_s=1) as service:
        await service.wait_state("accepting")
        answer = await service.post(items, ack="committed")
        assert (answer.status, answer.document["accepted"]) == (200, 8)
        of_climate = {row["name"] for row in await service.query(NAMES_SQL, "climate")}
        assert {"climate_p20240229", "climate_p20240301"} < of_climate
        found = {row["name"] for row in await service.query(NAMES_SQL, "readings")}
        assert {"readings_p20030228", "readings_p20240229"} < found
        assert "readings_p20240301" not in found
        # Another value of a moment, and one for which the other table has a partition only
        items[-1]["values"] = {"temperature": 21.5}
        assert (await service.post(items, ack="committed")).status == 200
        assert {"readings_p20240301"} < {
            row["name"] for row in await service.query(NAMES_SQL, "readings")
        }
        (row,) = await service.query("select count(*) from all_readings")
        assert row[0] == 11  # two of the first four are posted with a time of their own each time
        found |= of_climate | {"readings_p20240301"}
        await service.wait_sample("ingest_partitions", len(found))
        samples = await service.metrics()
        assert samples["ingest_partition_spans_ahead"] >= 8
        assert samples["ingest_table_oldest_age_seconds"] > 86_400 * 365 * 20
        assert samples["ingest_ledger_imbalance_rows"] == 0
        assert (await service.readyz()).document["cause"] == ""
        status = await run_command("ingest", "housekeeping", "status", *flags)
        assert status.code == 0, status.stderr
        for count in (len(of_climate), len(found) - len(of_climate)):
            assert f"{count} partitions, {count} of them made or adopted" in status.stdout
        doctor = await run_command("ingest", "doctor", *flags)
        assert doctor.stdout.count("after the present one have a partition") == 2
