"""/readyz of several processes: the worst gateway decides, writers give the cause."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ingest.app.fill import Fill
from ingest.app.instances import RESTART_S, SILENT_S, Instances
from ingest.app.status import read_status
from ingest.app.up_health import UpHealth
from ingest.config.settings import Settings
from ingest.model.causes import FIELDS
from ingest.model.ledger import DeadLetterStats, Ledger
from tests.support.statuses import FakeProcess

GIB = 1024**3


class Rig:
    """Two gateways and two writers, and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        for part in ("instances", "up_health", "fill"):
            monkeypatch.setattr(f"ingest.app.{part}.monotonic_s", lambda: self.now_s)
        self.instances = Instances(Ledger(), "0.1", 1)
        advice = {name: f"<{name}>" for name in FIELDS}
        self.health = UpHealth(self.instances, Fill(Settings()), advice)
        self.processes = {
            name: FakeProcess(name.rpartition("-")[0])
            for name in ("gateway-1", "gateway-2", "writer-1", "writer-2")
        }

    def gone(self, name: str) -> None:
        """Note that a process has ended."""
        self.instances.gone(name, self.processes[name].pid)

    def hear(self, *names: str) -> None:
        """Take the next status of some processes, or of all."""
        for name in names or self.processes:
            self.instances.heard(name, read_status(self.processes[name].sent()))

    def set(self, name: str, state: str, cause: str = "", reason: str = "") -> None:
        """Let a process report a state."""
        self.processes[name].ready = {"state": state, "cause": cause, "reason": reason}
        self.hear(name)

    def readyz(self) -> tuple[int, dict[str, Any]]:
        """Return the status and the document."""
        status, body = self.health.readyz()
        return status, json.loads(body)

    def short(self) -> tuple[int, str, str, str]:
        """Return status, state, cause and reason."""
        status, document = self.readyz()
        return status, document["state"], document["cause"], document["reason"]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """All of them well."""
    rig = Rig(monkeypatch)
    rig.hear()
    return rig


def test_all_well(rig: Rig) -> None:
    """200, no cause, and each process in the list."""
    status, document = rig.readyz()
    assert (status, document["state"], document["cause"]) == (200, "accepting", "")
    assert [each["instance"] for each in document["instances"]] == list(rig.processes)
    assert all(each["runs"] and not each["refusing"] for each in document["instances"])
    assert rig.health.in_words() == "accepting"


def test_nothing_has_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 `starting`, with a next step."""
    rig = Rig(monkeypatch)
    assert rig.short()[:3] == (503, "starting", "starting")
    assert rig.readyz()[1]["next"]
    rig.hear("writer-1")
    assert rig.short()[0] == 503


def test_one_gateway_that_refuses_is_the_state(rig: Rig) -> None:
    """A part of the posts is refused; the reason says which gateways. Of several: the worst."""
    rig.set("gateway-2", "full", "full", "no space")
    assert rig.short() == (503, "full", "full", "gateway-2 of 2 gateways: no space")
    rig.set("gateway-1", "broker_away", "broker_away", "the broker does not answer")
    assert rig.short() == (503, "broker_away", "broker_away", "the broker does not answer")
    assert rig.readyz()[1]["next"].startswith("Start the broker")
    assert rig.readyz()[1]["refusing"] is True
    rig.set("gateway-1", "accepting")
    rig.set("gateway-2", "slowed", "slowed", "posts wait")
    assert rig.short() == (200, "slowed", "slowed", "posts wait")
    rig.set("gateway-2", "accepting", "sender_share_used", "of one sender")
    assert rig.short() == (200, "accepting", "sender_share_used", "of one sender")
    for cause, told in (("retention_waits", "sender_share_used"), ("writes_fail", "writes_fail")):
        rig.set("writer-1", "accepting", cause)
        assert rig.short()[2] == told


def test_writers_cannot_refuse_posts(rig: Rig) -> None:
    """Whatever their state is: it is the cause, and only a pause is the state."""
    rig.set("writer-1", "accepting", "unreachable", "the database is away; readings are kept")
    reason = "the database is away; readings are kept"
    assert rig.short() == (200, "accepting", "unreachable", reason)
    rig.set("writer-2", "on_hold", "schema", "writes are paused: the table")
    assert rig.short() == (200, "on_hold", "schema", "writes are paused: the table")
    for state in ("starting", "draining", "full", "disk_low", "broker_away"):
        rig.set("writer-1", state, state)
        rig.set("writer-2", state, state)
        rig.now_s += RESTART_S
        rig.hear()
        expected = (200, "accepting", "" if state == "starting" else state)
        assert rig.short()[:3] == expected
    rig.set("gateway-1", "full", "full", "no space")
    assert rig.short()[:3] == (503, "full", "full")


def test_process_that_is_silent_or_gone_is_named(rig: Rig) -> None:
    """Posts are still taken as long as one gateway runs. At a restart they wait for a moment."""
    rig.now_s += SILENT_S
    rig.hear("gateway-1", "gateway-2", "writer-1")
    assert rig.short() == (200, "accepting", "instance_away", "writer-2 does not report its state")
    rig.gone("writer-1")
    rig.now_s += RESTART_S
    rig.hear("gateway-1", "gateway-2")
    expected = (200, "accepting", "instance_away", "no writer runs; the stream keeps readings")
    assert rig.short() == expected
    rig.hear("writer-2")
    rig.gone("gateway-1")
    rig.gone("gateway-2")
    assert rig.short()[3] == "writer-1 does not report its state"
    rig.now_s += RESTART_S
    rig.hear("writer-2")
    expected = (503, "starting", "instance_away", "no gateway reports its state")
    assert rig.short() == expected


@pytest.mark.parametrize("name", ["gateway-1", "writer-1"])
def test_process_that_is_restarted_is_not_the_state(rig: Rig, name: str) -> None:
    """From its drain until the next one works: posts wait in the socket meanwhile."""
    rig.set(name, "draining", "draining", "it stops")
    assert rig.short() == (200, "accepting", "", "")
    rig.gone(name)
    assert rig.short() == (200, "accepting", "", "")
    rig.processes[name] = FakeProcess(name.rpartition("-")[0])
    rig.set(name, "starting", "starting", "it starts")
    assert rig.short() == (200, "accepting", "", "")
    rig.now_s += RESTART_S
    rig.hear()
    expected = (503, "starting") if name == "gateway-1" else (200, "accepting")
    assert rig.short()[:2] == expected


def test_stop_of_all_is_draining(rig: Rig) -> None:
    """From the first moment on."""
    rig.health.draining()
    assert rig.short()[:2] == (503, "draining")


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
            rig.hear()
            rig.health.tick(DeadLetterStats(), 10**12)
        left_s = rig.readyz()[1]["full_in_s"]["stream"]
        assert (left_s is not None) == expected
        if left_s is not None:
            assert left_s == pytest.approx(1024 - 40, abs=60)
