"""Which partitions leave the table, and when a person must say yes first."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.sinks.postgres.housekeeping.partitions import (
    BEGINNING_US,
    DAY_US,
    END_US,
    Partition,
    growth,
)
from ingest.years.retention import Policy, due, must_confirm

NOW_US = 100 * DAY_US + 5
POLICY = Policy(30 * DAY_US, "30d")


def days(first: int, last: int, *, ours: bool = True) -> list[Partition]:
    """Return a partition for each day."""
    return [
        Partition(f"p{day}", day * DAY_US, (day + 1) * DAY_US, 0, ours)
        for day in range(first, last)
    ]


def test_only_whole_spans_of_ours_that_are_not_pinned_are_due() -> None:
    """Day 69 ends at the cutoff's day; day 70 has younger readings too."""
    whole = Partition("before", BEGINNING_US, 60 * DAY_US, 0, ours=True)
    last = Partition("rest", 110 * DAY_US, END_US, 0, ours=True)
    found = [whole, *days(60, 110), last]
    cutoff_us = POLICY.cutoff_us(NOW_US)
    leaving = due(found, {"p61": {}}, cutoff_us)
    assert [each.name for each in leaving] == [
        "before",
        "p60",
        *(f"p{day}" for day in range(62, 70)),
    ]
    assert due(days(0, 110, ours=False), {}, cutoff_us) == []


ANSWERED = POLICY.entry(NOW_US - DAY_US)  # yesterday


@pytest.mark.parametrize(
    ("leaving", "count", "answer", "said"),
    [
        ([], 40, None, ""),
        (days(69, 70), 40, None, "keep_hot = 30d has not been confirmed: 1 of 40 partitions"),
        (days(69, 70), 40, ANSWERED, ""),
        (days(69, 70), 40, {**ANSWERED, "keep_us": 1}, "not been confirmed"),
        (days(69, 70), 40, {**ANSWERED, "archive_dir": "/cold"}, "not been confirmed"),
        (days(40, 70), 40, ANSWERED, ""),  # 29 of them were confirmed, and are left of that run
        (days(66, 70), 40, {**ANSWERED, "until_us": 0}, ""),  # four, and a tenth
        (days(65, 70), 40, {**ANSWERED, "until_us": 0}, "so many at once: 5 of 40"),
        (days(67, 70), 4, {**ANSWERED, "until_us": 0}, ""),  # three of four
    ],
)
def test_a_person_confirms_a_new_setting_and_many_at_once(
    leaving: list[Partition], count: int, answer: dict[str, Any] | None, said: str
) -> None:
    """More than three spans and more than a tenth, of those that nobody has confirmed yet."""
    waits = must_confirm(leaving, count, POLICY, answer)
    assert said in waits
    assert bool(waits) == bool(said)


def test_disk_is_full_at_the_rate_of_the_last_whole_partitions() -> None:
    """The present partition grows still; the old table has no beginning; a policy may end it."""
    old = Partition("before", BEGINNING_US, 90 * DAY_US, 10**12, ours=True)
    sized = [each._replace(bytes=1_000) for each in days(90, 110)]
    day_s = DAY_US / 1e6
    free = growth([old, *sized], NOW_US, None)
    kept = growth([old, *sized], NOW_US, POLICY.keep_us)
    assert free is not None
    assert kept is not None
    assert free.full_in_s(50_000) == pytest.approx(50 * day_s)
    assert kept.full_in_s(50_000) is None  # the oldest goes in 21 days
    assert free.full_in_s(400_000) is None, "later than in a year"
    assert kept.full_in_s(10_000) == pytest.approx(10 * day_s)
    assert growth([old], NOW_US, None) is None
    assert growth(days(90, 110), NOW_US, None) is None
