"""The life of a partition: which states may follow each other, whatever is tried."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping.partitions import TimeSpan
from ingest.years import partition_life
from ingest.years.partition_life import ARCHIVE, DETACH, DROP, MOVES, STEPS, State


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
