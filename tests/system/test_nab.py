"""Real readings through the real service: every value is in the table once, bit for bit."""

from __future__ import annotations

import csv
import struct
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.system.service import Done, Service, run_command

FILES = {
    "machine_temperature_system_failure.csv": 22_695,
    "ambient_temperature_system_failure.csv": 7_267,
}
Row = tuple[datetime, bytes]


def _bits(value: float) -> bytes:
    return struct.pack(">d", value)


def _rows_of(path: Path) -> Counter[Row]:
    """Read the file independently of loadgen: Python's own csv, datetime and float."""
    with path.open(newline="") as file:
        return Counter(
            (
                datetime.strptime(row["timestamp"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC),
                _bits(float(row["value"])),
            )
            for row in csv.DictReader(file)
        )


async def _post(service: Service, path: Path, *more: str) -> Done:
    return await run_command(
        *("loadgen", "csv", path, "--device", path.stem, "--metric", "temperature"),
        *("--url", service.url, *more),
    )


@pytest.mark.slow
async def test_nab_files_posted_twice_are_in_the_table_once_and_bit_exact(
    open_tmp_path: Path, nab_dir: Path
) -> None:
    """Each reading is stored once, and its value is that of the file, bit for bit.

    With days, a write that has readings of more than 32 new days sets some aside for minutes.
    """
    total = sum(FILES.values())
    async with Service(open_tmp_path / "state", partition_span="month") as service:
        for name, rows in FILES.items():
            done = await _post(service, nab_dir / name)
            assert done.code == 0, done.stderr
            assert f"rows={rows} accepted={rows} dead_lettered=0" in done.stdout
        samples = await service.wait_quiet()
        assert samples["ingest_readings_committed_total"] == total
        for name, rows in FILES.items():
            stored = await service.query(
                "select ts, value from readings where device_id = $1 and metric = 'temperature'",
                Path(name).stem,
            )
            assert len(stored) == rows
            assert Counter((row["ts"], _bits(row["value"])) for row in stored) == _rows_of(
                nab_dir / name
            )

        for name in FILES:
            done = await _post(service, nab_dir / name, "--ack", "committed", "--batch", "2000")
            assert done.code == 0, done.stderr
        samples = await service.wait_quiet()
        assert samples["ingest_readings_duplicate_total"] == total
        assert samples["ingest_readings_committed_total"] == total
        assert samples["ingest_ledger_imbalance_rows"] == 0
        assert (await service.query("select count(*) from readings"))[0][0] == total
        code, output = await service.stop()
        assert code == 0, output
        assert "lost=0" in output
