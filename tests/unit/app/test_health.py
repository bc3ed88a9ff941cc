"""/readyz and admission: one state at a time, with reason and start; before the first check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog

from ingest.app.health import FirstContact
from ingest.app.metrics_and_causes import CAUSES
from ingest.app.space import DiskSpace, Fill
from ingest.config.settings import Settings
from ingest.model.causes import Trouble, Verdict, WriteFailed
from ingest.model.ledger import DeadLetterStats, Ledger
from ingest.model.ports import STATES
from ingest.sinks.postgres.sqlstate import reason_for
from ingest.system.state_folder import StateFolder
from ingest.writer.database_state import DatabaseState
from tests.support.fakes import FakeDatabase
from tests.support.health import EMPTY, FakeDisk, make_health


class Rig:
    """Health with values and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
        self.now_s = 1000.0
        self.stats = EMPTY
        self.database = FakeDatabase()
        self.disk = FakeDisk()
        self.letters = DeadLetterStats()
        sizes = {"journal_bytes_max": 1_000_000, "dlq_bytes_max": 1_000_000}
        settings = Settings(**{"disk_free_bytes_min": 1000, **sizes, **changed})
        self.journal_bytes = 0
        self.url_fault = ""
        self.table = Trouble()
        self.ledger = Ledger()
        for part in ("app.space", "app.health", "system.logs"):
            monkeypatch.setattr(f"ingest.{part}.monotonic_s", lambda: self.now_s)
        self.health = make_health(
            settings=settings,
            buffer=lambda: self.stats,
            database_state=self.database,
            url_fault=lambda: self.url_fault,
            disk=self.disk,
            dead_letters=lambda: self.letters,
            parts=(lambda: self.table,),
            ledger=self.ledger,
            fill=Fill(settings, lambda: self.journal_bytes),
        )

    def set(self, **given: Any) -> None:
        """Change attributes of the rig, its buffer (`rows`), or `up`, `hold` and `free`."""
        for name, value in given.items():
            if name in EMPTY._fields:
                self.stats = self.stats._replace(**{name: value})
            elif name == "up":
                self.database.up = value
            elif name == "hold":
                self.database.hold_reason = value
            elif name == "free":
                self.disk.free = value
            else:
                setattr(self, name, value)

    def tick(self, seconds: int = 1, **given: Any) -> str:
        """Let seconds pass with these figures; return the state."""
        self.set(**given)
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

    def told(self) -> dict[str, Any]:
        """Return all that is told, also to devices: the same, but for what may name a file."""
        status, body = self.health.readyz_for_devices()
        for_devices = json.loads(body)
        assert self.document.keys() - for_devices.keys() == {"next"}
        assert (status, for_devices["state"]) == (self.health.readyz()[0], self.state)
        return {
            **self.document,
            "status": status,
            "refusal": self.health.refusal(),
            "devices": for_devices["reason"],
            "words": self.health.in_words(),
        }


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A service that has started."""
    rig = Rig(monkeypatch)
    rig.health.started()
    return rig


class Within(str):
    """Equal to every text that it is in."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str(self) in str(other)

    __hash__ = str.__hash__


class Step(NamedTuple):
    """Seconds with these figures, and what is told after them."""

    told: Mapping[str, Any]
    given: Mapping[str, Any] = {}
    seconds: int = 0


def state(name: str, **more: Any) -> dict[str, Any]:
    """Return what is told of a state: 503 of those in which no post is taken, or none waits."""
    refusing = name in ("starting", "draining", "disk_low")
    status = 503 if refusing or name == "full" else 200
    return {"state": name, "status": status, "refusal": name if refusing else None, **more}


AWAY = "the database is away; readings are kept"
PASSWORD = "writes are paused: the database refuses the password or the role"
UNTAKEN = "posts are not taken until the table has been checked"
OLD_URL = "database_url_file is empty; the old URL is still used"
LOW = "less than 1,250 bytes of disk are free"
FULL = {"rows": 1000, "posts_waiting": 1, "oldest_received_s": 1.0}
SLOWED = state("slowed")
STORIES: dict[str, Sequence[Step]] = {
    "starting": (
        Step(state("starting", reason=UNTAKEN)),
        Step(state("starting", reason=f"{UNTAKEN}; the database is away"), {"up": False}),
        Step(
            state(
                "starting",
                reason=f"{UNTAKEN}; {PASSWORD}",
                refusing=True,
                cause="authentication",
            ),
            {"up": True, "hold": "authentication"},
        ),
    ),
    "database away": (Step(state("accepting", reason=Within("away")), {"up": False}),),
    "on hold": (
        Step(
            state(
                "on_hold",
                reason="writes are paused: dead letters are full",
                next=CAUSES["dead_letters_full"].next_step.format(run="<run>"),
                runbook="ingestdeadlettersfilling",
            ),
            {"hold": "dead_letters_full"},
        ),
    ),
    "slowed": (Step(SLOWED, {"posts_waiting": 3}), Step(state("accepting"), {"posts_waiting": 0})),
    "no room for long": (
        Step(SLOWED, FULL, 5),
        Step(state("full", reason=Within("1000 readings of 1000")), {}, 2),
    ),
    "full by bytes": (
        Step(state("full"), {"size_bytes": 990_000, "oldest_received_s": 1.0}, 7),
        Step(
            {"reason": Within("an error that the service does not know (sqlstate_12345)")},
            {"hold": "sqlstate_12345"},
        ),
    ),
    "overload that moves": [
        Step(SLOWED, {"rows": 1000, "posts_waiting": 5, "oldest_received_s": float(at)}, 1)
        for at in range(30)
    ],
    "journal beyond its bound that empties": [
        *(
            Step(
                state(
                    "slowed",
                    reason=f"340550 readings, {4.7 - at / 4:.0%} of the journal, 0 posts wait",
                ),
                {"rows": 340_550, "disk_used": 4.7 - at / 4, "oldest_received_s": float(at)},
                1,
            )
            for at in range(15)
        ),
        Step(state("accepting", reason=""), {"disk_used": 0.96, "oldest_received_s": 15.0}, 1),
    ],
    "full ends": [
        Step(state("full"), FULL, 8),
        Step(state("full"), {"rows": 900, "posts_waiting": 0, "oldest_received_s": 2.0}, 1),
        Step(state("full"), {}, 3),
        Step(state("accepting"), {"rows": 800}, 1),
        Step(state("full"), {"rows": 1000, "posts_waiting": 1}, 8),
        *(Step(state("full"), {"oldest_received_s": float(at)}, 1) for at in range(10, 14)),
        *(Step({}, {"oldest_received_s": float(at)}, 1) for at in range(14, 19)),
        Step(SLOWED, {"oldest_received_s": 19.0}, 1),
    ],
    "disk low": (
        Step(
            state(
                "disk_low",
                reason=f"{LOW}: /srv/state, on the disk that is mounted at /srv",
                devices=LOW,
            ),
            {"free": 999},
            1,
        ),
        Step(state("disk_low"), {"free": 1200}, 1),
        Step(state("accepting"), {"free": 1250}, 1),
        Step(state("disk_low", reason=f"{LOW}: gone"), {"free": OSError("gone")}, 1),
    ),
    "several": (
        Step(state("disk_low"), {"free": 0, "hold": "28P01", **FULL}, 8),
        Step(state("full"), {"free": 10**12}, 1),
    ),
    # To devices too, so without the file's name. Other causes have nothing to do with the URL.
    "unusable file of the URL": (
        Step({"reason": ""}, {"url_fault": OLD_URL}),
        Step({"reason": f"{PASSWORD}; {OLD_URL}"}, {"hold": "authentication"}),
        Step({"reason": Within("writes are paused: the table")}, {"hold": "schema"}),
        Step({"reason": f"{AWAY}; {OLD_URL}"}, {"hold": None, "up": False}),
        Step({"devices": Within(f"; {OLD_URL}")}, {"posts_waiting": 1}, 1),
    ),
    "no space for invalid items": (
        Step(
            state(
                "accepting",
                cause="invalid_full",
                refusing=False,
                reason=Within("refused: the dead letters are half full, and the rest"),
            ),
            {"letters": DeadLetterStats(size_bytes=500, invalid_full=True)},
            3,
        ),
        Step({"cause": "unreachable"}, {"up": False}),
        Step({"cause": ""}, {"up": True, "letters": DeadLetterStats()}, 3),
    ),
    "a sender has used its share": (
        Step(
            state(
                "accepting",
                cause="sender_share_used",
                reason=Within("for such items: token gate"),
                devices=Within("for such items"),
            ),
            {"letters": DeadLetterStats(share_used_by="token gate")},
            3,
        ),
        Step(
            {"cause": "invalid_full"},
            {"letters": DeadLetterStats(share_used_by="token gate", invalid_full=True)},
        ),
        Step(
            {
                "cause": "writes_fail",
                "reason": "no write has gone through; readings are kept: 55P03: no lock",
                "next": Within("pg_terminate_backend"),
            },
            {"table": Trouble("writes_fail", "no write has gone through", "55P03: no lock")},
        ),
    ),
    "partitions end": (
        Step(
            state(
                "accepting",
                reason=Within("few partitions are left"),
                next=Within("housekeeping status"),
            ),
            {"table": Trouble("partitions_end", "few partitions are left")},
            1,
        ),
        Step(
            state("accepting", reason=Within(": archive p: /srv/cold"), devices="a step"),
            {"table": Trouble("housekeeping_fails", "a step", "archive p: /srv/cold is read-only")},
            1,
        ),
        Step({"cause": "schema", "reason": Within("writes are paused")}, {"hold": "schema"}),
    ),
}


@pytest.mark.parametrize("name", STORIES)
def test_state_and_cause_are_as_the_story_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each step; nothing of the disk and no sender is told to devices."""
    rig = Rig(monkeypatch)
    if name != "starting":
        rig.health.started()
    for at, step in enumerate(STORIES[name]):
        rig.tick(step.seconds, **step.given)
        told = rig.told()
        assert {each: told[each] for each in step.told} == step.told, f"step {at + 1}"
        assert "/srv" not in told["devices"]
        assert "gate" not in told["devices"]
    rig.health.draining()
    assert (rig.state, rig.health.refusal()) == ("draining", "draining"), "before all others"


@pytest.mark.parametrize(
    ("least", "words"),
    [(200 * 1024**3, "disk_low: less than 250 GiB of disk are free"), (0, "accepting")],
)
def test_bound_of_the_disk_is_told_as_people_say_it_and_0_is_none(
    monkeypatch: pytest.MonkeyPatch, least: int, words: str
) -> None:
    """With its unit."""
    rig = Rig(monkeypatch, disk_free_bytes_min=least)
    rig.health.started()
    rig.tick(free=0)
    assert rig.told()["words"].startswith(words)


def test_trouble_is_logged_once_at_its_begin_and_once_at_its_end(rig: Rig) -> None:
    """With its details, which devices are not told."""
    with structlog.testing.capture_logs() as lines:
        rig.tick(3, letters=DeadLetterStats(share_used_by="token gate"))
        rig.tick(3, letters=DeadLetterStats())
    told = [each for each in lines if each["event"] == "trouble"]
    assert [(each["log_level"], each["cause"], each["details"]) for each in told] == [
        ("warning", "sender_share_used", "token gate"),
        ("info", "", ""),
    ]


@pytest.mark.parametrize(
    ("broken", "cause", "reason"),
    [
        ("[Errno 28] No space left on device", "disk_low", "no space is left: /srv/state, on the"),
        ("[Errno 5] Input/output error", "journal_broken", "the journal cannot be written to"),
    ],
)
def test_full_disk_is_told_as_such(broken: str, cause: str, reason: str) -> None:
    """The operator need not guess among three reasons."""
    disk: Any = FakeDisk()
    space = DiskSpace(disk, free_bytes_min=1, broken=lambda: broken)
    space.look()
    health = make_health()
    health._disk = space
    health.started()
    document = json.loads(health.readyz()[1])
    assert (document["state"], document["cause"]) == ("disk_low", cause)
    assert document["reason"].startswith(reason)


def test_changed_database_is_told_with_both_names(tmp_path: Path) -> None:
    """A server that was moved is not refused; that readings go elsewhere is not hidden."""
    folder = StateFolder.open(tmp_path)
    for is_embedded, url, told in (
        (True, "postgresql://u@/x?host=/run/a", None),
        (True, "postgresql://u@/x?host=/run/b", None),  # its socket moves
        (False, "postgresql://u@h/x", ("the embedded database", "h:5432/x")),
        (False, "postgresql://u@h/x", None),
        (False, "postgresql://u@moved/x", ("h:5432/x", "moved:5432/x")),
    ):
        contact = FirstContact(
            make_health().taking_unchecked, folder, may_take=True, is_embedded=is_embedded
        )
        with structlog.testing.capture_logs() as lines:
            contact.begin(url)
        found = [(each["was"], each["now"]) for each in lines if "changed" in each["event"]]
        assert found == ([told] if told else [])
        contact.away("no answer")
        if told:
            remembered = f"{told[1]} (not reached yet), after {told[0]}"
            assert folder.remembered_database() == remembered
            again = FirstContact(
                make_health().taking_unchecked, folder, may_take=True, is_embedded=is_embedded
            )
            again.begin("postgresql://u@third/x")
            again.away("no answer")
            assert folder.remembered_database().endswith(f"(not reached yet), after {told[0]}")
        contact.checked(url)


def test_state_and_cause_have_starts_of_their_own(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage begins when the database goes away, and not when the service began to accept."""
    now_us = 1_750_000_000_000_000
    monkeypatch.setattr("ingest.app.health.unix_us", lambda: now_us)
    assert (rig.state, rig.document["cause_since"], rig.document["next"]) == ("accepting", None, "")
    accepting_since = rig.document["since"]
    assert datetime.fromisoformat(accepting_since).timestamp() == 1_750_000_000
    now_us += 60_000_000
    rig.tick(up=False)
    began = rig.document["cause_since"]
    assert datetime.fromisoformat(began).timestamp() == 1_750_000_060
    now_us += 60_000_000
    rig.tick(1, posts_waiting=1)
    assert rig.document["cause"] == "unreachable", "it is why posts wait"
    assert rig.document["cause_since"] == began
    assert rig.document["reason"].endswith(f"1 posts wait; {AWAY}")
    rig.set(hold="schema")
    assert rig.document["cause_since"] != began
    rig.tick(1, hold=None, up=True, posts_waiting=0)
    assert (rig.document["cause"], rig.document["reason"]) == ("", "")
    assert rig.document["since"] != accepting_since, "it was slowed and on hold since"


def test_refused_posts_are_counted_for_a_minute_and_logged_once_a_minute(rig: Rig) -> None:
    """However many: one line a minute for each code, with their number; the last ones too."""
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            rig.ledger.posts_refused["all_invalid"] += 1
            rig.tick()
        rig.ledger.posts_refused["buffer_full"] += 1
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
    rig.set(up=False, free=10**12)
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
        rig.letters = DeadLetterStats(size_bytes=100 * second, live=50)
        rig.tick(1, oldest_received_s=rig.now_s)
    full_in_s = rig.document["full_in_s"]
    assert full_in_s["journal"] is None
    assert full_in_s["disk"] == pytest.approx(1_850, abs=40)
    assert full_in_s["dead_letters"] == pytest.approx(4_850, abs=200)
    for second in range(1, 30):  # a replay marks each one that it has stored
        rig.letters = DeadLetterStats(size_bytes=15_000 + 100 * second, live=50 - second)
        rig.tick(1, oldest_received_s=rig.now_s)
    assert rig.document["full_in_s"]["dead_letters"] is None
    rig.disk.free += 200_000  # somebody removes some of what fills it
    rig.letters = rig.letters._replace(live=0)
    rig.tick(5)
    assert rig.document["full_in_s"] == {"journal": None, "dead_letters": None, "disk": None}


@pytest.mark.parametrize(
    ("code", "message", "reason"),
    [
        (None, "h:1: no answer in time", "no connection to the database since the start"),
        ("57P03", "the database system is starting up", "no connection to the database since"),
        ("53300", "sorry, too many clients already", "the database has no free connection"),
    ],
)
def test_database_that_answers_is_not_said_to_be_silent(
    code: str | None,
    message: str,
    reason: str,
    tmp_path: Path,
) -> None:
    """An operator would look for a fault of the network."""
    state = DatabaseState(wait_s_min=1, wait_s_max=1, hold_probe_s=1)
    health = make_health(database_state=state)
    contact = FirstContact(health.taking_unchecked, StateFolder.open(tmp_path), may_take=True)
    contact.begin("postgresql://u@h/x")
    state.failed(WriteFailed(Verdict.WAIT, message, sqlstate=code, reason=reason_for(code)))
    with structlog.testing.capture_logs() as lines:
        contact.away(message)
    (warning,) = [line for line in lines if line["event"] == "database_never_seen"]
    assert warning["why"].startswith(message)
    assert json.loads(health.readyz()[1])["reason"].startswith(reason)
