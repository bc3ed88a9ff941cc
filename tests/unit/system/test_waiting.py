"""The pause between tries."""

from __future__ import annotations

import statistics

import pytest

from ingest.system.waiting import backoff_s


@pytest.mark.parametrize("attempt", [0, 1, 3, 8, 1_000])
def test_pause_stays_below_its_doubling_ceiling_and_its_cap(attempt: int) -> None:
    """Exponential, capped, and never near zero, for any number of tries."""
    ceiling_s = min(30.0, 0.1 * 2.0 ** min(attempt, 40))
    pauses_s = [backoff_s(attempt, first_s=0.1, cap_s=30.0) for _ in range(500)]
    assert min(pauses_s) >= ceiling_s / 10
    assert max(pauses_s) <= ceiling_s


def test_pauses_spread_over_the_whole_window() -> None:
    """Full jitter: writers of many instances do not try again at the same moment."""
    pauses_s = [backoff_s(3, first_s=1.0, cap_s=100.0) for _ in range(2_000)]
    tenths = statistics.quantiles(pauses_s, n=10)
    assert tenths[0] < 2.0
    assert tenths[-1] > 6.5
