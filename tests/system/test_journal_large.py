"""A journal much larger than the memory bound is read back completely, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.journal_replay import write_journal
from tests.system.fleet import FIRST_US, reading
from tests.system.service import Service

JOURNAL_BYTES = 65_000_000
SEGMENT_BYTES = 16 << 20
RSS_KIB_MAX = 150_000  # without a backlog it needs some 60,000


def peak_kib(pid: int) -> int:
    """Return the most memory that a process ever had, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_journal_larger_than_memory_is_replayed_whole_in_bounded_memory(
    open_tmp_path: Path,
) -> None:
    """All rows are in the table, posts are taken meanwhile, and memory does not grow."""
    state = open_tmp_path / "state"
    rows, _ = write_journal(
        state / "journal", size_bytes=JOURNAL_BYTES, segment_bytes=SEGMENT_BYTES
    )
    assert rows > 700_000
    async with Service(
        state, journal_segment_bytes=SEGMENT_BYTES, buffer_bytes_max=8 << 20
    ) as service:
        await service.wait_state("accepting")
        live = 0
        while (await service.metrics())["ingest_readings_committed_total"] < rows:
            assert (await service.post(reading(FIRST_US - 1 - live))).status == 202
            live += 1
        samples = await service.wait_quiet(within_s=60)
        assert samples["ingest_readings_recovered_total"] == rows
        assert samples["ingest_readings_committed_total"] == rows + live
        assert samples["ingest_readings_dropped_total"] == 0
        assert samples["ingest_ledger_imbalance_rows"] == 0
        (found,) = await service.query("select count(*) as count from readings")
        assert found["count"] == rows + live
        assert peak_kib(service.pid) < RSS_KIB_MAX
