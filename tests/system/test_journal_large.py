"""A journal much larger than the memory bound is read back completely, in bounded memory."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from ingest.buffers.journal.folder import JournalFolder
from ingest.buffers.journal.segments import PLAIN
from ingest.model.block import PG_EPOCH_US, Block, encode_rows, names_between
from ingest.system.clock import unix_us
from tests.system.fleet import FIRST_US, reading
from tests.system.service import Service

JOURNAL_BYTES = 65_000_000
SEGMENT_BYTES = 16 << 20
RSS_KIB_MAX = 150_000  # without a backlog it needs some 60,000
ROWS = 100  # of a post
GROUP_POSTS = 200  # brought to the disk together
NAMES = [names_between(f"3f2b8c1e-9d4a-4c55-8e0a-{at:012x}", "temperature") for at in range(ROWS)]
VALUES = [20.5 + at for at in range(ROWS)]


def write_journal(folder: Path) -> int:
    """Write the journal that a service leaves if it is killed in an outage; return the rows."""
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o755)
    store = JournalFolder(folder, segment_bytes=SEGMENT_BYTES, version=PLAIN)
    store.open()
    posts = written = 0
    with closing(store):
        while written < JOURNAL_BYTES:
            place = store.write([post(posts + number) for number in range(GROUP_POSTS)])
            written += place.end - place.start
            posts += GROUP_POSTS
    return posts * ROWS


def post(number: int) -> Block:
    """Return the post with this number; all readings differ by a microsecond."""
    first_us = FIRST_US + number * ROWS
    times_us = range(first_us, first_us + ROWS)
    rows = encode_rows([ts_us - PG_EPOCH_US for ts_us in times_us], NAMES, VALUES)
    block = Block(rows, ROWS, received_s=0, received_us=unix_us(), newest_ts_us=times_us[-1])
    block.sequence = number + 1
    return block


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
    rows = write_journal(state / "journal")
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
