"""/readyz and admission: one state at a time, with reason and start, and no rapid changes."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
import structlog

from ingest.app.causes import CAUSES
from ingest.app.fill import Fill
from ingest.app.refusals import Refusals
from ingest.config.settings import Settings
from ingest.model.causes import Trouble
from ingest.model.ledger import DeadLetterStats, Ledger
from ingest.model.ports import STATES
from tests.support.fakes import FakeDatabase
from tests.support.health import EMPTY, FakeDisk, make_health


class Rig:
    """Health with values and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.stats = EMPTY
        self.database = FakeDatabase()
        self.disk = FakeDisk()
        self.letters = DeadLetterStats()
        settings = Settings(
            disk_free_bytes_min=1000,
            journal_bytes_max=1_000_000,
            dlq_bytes_max=1_000_000,
        )
        self.journal_bytes = 0
        self.url_fault = ""
        self.table = Trouble()
        self.ledger = Ledger()
        for part in ("space", "fill", "refusals"):
            monkeypatch.setattr(f"ingest.app.{part}.monotonic_s", lambda: self.now_s)
        self.health = make_health(
            settings=settings,
            buffer=lambda: self.stats,
            database_state=self.database,
            url_fault=lambda: self.url_fault,
            disk=self.disk,
            dead_letters=lambda: self.letters,
            parts=(lambda: self.table,),
            refusals=Refusals(self.ledger),
            fill=Fill(settings, lambda: self.journal_bytes),
        )

    def tick(self, seconds: int = 1, **stats: Any) -> str:
        """Let seconds pass with these figures; return the state."""
        self.stats = self.stats._replace(**stats)
        for _ in range(seconds):
            self.now_s += 1
            self.health.tick()
        return self.state

    @property
    def document(self) -> dict[str, Any]:
        """The document of /readyz."""
        document: dict[str, Any] = json.loads(self.health.readyz()[1])
        return document

    @property
    def state(self) -> str:
        """The state that /readyz shows, and the metric."""
        state: str = self.document["state"]
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
    assert rig.document["reason"] == f"{untaken}; the database is away"
    rig.database.up = True
    rig.database.hold("authentication")
    refused = "writes are paused: the database refuses the password or the role"
    assert rig.document["reason"] == f"{untaken}; {refused}"
    assert (rig.document["refusing"], rig.document["cause"]) == (True, "authentication")
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
    rig.database.hold("dead_letters_full")
    assert (rig.state, rig.status, rig.health.refusal()) == ("on_hold", 200, None)
    assert rig.document["reason"] == "writes are paused: dead letters are full"
    assert rig.document["next"] == CAUSES["dead_letters_full"].next_step.format(run="<run>")
    assert rig.document["runbook"] == "ingestdeadlettersfilling"


def test_devices_are_not_told_what_an_operator_types(rig: Rig) -> None:
    """On the data port /readyz is the same without `next`, which may name a file of secrets."""
    for reason in ("", "dead_letters_full", "authentication"):
        if reason:
            rig.database.hold(reason)
        status, document = rig.health.readyz_for_devices()
        full = rig.document
        del full["next"]
        assert (status, json.loads(document)) == (rig.status, full)


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
    rig.database.hold("sqlstate_12345")
    assert "an error that the service does not know (sqlstate_12345)" in rig.document["reason"]


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
    rig.disk.free = 999
    assert rig.tick() == "disk_low"
    assert (rig.status, rig.health.refusal()) == (503, "disk_low")
    low = "less than 1,000 bytes of disk are free"
    assert rig.document["reason"] == f"{low}: /srv/state, on the disk that is mounted at /srv"
    assert json.loads(rig.health.readyz_for_devices()[1])["reason"] == low
    rig.disk.free = 1200
    assert rig.tick() == "disk_low"
    rig.disk.free = 1250
    assert rig.tick() == "accepting"
    rig.disk.free = OSError("gone")
    assert rig.tick() == "disk_low"
    assert rig.document["reason"] == f"{low}: gone"


def test_draining_comes_before_everything(rig: Rig) -> None:
    """Draining comes before all other states."""
    rig.disk.free = 0
    rig.tick(8, rows=1000, posts_waiting=1, oldest_received_s=1.0)
    rig.database.hold("28P01")
    assert rig.state == "disk_low"
    rig.disk.free = 10**12
    assert rig.tick() == "full"
    rig.health.draining()
    assert (rig.state, rig.status, rig.health.refusal()) == ("draining", 503, "draining")


def test_cause_has_a_start_of_its_own(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage begins when the database goes away, and not when the service began to accept."""
    now_us = 1_750_000_000_000_000
    monkeypatch.setattr("ingest.app.health.unix_us", lambda: now_us)
    assert (rig.state, rig.document["cause_since"], rig.document["next"]) == ("accepting", None, "")
    accepting_since = rig.document["since"]
    now_us += 60_000_000
    rig.database.up = False
    rig.tick()
    began = rig.document["cause_since"]
    assert datetime.fromisoformat(began).timestamp() == 1_750_000_060
    now_us += 60_000_000
    rig.tick(1, posts_waiting=1)
    assert rig.document["cause"] == "unreachable", "it is why posts wait"
    assert rig.document["cause_since"] == began
    assert rig.document["reason"].endswith("1 posts wait; the database is away; readings are kept")
    rig.database.hold("schema")
    assert rig.document["cause_since"] != began
    rig.database.hold_reason, rig.database.up = None, True
    rig.tick(1, posts_waiting=0)
    assert (rig.document["cause"], rig.document["reason"]) == ("", "")
    assert rig.document["since"] != accepting_since, "it was slowed and on hold since"


def test_full_half_for_invalid_items_is_told(rig: Rig) -> None:
    """/readyz says so with its next step, and the log once when it begins and once at its end."""
    with structlog.testing.capture_logs() as lines:
        rig.letters = DeadLetterStats(size_bytes=500, invalid_full=True)
        assert rig.tick(3) == "accepting"
        assert (rig.document["cause"], rig.document["refusing"]) == ("invalid_full", False)
        assert "refused: the dead letters are half full, and the rest" in rig.document["reason"]
        rig.database.up = False
        assert rig.document["cause"] == "unreachable"
        rig.database.up, rig.letters = True, DeadLetterStats()
        rig.tick(3)
    told = [each["cause"] for each in lines if each["event"] == "trouble"]
    assert told == ["invalid_full", ""]
    assert rig.document["cause"] == ""


def test_sender_that_has_used_its_share_is_named(rig: Rig) -> None:
    """On the admin port, and in the log once. Room for nobody, and a lock, are more important."""
    with structlog.testing.capture_logs() as lines:
        rig.letters = DeadLetterStats(share_used_by="token gate")
        assert rig.tick(3) == "accepting"
    assert rig.document["cause"] == "sender_share_used"
    assert rig.document["reason"].endswith("for such items: token gate")
    assert "gate" not in rig.health.readyz_for_devices()[1].decode()
    assert [each["details"] for each in lines if each["event"] == "trouble"] == ["token gate"]
    rig.letters = rig.letters._replace(invalid_full=True)
    assert rig.document["cause"] == "invalid_full"
    rig.table = Trouble("writes_fail", "no write has gone through", "55P03: no lock")
    words = "no write has gone through; readings are kept: 55P03: no lock"
    assert (rig.document["cause"], rig.document["reason"]) == ("writes_fail", words)
    assert "pg_terminate_backend" in rig.document["next"]


def test_end_of_the_partitions_is_told_and_refuses_nothing(rig: Rig) -> None:
    """/readyz says it with its next step. What stops writes now is more important."""
    rig.table = Trouble("partitions_end", "few partitions are left")
    assert (rig.tick(), rig.status) == ("accepting", 200)
    assert "few partitions are left" in rig.document["reason"]
    assert "housekeeping status" in rig.document["next"]
    rig.table = Trouble("housekeeping_fails", "a step", "archive p: /srv/cold is not writable")
    assert (rig.tick(), rig.status) == ("accepting", 200)
    assert rig.document["reason"].endswith(": archive p: /srv/cold is not writable")
    assert b"/srv/cold" not in rig.health.readyz_for_devices()[1], "a path of this machine"
    rig.database.hold("schema")
    assert rig.document["cause"] == "schema"
    assert "/srv/cold" not in rig.document["reason"]


def test_refused_posts_are_counted_for_a_minute_and_logged_once_a_minute(rig: Rig) -> None:
    """However many: one line a minute for each code, with their number; the last ones too."""
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            rig.ledger.post_refused("all_invalid")
            rig.tick()
        rig.ledger.post_refused("buffer_full")
        rig.ledger.connection_closed("slow_body")
        rig.tick()
        assert 55 <= rig.document["refused_60s"]["all_invalid"] <= 65
        assert rig.document["refused_60s"]["buffer_full"] == 1
        assert rig.document["closed_60s"] == {"slow_body": 1}
        rig.tick(70)
    assert (rig.document["refused_60s"], rig.document["closed_60s"]) == ({}, {})
    told = [
        (each.get("code") or each["cause"], each["log_level"], each["count"])
        for each in lines
        if each["event"] != "state"
    ]
    assert told == [
        ("all_invalid", "info", 1),
        ("all_invalid", "info", 60),
        ("buffer_full", "warning", 1),
        ("slow_body", "warning", 1),
        ("all_invalid", "info", 39),
    ]


def test_time_to_full_is_told_for_what_fills(rig: Rig) -> None:
    """The journal by what an outage adds to it, not by what was before it; and until when."""
    assert rig.document["full_in_s"] == {"journal": None, "dead_letters": None, "disk": None}
    rig.disk.free = 2_000_000
    for _ in range(400):  # all is stored at once: the file that is being written grows
        rig.journal_bytes += 10
        rig.disk.free -= 10
        rig.tick(1, oldest_received_s=rig.now_s)
    assert rig.document["full_in_s"] == {"journal": None, "dead_letters": None, "disk": None}
    began_s = rig.now_s
    rig.database.up, rig.disk.free = False, 10**12
    for second in range(60):
        rig.journal_bytes += 1_000
        rig.disk.free = 10**12 - 1000 * second
        rig.tick(1, oldest_received_s=began_s)
    left_s = (1_000_000 - rig.journal_bytes) / 1_000
    assert rig.document["full_in_s"]["journal"] == pytest.approx(left_s, abs=10)
    assert rig.document["full_in_s"]["disk"] is None, "a year is not soon"
    rig.disk.free = 200_000  # less than the journal may still take
    rig.tick()
    left_s = (200_000 - 1_000) / 1_000
    assert rig.document["full_in_s"]["disk"] == pytest.approx(left_s, abs=10)
    rig.disk.free = 2_000_000
    rig.tick(400, oldest_received_s=rig.now_s)
    for second in range(150):
        rig.disk.free -= 1_000
        rig.letters = DeadLetterStats(size_bytes=100 * second, live=1)
        rig.tick(1, oldest_received_s=rig.now_s)
    full_in_s = rig.document["full_in_s"]
    assert full_in_s["journal"] is None
    assert full_in_s["disk"] == pytest.approx(1_850, abs=40)
    assert full_in_s["dead_letters"] == pytest.approx(4_850, abs=200)
    rig.disk.free += 200_000  # somebody removes some of what fills it
    rig.letters = rig.letters._replace(live=0)
    rig.tick(5)
    assert rig.document["full_in_s"] == {"journal": None, "dead_letters": None, "disk": None}
