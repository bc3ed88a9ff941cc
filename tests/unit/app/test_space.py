"""What waits too long: why, how much, and until when."""

from __future__ import annotations

import pytest

from ingest.app.space import Backlog, Waiting
from ingest.model.causes import Trouble, Verdict, WriteFailed
from ingest.writer.database_state import DatabaseState
from tests.support.health import EMPTY

LOCKED = WriteFailed(Verdict.RETRY, "no lock", sqlstate="55P03")
AWAY = WriteFailed(Verdict.WAIT, "connection refused")


class Rig:
    """A backlog with a clock and figures that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        for part in ("app.space", "writer.database_state"):
            monkeypatch.setattr(f"ingest.{part}.monotonic_s", lambda: self.now_s)
        self.state = DatabaseState(wait_s_min=1, wait_s_max=1, hold_probe_s=1)
        self.stats = EMPTY
        self.stream: Waiting | None = None
        self.backlog = Backlog(self.state, lambda: self.stats, lambda: self.stream)

    def after(self, seconds: float, count: int, oldest_s: float) -> Trouble:
        """Let time pass; return what is wrong then."""
        self.now_s += seconds
        self.stats = EMPTY._replace(rows=count, oldest_received_s=self.now_s - oldest_s)
        return self.backlog.trouble()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Nothing waits."""
    return Rig(monkeypatch)


def test_writes_that_do_not_go_through_are_told_with_what_is_known(rig: Rig) -> None:
    """Not before 10 s; with the error and what blocks. A database that is away is told as that."""
    assert rig.after(3600, 0, 0) == Trouble(), "nobody posts"
    assert rig.after(9, 500, 9) == Trouble()
    told = "no write has gone through for 11 s; 71,800 readings wait, the oldest for 11 s"
    assert rig.after(2, 71_800, 11) == Trouble("writes_fail", told)
    rig.state.retried(LOCKED, rows=1, attempt=1)
    assert rig.backlog.trouble().details == "55P03: no lock"
    rig.state.failed(AWAY)
    assert rig.after(1, 71_800, 12) == Trouble()
    rig.state.opened()
    assert rig.after(1, 71_800, 13) == Trouble(
        "behind", "71,800 readings wait, the oldest for 13 s"
    )
    assert rig.after(12, 71_800, 25).cause == "writes_fail"
    assert rig.backlog.trouble().details == "", "of before the outage"
    rig.stream = (3, "messages", 25.0)  # which a writer had that was killed
    assert rig.after(30, 0, 0).words.startswith("3 messages wait, the oldest for 25 s")


def test_backlog_that_is_written_is_told_with_its_end(rig: Rig) -> None:
    """From the rate of the last minute. It ends when the oldest waits clearly less long."""
    left, told = 16_800_000, ""
    for _ in range(40):
        left -= 70_000
        rig.state.stored()
        cause, told, *_ = rig.after(1, left, 360)
        assert cause == "behind"
    assert (
        told
        == "14,000,000 readings wait, the oldest for 6 min; at this rate all are written in 3 min"
    )
    for _ in range(70):  # as many come as are written
        rig.state.stored()
        told = rig.after(1, left, 360).words
    assert told == "14,000,000 readings wait, the oldest for 6 min"
    assert rig.after(1, 100, 6).cause == "behind"
    assert rig.after(1, 100, 4) == Trouble()
    assert rig.after(1, 100, 6) == Trouble()
