"""A journal much larger than memory may be: read back in bounded memory, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.block import Block, encode_rows, names_between
from ingest.clock import unix_us
from ingest.journal_store import JournalStore
from tests.system.fleet import FIRST_US, reading
from tests.system.service import Service

POSTS, ROWS = 12_000, 100  # some 65 MB
SEGMENT_BYTES = 16 << 20
RSS_KIB_MAX = 150_000  # without a backlog it is some 60,000


def write_journal(folder: Path) -> None:
    """Leave what a service that was killed during an outage leaves."""
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o755)
    store = JournalStore(folder, segment_bytes=SEGMENT_BYTES)
    store.open()
    names = [names_between(f"device-{number:03d}", "temperature") for number in range(ROWS)]
    values = [20.5 + number for number in range(ROWS)]
    for group in range(POSTS // 100):
        blocks: list[Block] = []
        for number in range(group * 100, group * 100 + 100):
            first_us = FIRST_US + number * ROWS
            times_us = range(first_us, first_us + ROWS)
            block = Block(
                encode_rows(times_us, names, values),
                ROWS,
                received_s=0,
                received_us=unix_us(),
                newest_ts_us=times_us[-1],
            )
            block.sequence = number + 1
            blocks.append(block)
        store.write(blocks)
    store.close()


def peak_kib(pid: int) -> int:
    """Return the most memory that a process ever had, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_journal_larger_than_memory_is_replayed_whole_in_bounded_memory(
    open_tmp_path: Path,
) -> None:
    """All of it is in the table, posts are taken meanwhile, and memory stays what it was."""
    state = open_tmp_path / "state"
    write_journal(state / "journal")
    async with Service(
        state, journal_segment_bytes=SEGMENT_BYTES, buffer_bytes_max=8 << 20
    ) as service:
        await service.wait_state("accepting")
        live = 0
        while (await service.metrics())["ingest_readings_committed_total"] < POSTS * ROWS:
            assert (await service.post(reading(FIRST_US - 1 - live))).status == 202
            live += 1
        samples = await service.wait_quiet(within_s=60)
        assert samples["ingest_readings_recovered_total"] == POSTS * ROWS
        assert samples["ingest_readings_committed_total"] == POSTS * ROWS + live
        assert samples["ingest_readings_dropped_total"] == 0
        assert samples["ingest_ledger_imbalance_rows"] == 0
        (row,) = await service.query("select count(*) as count from readings")
        assert row["count"] == POSTS * ROWS + live
        assert peak_kib(service.pid) < RSS_KIB_MAX
