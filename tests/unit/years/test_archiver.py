"""The pace of the archive: no rest on an idle machine, more beside others, never without an end."""

from __future__ import annotations

import pytest

from ingest.years.archive import archiver
from ingest.years.archive.archiver import REST_S_MAX, REST_TIMES_MAX, Pace


class Machine:
    """A clock, the CPU time of a thread, and what it has slept."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s = self.cpu_s = self.slept_s = 0.0
        self.pace = Pace()
        patch.setattr(archiver, "monotonic_s", lambda: self.now_s)
        patch.setattr(archiver, "thread_cpu_s", lambda: self.cpu_s)
        patch.setattr(archiver, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self.now_s += seconds

    def piece(self, took_s: float, cpu_s: float) -> float:
        """Work for some time; return how long it rests after that."""
        self.now_s += took_s
        self.cpu_s += cpu_s
        before_s = self.slept_s
        self.pace.rest()
        return self.slept_s - before_s


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Give a machine whose archive begins to work."""
    machine = Machine(monkeypatch)
    machine.pace.begin()
    return machine


def test_a_piece_that_had_a_processor_for_itself_is_followed_by_the_next_one(
    machine: Machine,
) -> None:
    """Idle: nothing is lost by the pace, and others that work for it do not rest either."""
    assert [machine.piece(0.1, 0.099) for _ in range(3)] == [0, 0, 0]
    assert machine.pace.rest_s(1.0) == 0


def test_the_more_a_piece_had_to_wait_the_longer_is_the_rest(machine: Machine) -> None:
    """It does not count its own rest; and at once it works again without rests."""
    rests = [machine.piece(0.1, cpu_s) for cpu_s in (0.08, 0.06, 0.05, 0.1)]
    assert 0 < rests[0] < rests[1] < rests[2]
    assert rests[3] == 0


@pytest.mark.parametrize(("took_s", "rest_s"), [(0.01, 0.01 * REST_TIMES_MAX), (60, REST_S_MAX)])
def test_a_rest_is_bounded(machine: Machine, took_s: float, rest_s: float) -> None:
    """However busy the machine is, the archive goes on, and a stop waits for one rest at most."""
    assert machine.piece(took_s, 0.0) == pytest.approx(rest_s)
    assert machine.pace.rest_s(took_s) == pytest.approx(rest_s)


def test_time_before_the_begin_is_no_waiting(machine: Machine) -> None:
    """The thread may have had nothing to do for an hour."""
    machine.now_s = 3_600.0
    machine.pace.begin()
    assert machine.piece(0.1, 0.1) == 0
