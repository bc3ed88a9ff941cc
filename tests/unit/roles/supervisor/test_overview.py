"""/readyz of several processes: the worst gateway decides, writers give the cause."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest

from ingest.config.settings import Settings
from ingest.model.causes import FIELDS, Trouble
from ingest.model.ledger import DeadLetterStats
from ingest.roles.status import read_status
from ingest.roles.supervisor.instances import RESTART_S, SILENT_S
from ingest.roles.supervisor.overview import Overview
from tests.support.statuses import FakeProcess

GIB = 1024**3
GATEWAYS, WRITERS = ("gateway-1", "gateway-2"), ("writer-1", "writer-2")
ALL = (*GATEWAYS, *WRITERS)
PAUSED = "writes are paused"


class Rig:
    """Two gateways and two writers, and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        for part in ("roles.supervisor.instances", "roles.supervisor.overview", "app.space"):
            monkeypatch.setattr(f"ingest.{part}.monotonic_s", lambda: self.now_s)
        self.health = Overview(
            Settings(),
            dead_letters=DeadLetterStats,
            free_bytes=lambda: 10**12,
            advice={name: f"<{name}>" for name in FIELDS},
        )
        self.instances = self.health.instances
        self.processes = {name: FakeProcess(name.rpartition("-")[0]) for name in ALL}

    def hear(self, *names: str) -> None:
        """Take the next status of some processes."""
        for name in names:
            self.instances.heard(name, read_status(self.processes[name].sent()))

    def set(self, name: str, state: str, cause: str = "", reason: str = "") -> None:
        """Let a process report a state."""
        self.processes[name].ready = {"state": state, "cause": cause, "reason": reason}
        self.processes[name].hold_reason = cause if PAUSED in reason else None
        self.hear(name)

    def readyz(self) -> tuple[int, dict[str, Any]]:
        """Return the status and the document."""
        status, body = self.health.readyz()
        return status, json.loads(body)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """All of them well."""
    rig = Rig(monkeypatch)
    rig.hear(*ALL)
    return rig


class Step(NamedTuple):
    """What happens, in the order of the fields, and what is told then.

    `told` is the status, the state, the cause, and perhaps the reason. `sets` are states of
    processes, with cause and reason. `gone` have ended, `new` take their places, `heard` report.
    """

    told: tuple[Any, ...]
    sets: Mapping[str, tuple[str, ...]] = {}
    gone: Sequence[str] = ()
    new: Sequence[str] = ()
    later_s: float = 0.0
    heard: Sequence[str] = ()


WELL = (200, "accepting", "", "")
AWAY = "the database is away; readings are kept"
REFUSES = ("broker_away", "broker_away", "the broker does not answer")
SHARE = ("accepting", "sender_share_used", "of one sender")
STORIES: dict[str, Sequence[Step]] = {
    "a gateway that refuses: a part of the posts is refused; of several the worst": (
        Step(
            (503, "full", "full", "gateway-2 of 2 gateways: no space"),
            {"gateway-2": ("full", "full", "no space")},
        ),
        Step((503, *REFUSES), {"gateway-1": REFUSES}),
        Step(
            (200, "slowed", "slowed", "posts wait"),
            {"gateway-1": ("accepting",), "gateway-2": ("slowed", "slowed", "posts wait")},
        ),
        Step((200, *SHARE), {"gateway-2": SHARE}),
        Step((200, *SHARE), {"writer-1": ("accepting", "retention_waits")}),
        Step((200, "accepting", "writes_fail"), {"writer-1": ("accepting", "writes_fail")}),
    ),
    "writers cannot refuse posts: they are the cause, and only a pause is the state": (
        Step(
            (200, "accepting", "unreachable", AWAY),
            {"writer-1": ("accepting", "unreachable", AWAY)},
        ),
        Step(
            (200, "on_hold", "schema", f"{PAUSED}: the table"),
            {"writer-2": ("on_hold", "schema", f"{PAUSED}: the table")},
        ),
        Step(
            (200, "on_hold", "tables", f"it starts; {PAUSED}"),
            {"writer-2": ("starting", "tables", f"it starts; {PAUSED}")},
            later_s=RESTART_S,
            heard=ALL,
        ),
        *(
            Step(
                (200, "accepting", "" if state == "starting" else state),
                dict.fromkeys(WRITERS, (state, state)),
                later_s=RESTART_S,
                heard=ALL,
            )
            for state in ("starting", "draining", "full", "disk_low", "broker_away")
        ),
        Step((503, "full", "full"), {"gateway-1": ("full", "full", "no space")}),
    ),
    "silent or gone: posts are taken as long as one gateway runs": (
        Step(
            (200, "accepting", "instance_away", "writer-2 does not report its state"),
            later_s=SILENT_S,
            heard=(*GATEWAYS, "writer-1"),
        ),
        Step(
            (200, "accepting", "instance_away", "no writer runs; the stream keeps readings"),
            gone=["writer-1"],
            later_s=RESTART_S,
            heard=GATEWAYS,
        ),
        Step(
            (200, "accepting", "instance_away", "writer-1 does not report its state"),
            gone=GATEWAYS,
            heard=["writer-2"],
        ),
        Step(
            (503, "starting", "instance_away", "no gateway reports its state"),
            later_s=RESTART_S,
            heard=["writer-2"],
        ),
    ),
    # From the drain of one until the next one works: posts wait in the socket meanwhile.
    **{
        f"{name} is restarted": (
            Step(WELL, {name: ("draining", "draining", "it stops")}),
            Step(WELL, gone=[name]),
            Step(WELL, {name: ("starting", "starting", "it starts")}, new=[name]),
            Step(
                (503, "starting") if name == "gateway-1" else (200, "accepting"),
                later_s=RESTART_S,
                heard=ALL,
            ),
        )
        for name in ("gateway-1", "writer-1")
    },
}


@pytest.mark.parametrize("name", STORIES)
def test_state_and_cause_are_as_the_story_says(rig: Rig, name: str) -> None:
    """After each step. A stop of all is `draining` from the first moment on."""
    for at, step in enumerate(STORIES[name]):
        for each in step.new:
            rig.processes[each] = FakeProcess(each.rpartition("-")[0])
        for each, told in step.sets.items():
            rig.set(each, *told)
        for each in step.gone:
            rig.instances.gone(each, rig.processes[each].pid)
        rig.now_s += step.later_s
        rig.hear(*step.heard)
        status, document = rig.readyz()
        found = (status, document["state"], document["cause"], document["reason"])
        assert found[: len(step.told)] == step.told, f"step {at + 1}"
        assert document["refusing"] == (status == 503)
    rig.health.draining()
    assert rig.readyz()[1]["state"] == "draining"


def test_all_well(rig: Rig) -> None:
    """200, no cause, and each process in the list, with the counts of the last minute added."""
    rig.set("writer-1", "starting")  # no post is refused for it
    for name in GATEWAYS:
        rig.processes[name].ready["refused_60s"] = {"not_json": 2}
    rig.processes["gateway-2"].ready["closed_60s"] = {"header_late": 1}
    rig.hear(*ALL)
    status, document = rig.readyz()
    assert (status, document["state"], document["cause"]) == (200, "accepting", "")
    assert [each["instance"] for each in document["instances"]] == list(rig.processes)
    assert all(each["runs"] and not each["refusing"] for each in document["instances"])
    assert rig.health.in_words() == "accepting"
    assert (document["refused_60s"], document["closed_60s"]) == (
        {"not_json": 4},
        {"header_late": 1},
    )


def test_nothing_has_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 `starting`, with a next step."""
    rig = Rig(monkeypatch)
    status, document = rig.readyz()
    assert (status, document["state"], document["cause"]) == (503, "starting", "starting")
    assert document["next"]
    rig.hear("writer-1")
    assert rig.readyz()[0] == 503


def test_process_that_hears_nobody_says_why(rig: Rig) -> None:
    """Without a broker no gateway is heard: that is no fault of a gateway."""
    rig.health._unheard = lambda: Trouble(*REFUSES[1:], state="broker_away")
    assert rig.readyz()[1]["state"] == "accepting", "a gateway was heard a moment ago"
    for later_s in (SILENT_S, RESTART_S):
        rig.now_s += later_s
        status, document = rig.readyz()
        found = (document["state"], document["cause"], document["reason"])
        assert (status, found) == (503, REFUSES)


def test_time_until_the_stream_is_full(rig: Rig) -> None:
    """Only while messages wait long: the stream also grows until the next purge."""
    writer = rig.processes["writer-1"]
    for age_s, expected in ((2, False), (60, True), (2, False)):
        for second in range(40):
            rig.now_s += 1
            writer.broker = {
                "stream_bytes": GIB + second * 1024**2,
                "stream_bytes_max": 2 * GIB,
                "stream_oldest_age_seconds": age_s,
            }
            rig.hear(*ALL)
            rig.health.tick()
        left_s = rig.readyz()[1]["full_in_s"]["stream"]
        assert (left_s is not None) == expected
        if left_s is not None:
            assert left_s == pytest.approx(1024 - 40, abs=60)


def test_state_and_cause_keep_the_time_of_their_change(rig: Rig) -> None:
    """A document that is asked for twice has the same times."""
    first = rig.readyz()[1]
    rig.set("gateway-1", "full", "full", "no space")
    changed = rig.readyz()[1]
    again = rig.readyz()[1]
    assert changed["since"] > first["since"]
    assert (again["since"], again["cause_since"]) == (changed["since"], changed["cause_since"])
