"""/readyz and admission: one state at a time, with reason and start, and no rapid changes."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import Any

import pytest
import structlog

from ingest.app.health import Health
from ingest.config.settings import Settings
from ingest.model.ports import STATES, BufferStats
from tests.support.fakes import FakeDatabase

EMPTY = BufferStats(0, 1000, 0, 10**6, 0, 0, 0, None)


class Rig:
    """Health with values and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.stats = EMPTY
        self.database = FakeDatabase()
        self.free: int | OSError = 10**12
        monkeypatch.setattr("ingest.app.health.monotonic_s", lambda: self.now_s)
        self.health = Health(
            settings=Settings(full_s_min=5, disk_free_bytes_min=1000),
            buffer=lambda: self.stats,
            database_state=self.database,
            free_bytes=self.free_bytes,
        )

    def free_bytes(self) -> int:
        """Return the free space, or fail as a disk does."""
        if isinstance(self.free, OSError):
            raise self.free
        return self.free

    def tick(self, seconds: int = 1, **stats: Any) -> str:
        """Let seconds pass with these figures; return the state."""
        self.stats = self.stats._replace(**stats)
        for _ in range(seconds):
            self.now_s += 1
            self.health.tick()
        return self.state

    @property
    def document(self) -> dict[str, str]:
        """The document of /readyz."""
        document: dict[str, str] = json.loads(self.health.readyz()[1])
        return document

    @property
    def state(self) -> str:
        """The state that /readyz shows, and the metric."""
        state = self.document["state"]
        assert self.health.state() == state
        assert state in STATES
        return state

    @property
    def status(self) -> int:
        """The HTTP status of /readyz."""
        return self.health.readyz()[0]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A service that has started."""
    rig = Rig(monkeypatch)
    rig.health.started()
    return rig


def test_state_before_the_schema_check_is_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the table is checked it is not ready, refuses posts, and the reason says why."""
    rig = Rig(monkeypatch)
    assert rig.health.starting
    assert (rig.state, rig.status, rig.health.refusal()) == ("starting", 503, "starting")
    untaken = "posts are not taken until the table has been checked"
    assert rig.document["reason"] == untaken
    rig.database.up = False
    assert rig.document["reason"] == f"{untaken}; the database does not answer yet"
    rig.database.up = True
    rig.database.hold("28P01")
    assert rig.document["reason"] == f"{untaken}; the database refuses: 28P01"
    rig.database.hold_reason = None
    rig.health.started()
    assert (rig.state, rig.status, rig.health.refusal()) == ("accepting", 200, None)
    assert not rig.health.starting


def test_database_away_with_room_is_accepting(rig: Rig) -> None:
    """While the database is away it is ready, and the reason says so."""
    rig.database.up = False
    assert (rig.state, rig.status) == ("accepting", 200)
    assert "away" in rig.document["reason"]


def test_hold_is_ready_with_its_reason(rig: Rig) -> None:
    """On hold it is ready, and accepts posts."""
    rig.database.hold("28P01")
    assert (rig.state, rig.status, rig.health.refusal()) == ("on_hold", 200, None)
    assert "28P01" in rig.document["reason"]


def test_post_that_waits_is_slowed(rig: Rig) -> None:
    """While a post waits for space it is slowed, with 200."""
    rig.stats = EMPTY._replace(posts_waiting=3)
    assert (rig.state, rig.status) == ("slowed", 200)
    rig.stats = EMPTY
    assert rig.state == "accepting"


def test_no_room_for_long_is_full(rig: Rig) -> None:
    """Full comes after five seconds at the bound without progress, not before."""
    assert rig.tick(5, rows=1000, posts_waiting=1, oldest_received_s=1.0) == "slowed"
    assert rig.tick(2) == "full"
    assert rig.status == 503
    assert rig.health.refusal() is None  # posts may still try: waiting is the point
    assert "1000 readings of 1000" in rig.document["reason"]


def test_full_by_bytes_is_full(rig: Rig) -> None:
    """Each of the two bounds is enough, also if no post waits any more."""
    assert rig.tick(7, size_bytes=990_000, oldest_received_s=1.0) == "full"
    rig.database.hold("42P01")
    assert "42P01" in rig.document["reason"]


def test_overload_that_moves_is_never_full(rig: Rig) -> None:
    """At the bound, while blocks are stored, it is slowed and not full."""
    for second in range(30):
        state = rig.tick(1, rows=1000, posts_waiting=5, oldest_received_s=float(second))
        assert state == "slowed"


def test_journal_beyond_its_bound_is_slowed_while_it_empties(rig: Rig) -> None:
    """Above a bound that was lowered it is slowed while blocks are stored."""
    rig.stats = EMPTY._replace(rows=340_550)
    for second in range(15):
        used = 4.7 - second / 4
        assert rig.tick(1, disk_used=used, oldest_received_s=float(second)) == "slowed"
        assert (rig.status, rig.health.refusal()) == (200, None)
        assert rig.document["reason"] == f"340550 readings, {used:.0%} of the journal, 0 posts wait"
    assert rig.tick(1, disk_used=0.96, oldest_received_s=15.0) == "accepting"
    assert rig.document["reason"] == ""


def test_full_ends_with_room_or_lasting_movement(rig: Rig) -> None:
    """Full ends with a fifth of the space, or with lasting progress; less does not end it."""
    rig.tick(8, rows=1000, posts_waiting=1, oldest_received_s=1.0)
    assert rig.tick(1, rows=900, posts_waiting=0, oldest_received_s=2.0) == "full"
    assert rig.tick(3) == "full"
    assert rig.tick(1, rows=800) == "accepting"
    rig.tick(8, rows=1000, posts_waiting=1)
    assert rig.state == "full"
    states = [rig.tick(1, oldest_received_s=float(second)) for second in range(10, 20)]
    assert states[:4] == ["full"] * 4
    assert states[-1] == "slowed"


def test_disk_low_refuses_and_recovers_with_hysteresis(rig: Rig) -> None:
    """Below the least free space posts are refused until there is clearly more than that."""
    rig.free = 999
    assert rig.tick() == "disk_low"
    assert (rig.status, rig.health.refusal()) == (503, "disk_low")
    assert rig.document["reason"] == "less than 1,000 bytes of disk are free"
    rig.free = 1200
    assert rig.tick() == "disk_low"
    rig.free = 1250
    assert rig.tick() == "accepting"
    rig.free = OSError("gone")
    assert rig.tick() == "disk_low"


def test_disk_bound_is_told_as_people_say_it() -> None:
    """The reason writes the least free space with its unit."""
    health = Health(
        settings=Settings(disk_free_bytes_min=200 * 1024**3),
        buffer=lambda: EMPTY,
        database_state=FakeDatabase(),
        free_bytes=lambda: 0,
    )
    health.started()
    health.tick()
    assert health.in_words() == "disk_low: less than 200 GiB of disk are free"


def test_disk_bound_zero_never_looks() -> None:
    """With disk_free_bytes_min 0 the disk is not checked."""
    health = Health(
        settings=Settings(disk_free_bytes_min=0),
        buffer=lambda: EMPTY,
        database_state=FakeDatabase(),
        free_bytes=lambda: 0,
    )
    health.started()
    health.tick()
    assert health.refusal() is None


def test_draining_comes_before_everything(rig: Rig) -> None:
    """Draining comes before all other states."""
    rig.free = 0
    rig.tick(8, rows=1000, posts_waiting=1, oldest_received_s=1.0)
    rig.database.hold("28P01")
    assert rig.state == "disk_low"
    rig.free = 10**12
    assert rig.tick() == "full"
    rig.health.draining()
    assert (rig.state, rig.status, rig.health.refusal()) == ("draining", 503, "draining")


def test_log_says_why_the_state_is_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of the log about a state has the reason of that state."""
    rig = Rig(monkeypatch)
    with structlog.testing.capture_logs() as lines:
        rig.health.started()
        rig.tick()
        rig.free = 0
        rig.tick()
        rig.free = 10**12
        rig.database.hold("28P01")
        rig.tick()
        rig.database.hold_reason = None
        rig.tick(9, rows=1000, posts_waiting=2, oldest_received_s=1.0)
        rig.health.draining()
        rig.tick()
    told = [(line["was"], line["state"], line["reason"]) for line in lines]
    assert [(was, state) for was, state, _ in told] == [
        ("starting", "accepting"),
        ("accepting", "disk_low"),
        ("disk_low", "on_hold"),
        ("slowed", "full"),
        ("full", "draining"),
    ]
    reasons = [reason for _, _, reason in told]
    assert reasons[0] == ""
    assert "of disk are free" in reasons[1]
    assert reasons[2] == "the database refuses: 28P01"
    assert reasons[3] == "1000 readings of 1000, 2 posts wait"
    assert reasons[4] == "the service is stopping"


def test_since_is_when_the_state_began(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """`since` is RFC 3339, and is the same while the state is the same."""
    now_us = 1_750_000_000_000_000
    monkeypatch.setattr("ingest.app.health.unix_us", lambda: now_us)
    rig.database.hold("x")
    first = rig.document["since"]
    assert datetime.fromisoformat(first).timestamp() == 1_750_000_000
    now_us += 60_000_000
    assert rig.document["since"] == first
    rig.database.hold_reason = None
    assert rig.document["since"] != first


async def test_run_ticks_until_stopped(rig: Rig) -> None:
    """The task ticks at once and repeatedly, and ends with the event."""
    rig.free = 0
    stop = asyncio.Event()
    running = asyncio.create_task(rig.health.run(stop))
    await asyncio.sleep(0)
    assert rig.state == "disk_low"
    stop.set()
    async with asyncio.timeout(1):
        await running
