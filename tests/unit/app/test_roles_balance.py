"""The balance between gateways and writers: a loss in the stream is seen, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.app.roles_balance import AGAIN_S, WINDOW, RolesBalance, Sample


@dataclasses.dataclass
class Rig:
    """The sums of all processes, which a test changes."""

    balance: RolesBalance = dataclasses.field(default_factory=RolesBalance)
    now_s: float = 100.0
    published: int = 0
    delivered: int = 0
    returned: int = 0
    all_report: bool = True
    unclean: int = 0
    waiting: float | None = 0
    unacknowledged: float = 0

    def tick(self, seconds: int = 1) -> int:
        """Let some seconds pass; return the lost readings."""
        for _ in range(seconds):
            self.now_s += 1
            self.balance.tick(
                Sample(
                    self.now_s,
                    self.published,
                    self.delivered,
                    self.returned,
                    self.all_report,
                    self.unclean,
                    self.waiting,
                    self.unacknowledged,
                )
            )
        return self.balance.lost


def test_loss_is_seen_as_soon_as_nothing_comes() -> None:
    """And it stays: nobody brings these readings back."""
    rig = Rig()
    rig.published, rig.delivered = 1000, 1000
    assert rig.tick(WINDOW) == 0
    rig.published += 100
    rig.delivered += 90
    assert rig.tick(WINDOW) == 10
    assert rig.tick(WINDOW) == 10
    rig.published += 5
    rig.delivered += 4
    assert rig.tick(WINDOW) == 11
    rig.delivered += 3  # deliveries that come again hide nothing
    assert rig.tick(WINDOW) == 11
    rig.published += 1
    assert rig.tick(WINDOW) == 12


def test_large_loss_is_seen_while_readings_flow() -> None:
    """If it is larger than the readings of the window."""
    rig = Rig()
    for second in range(60):
        rig.published += 100
        rig.delivered += 100 if second != 20 else 0
        lost = rig.tick()
        if second < 20:
            assert lost == 0
    assert rig.balance.lost == 0, "100 is less than the readings of the window"
    for second in range(40):
        rig.published += 100
        rig.delivered += 100 if second > 20 else 0
        rig.tick()
    assert rig.balance.lost > 600
    rig.tick(WINDOW)
    assert rig.balance.lost == 2200


def test_what_was_in_the_stream_before_is_no_imbalance() -> None:
    """Writers get more than was published; a loss after that is still seen in full."""
    rig = Rig(delivered=5000)
    assert rig.tick(WINDOW) == 0
    rig.published += 10
    assert rig.tick(WINDOW) == 10


@pytest.mark.parametrize(
    "change", [{"waiting": 3}, {"waiting": None}, {"all_report": False}], ids=str
)
def test_nothing_is_said_while_it_is_not_known(change: dict[str, Any]) -> None:
    """Messages wait, the broker says nothing, or a writer is silent; later it is known."""
    rig = dataclasses.replace(Rig(), published=50, **change)
    assert rig.tick(5 * WINDOW) == 0
    rig.waiting, rig.all_report = 0, True
    rig.delivered = 40
    assert rig.tick(WINDOW - 1) == 0
    assert rig.tick() == 10


def test_returned_readings_are_not_lost_until_they_had_time_to_come_again() -> None:
    """A message that a writer gave back does not count as waiting at the broker."""
    rig = Rig(published=50, delivered=50)
    rig.tick(WINDOW)
    rig.returned, rig.unacknowledged = 20, 1
    assert rig.tick(int(AGAIN_S) - 1) == 0
    rig.delivered += 20
    rig.unacknowledged = 0
    assert rig.tick(2 * WINDOW) == 0
    rig.returned += 20
    rig.unacknowledged = 1
    assert rig.tick(int(AGAIN_S) + WINDOW) == 20, "they never came"


def test_killed_process_is_no_loss_and_a_later_one_is_seen() -> None:
    """What it did in its last second was not reported."""
    rig = Rig(published=50, delivered=50)
    rig.tick(WINDOW)
    rig.published += 30  # and all were delivered to the writer that is killed now
    rig.unclean = 1
    assert rig.tick(3 * WINDOW) == 0
    rig.published += 4
    assert rig.tick(WINDOW) == 4


def test_messages_that_an_end_of_a_connection_has_swallowed_come_again() -> None:
    """They are delivered for the broker, and for no writer, until it delivers them again."""
    rig = Rig(published=50, delivered=50)
    rig.tick(WINDOW)
    rig.published, rig.unacknowledged = 90, 3
    assert rig.tick(int(AGAIN_S) - 5) == 0
    rig.waiting = None  # the servers end once more, and forget how long they have waited
    assert rig.tick(3) == 0
    rig.waiting = 0
    assert rig.tick(int(AGAIN_S) - 1) == 0
    rig.delivered, rig.unacknowledged = 90, 0
    assert rig.tick(2 * WINDOW) == 0
    rig.published += 7
    assert rig.tick(WINDOW) == 7


def test_who_begins_later_takes_what_it_finds_for_no_loss() -> None:
    """A writer that is started anew does not know what writers before it have got."""
    rig = Rig(published=9_000, delivered=400, unclean=3)
    for _ in range(30):  # there is never a rest
        rig.published += 100
        rig.delivered += 100
        assert rig.tick() == 0
    assert rig.tick(WINDOW) == 0
    rig.published += 1_000
    assert rig.tick(WINDOW) == 1_000


def test_late_status_at_the_begin_is_no_loss() -> None:
    """A gateway told nothing for 3 s, and its readings were delivered meanwhile."""
    rig = Rig(unclean=1)
    for second in range(30):
        rig.published = 100 * max(0, second - 3)
        rig.delivered = 100 * second
        assert rig.tick() == 0
    rig.published = rig.delivered
    assert rig.tick(2 * WINDOW) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 2), st.integers(0, 1), st.booleans()),
        max_size=60,
    )
)
def test_no_alarm_if_all_is_delivered_at_last(steps: list[tuple[int, int, int, bool]]) -> None:
    """However late statuses are, by two seconds at most, and how often a message comes again."""
    rig = Rig()
    published, delivered = [0, 0, 0], [0, 0, 0]
    backlog = 0
    for rows, late_gateway, late_writer, stalls in steps:
        published.append(published[-1] + rows)
        backlog += rows
        taken = 0 if stalls else backlog
        backlog -= taken
        delivered.append(delivered[-1] + taken + (taken // 10 if rows % 7 == 0 else 0))
        rig.published = max(rig.published, published[-1 - late_gateway])
        rig.delivered = max(rig.delivered, delivered[-1 - late_writer])
        rig.waiting = backlog
        assert rig.tick() == 0
