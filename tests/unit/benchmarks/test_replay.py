"""`python -m benchmarks.journal_replay`: the journal that it writes, and its bounds; no service."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.journal_replay import BACKLOG_US, ROWS, Found, Phase, summary, write_journal
from ingest.buffers.journal.reader import SegmentScan, segment_files
from ingest.model.rows import decode_rows
from tests.support.journals import on_disk

FINE = Phase(p50_ms=1, p99_ms=2, max_ms=3, failed=0, left_rows=0)


def found(
    *, rss: float = 399, beside_ms: float = 5.9, over: int = 1, failed: int = 0, after: Phase = FINE
) -> Found:
    """Give the result of a run that kept all bounds, except for the named figures."""
    p99s_ms = [beside_ms] * (11 - over) + [99.0] * over
    beside = [FINE._replace(p99_ms=each) for each in p99s_ms]
    beside[0] = beside[0]._replace(failed=failed)
    return Found(2**30, 1_000, 10, rss, [FINE] * 3, beside, [after])


def test_bounds_that_are_kept_are_no_faults() -> None:
    """The median phase counts, and the share of bad ones: one in ten is printed, and no fault."""
    assert found().faults == []
    assert "p99           2.95 times normal" in summary(found())
    assert "worst phase 99.00" in summary(found())
    assert "over that: 1 of 11 phases" in summary(found())
    assert "NOT KEPT" not in summary(found())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rss": 401}, "RSS 401 MiB"),
        ({"beside_ms": 6.1}, "p99 is 3.0 times normal"),
        ({"over": 2}, "2 of 11 phases"),
        ({"failed": 3}, "3 live posts"),
        ({"after": FINE._replace(failed=2)}, "2 live posts"),
    ],
)
def test_every_bound_that_is_not_kept_is_named(wrong: dict[str, float], words: str) -> None:
    """Each fault is named alone, and in the printed text too."""
    (fault,) = found(**wrong).faults  # type: ignore[arg-type]
    assert fault.startswith(words)
    assert f"NOT KEPT: {words}" in summary(found(**wrong))  # type: ignore[arg-type]


def test_journal_is_of_the_size_that_was_asked_for_and_every_row_another(tmp_path: Path) -> None:
    """The service can read it whole: several segments, and no reading twice."""
    folder = tmp_path / "state" / "journal"
    rows, written = write_journal(folder, size_bytes=3_000_000, segment_bytes=1_500_000)
    files = segment_files(folder)
    assert len(files) == 2
    assert 3_000_000 <= written <= sum(each.path.stat().st_size for each in files)
    scanned = 0
    for each in files:
        scan = SegmentScan(each, each.path.stat().st_size)
        while scan.step():
            pass
        assert (scan.fault, scan.gaps, scan.tail_bytes) == ("", 0, 0)
        scanned += scan.rows
        scan.close()
    assert scanned == rows
    times_us = [row.ts_us for tuples in on_disk(folder) for row in decode_rows(tuples)]
    assert times_us == list(range(BACKLOG_US, BACKLOG_US + rows))
    assert rows % ROWS == 0
