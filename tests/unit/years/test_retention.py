"""What is due to leave the table, its states on the way, and the pace of rollups."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping.partitions import (
    BEGINNING_US,
    DAY_US,
    END_US,
    Partition,
    TimeSpan,
    growth,
)
from ingest.sinks.postgres.schema import READINGS
from ingest.years import partition_life
from ingest.years.partition_life import ARCHIVE, DETACH, DROP, MOVES, STEPS, State
from ingest.years.retention import Policy, due, must_confirm
from ingest.years.rollups import run as rollup_run
from ingest.years.rollups.run import REST_S_MAX, Run

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


@given(st.lists(st.sampled_from(list(State)), max_size=30))
def test_whatever_is_tried_nothing_of_an_archive_is_dropped_before_it_is_verified(
    tried: list[State],
) -> None:
    """A move that the table does not have is refused, and changes nothing."""
    entry = partition_life.begin(7, TimeSpan(1, 2), "/cold")
    path = [entry.state]
    for state in tried:
        if state in MOVES[entry.state]:
            entry = entry.moved(state)
            path.append(state)
        else:
            with pytest.raises(StartError, match="cannot be"):
                entry.moved(state)
    assert entry[1:5] == (7, 1, 2, "/cold")
    for before, after in pairwise(path):
        assert after is not State.DROPPED or before is State.VERIFIED
        assert after is not State.VERIFIED or before in {State.DETACHED, State.VERIFIED}
        assert after is not State.NONE or before is State.DETACHED
        assert after is not State.DETACHED or before in {State.DETACHING, State.DETACHED}


def test_each_state_has_its_moves_and_those_under_way_have_steps_that_end() -> None:
    """What is on its way can always go on to an end, and `drop` is the last step of all."""
    assert set(MOVES) == set(State)
    assert set(STEPS) == partition_life.UNDER_WAY | {State.ATTACHED, State.GONE, State.DAMAGED}
    for steps in STEPS.values():
        assert list(steps) == sorted(steps, key=(DETACH, ARCHIVE, DROP).index)
        assert steps[-1] == DROP
    ends = {State.NONE, State.DROPPED, State.DAMAGED}
    for _ in State:
        ends |= {state for state, after in MOVES.items() if after & ends}
    assert ends == set(State)


@pytest.mark.parametrize(
    ("state", "more"),
    list(product(["detaching", "detached", "written", "verified"], [{}, {"rows": 1}])),
)
def test_entry_of_each_version_is_read_and_what_else_it_has_stays(
    state: str, more: dict[str, Any]
) -> None:
    """The oid and the bounds must be there while the table is; after the drop they may lack."""
    found = {"state": state, "oid": 5, "from_us": 1, "to_us": 2, "archive_dir": "/a"} | more
    entry = partition_life.read(found)
    assert entry.under_way
    assert entry.written() == found
    for lacks in ("oid", "from_us", "to_us", "state"):
        damaged = {key: value for key, value in found.items() if key != lacks}
        assert partition_life.read(damaged).state is State.DAMAGED
    assert partition_life.read(found | {"state": "sold"}).state is State.DAMAGED
    assert not partition_life.read({"state": "dropped"}).under_way


async def test_run_rests_as_long_as_it_has_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short work is added up, a long pause is cut, and the pause itself is no work."""
    now_s, rests = 100.0, list[float]()

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        rests.append(seconds)
        now_s += seconds

    monkeypatch.setattr(rollup_run, "monotonic_s", lambda: now_s)
    monkeypatch.setattr("asyncio.sleep", sleep)
    connection: Any = None
    run = Run(
        connection,
        0,
        READINGS,
        end_s=0.0,
        stopped=lambda: False,
        part_us=1,
    )
    for worked_s in (0.5, 0.004, 0.004, 0.0, 100.0, 0.25):
        now_s += worked_s
        await run.rest()
    assert rests == pytest.approx([0.5, 0.008, REST_S_MAX, 0.25])
