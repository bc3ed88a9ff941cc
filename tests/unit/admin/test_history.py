"""The history: rates, percentiles, gaps, its bound, and a clock that is set back."""

from __future__ import annotations

import math

import pytest

from ingest.admin.dashboard.history import COLUMNS, SECONDS_KEPT, History, quantile_s
from ingest.model.ledger import DeadLetterStats, Gauges, Histogram, Ledger
from ingest.model.ports import STATES, BufferStats, JournalStats

T = 1_800_000_000


class Rig:
    """A history of a ledger that the test changes."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.stats = BufferStats(7, 100, 0, 1000, 7, 1, 0, None)
        self.journal = JournalStats()
        self.ledger.gauges = Gauges(
            buffer=lambda: self.stats,
            dead_letters=lambda: DeadLetterStats(10, 3, 1.0),
            database_up=lambda: True,
            hold_reason=lambda: None,
            journal=lambda: self.journal,
        )
        self.state = "accepting"
        self.history = History(self.ledger, look=lambda: (self.state, 1))

    def newest(self) -> dict[str, float | int | None]:
        """Return the newest row by column."""
        return dict(zip(COLUMNS, self.history.newest(), strict=True))


def test_first_row_is_a_gap_and_the_second_holds_what_came_in_between() -> None:
    """The first row has no rates; later rates are differences to the row before."""
    rig = Rig()
    rig.ledger.received = 500
    rig.history.sample(T)
    assert set(rig.newest().values()) == {None}
    rig.ledger.received += 40
    rig.ledger.rejected["buffer_full"] += 5
    rig.ledger.dead_lettered["drained"] += 2
    rig.ledger.request_answered("/v1/readings", 202, 0.001)
    rig.ledger.request_answered("/metrics", 200, 0.001)
    rig.history._before = rig.history._before and rig.history._before._replace(
        at_s=rig.history._counts().at_s - 2.0
    )
    rig.history.sample(T + 1)
    row = rig.newest()
    assert row["received"] == pytest.approx(20, abs=0.01)  # in two seconds by the monotonic clock
    assert row["rejected"] == pytest.approx(2.5, abs=0.01)
    assert row["dead_drained"] == pytest.approx(1, abs=0.01)
    assert row["posts"] == pytest.approx(0.5, abs=0.01)
    assert (row["buffer_rows"], row["dlq_readings"], row["held"]) == (7, 3, 7)
    assert row["state"] == STATES.index("accepting")
    assert row["buffer_used_pct"] == 7
    assert row["journal_bytes"] is row["disk_rows"] is None
    assert row["commit_p99_ms"] is row["flush_rows"] is row["flush_ms"] is None


def test_latency_and_flushes_are_of_that_second_alone() -> None:
    """Percentiles are those of the last second only."""
    rig = Rig()
    for _ in range(1000):
        rig.ledger.commit_s.observe(20)
    rig.history.sample(T)
    for _ in range(100):
        rig.ledger.commit_s.observe(0.002)
    rig.ledger.batch_gathered("count", 100)
    rig.ledger.batch_gathered("time", 50)
    rig.ledger.batch_stored("copy", 0.004, 150, 0)
    rig.history.sample(T + 1)
    row = rig.newest()
    assert 1 <= (row["commit_p50_ms"] or 0) <= 2.5
    assert (row["flush_rows"], row["flush_ms"]) == (75, 4)


def test_journal_says_what_is_only_there_and_decides_how_full_the_buffer_is() -> None:
    """With a journal the share in use is that of the journal, even if memory is full."""
    rig = Rig()
    rig.stats = rig.stats._replace(rows=250, rows_kept=151, disk_used=0.125)
    rig.journal = JournalStats(size_bytes=4096, segments=2)
    rig.history.sample(T)
    rig.history.sample(T + 1)
    row = rig.newest()
    assert (row["buffer_rows"], row["disk_rows"], row["journal_bytes"]) == (250, 151, 4096)
    assert row["buffer_used_pct"] == 12.5


def test_seconds_without_a_sample_are_gaps_and_none_is_taken_twice() -> None:
    """Seconds without a measurement are gaps."""
    rig = Rig()
    assert [rig.history.sample(second) for second in (T, T + 1, T + 1, T + 4)] == [
        True,
        True,
        False,
        True,
    ]
    first, columns = rig.history.since(T)
    assert first == T + 1
    assert columns["held"] == [7, None, None, 7]
    assert rig.history.since(T + 4) == (T + 5, {name: [] for name in COLUMNS})


def test_ring_keeps_half_an_hour_and_no_more() -> None:
    """After hours there are as many rows as after half an hour, and no old values in them."""
    rig = Rig()
    for second in range(T, T + SECONDS_KEPT + 100):
        rig.stats = rig.stats._replace(rows=second - T)
        rig.history.sample(second)
    first, columns = rig.history.since(0)
    assert first == T + 100
    assert {len(column) for column in columns.values()} == {SECONDS_KEPT}
    assert columns["buffer_rows"][0] == 100
    assert columns["buffer_rows"][-1] == SECONDS_KEPT + 99
    rig.history.sample(T + 10 * SECONDS_KEPT)
    assert rig.history.since(0)[1]["held"][:-1] == [None] * (SECONDS_KEPT - 1)


def test_clock_put_back_begins_anew() -> None:
    """If the clock is set back by a second, rows are skipped; by an hour, it begins anew."""
    rig = Rig()
    rig.history.sample(T)
    assert not rig.history.sample(T - 2)
    assert rig.history.sample(T - 3600)
    assert rig.history.second == T - 3600
    assert rig.history.sample(T - 3599)


def test_every_state_of_readyz_can_be_drawn() -> None:
    """A state is its index; an unknown state is a gap."""
    rig = Rig()
    for at, state in enumerate(STATES):
        rig.state = state
        rig.history.sample(T + at)
    rig.state = "new"
    rig.history.sample(T + len(STATES))
    assert rig.history.since(T)[1]["state"] == [*range(1, len(STATES)), None]


@pytest.mark.parametrize(
    ("counts", "share", "wanted"),
    [
        ([0, 0, 0], 0.5, math.nan),
        ([10, 0, 0], 0.5, 0.5),
        ([10, 10, 0], 0.75, 1.5),
        ([0, 4, 0], 1.0, 2.0),
        ([1, 0, 9], 0.99, 2.0),
    ],
)
def test_quantile_is_linear_within_a_bucket(counts: list[int], share: float, wanted: float) -> None:
    """A quantile beyond the last bound is that bound, as in Prometheus."""
    found = quantile_s(Histogram((1, 2)), counts, share)
    assert found == pytest.approx(wanted, nan_ok=True)
