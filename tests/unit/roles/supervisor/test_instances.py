"""Several processes as one: sums that never fall, processes that are replaced, gone or silent."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.model.ledger import Ledger
from ingest.roles.status import read_status
from ingest.roles.supervisor.instances import RESTART_S, Instances
from tests.support.statuses import FakeProcess


class Rig:
    """Instances, and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **given: float) -> None:
        self.now_s = 1000.0
        for part in ("supervisor.instances", "status"):
            monkeypatch.setattr(f"ingest.roles.{part}.monotonic_s", lambda: self.now_s)
        self.own = Ledger()
        self.instances = Instances(self.own, **given)
        self.seen: list[dict[str, Any]] = []

    def hear(self, name: str, process: FakeProcess, *, final: bool = False) -> None:
        """Take the next status of a process."""
        self.instances.heard(name, read_status(process.sent(final=final)))

    def total(self) -> Ledger:
        """Return the sum. No counter is smaller than in the sum before."""
        self.instances.refresh()
        found = self.instances.ledger
        if self.seen:
            before = Ledger.from_snapshot(self.seen[-1])
            for name in ("received", "committed", "published", "delivered", "returned"):
                assert getattr(found, name) >= getattr(before, name), name
            for key, count in before.requests.items():
                assert found.requests[key] >= count
        self.seen.append(found.snapshot())
        return found


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """No process yet."""
    return Rig(monkeypatch)


def test_sum_of_two_gateways_and_a_writer(rig: Rig) -> None:
    """Counters, held readings, the own process too; the balance is that of all."""
    one, two, writer = FakeProcess("gateway"), FakeProcess("gateway"), FakeProcess("writer")
    one.takes(10)
    two.takes(5)
    two.ledger.received += 2
    two.held = 2
    writer.takes(12)
    rig.own.request_answered("/metrics", 200, 0.1)
    for name, each in (("gateway-1", one), ("gateway-2", two), ("writer-1", writer)):
        rig.hear(name, each)
    total = rig.total()
    assert (total.received, total.published, total.delivered) == (17, 15, 12)
    assert total.held == 2
    assert total.imbalance == 0
    assert total.requests["/metrics", 200] == 1
    assert [each.name for each in rig.instances] == ["gateway-1", "gateway-2", "writer-1"]


def test_next_process_counts_from_zero_and_the_sum_does_not(rig: Rig) -> None:
    """While it starts, the state is that of before: posts wait for it."""
    old, new = FakeProcess("gateway"), FakeProcess("gateway")
    old.takes(100)
    rig.hear("gateway-1", old)
    rig.hear("gateway-1", old, final=True)
    rig.instances.gone("gateway-1", old.pid)
    assert rig.total().received == 100
    (slot,) = rig.instances
    assert (slot.runs, slot.restarts, slot.serving.state) == (False, True, "accepting")
    new.ready["state"] = "starting"
    rig.hear("gateway-1", new)
    (slot,) = rig.instances
    assert (slot.status.pid, slot.runs, slot.serving.pid) == (new.pid, True, old.pid)
    rig.now_s += RESTART_S
    rig.hear("gateway-1", new)
    assert slot.serving.state == "starting", "it takes too long"
    new.ready["state"] = "accepting"
    new.takes(1)
    rig.hear("gateway-1", new)
    assert (slot.restarts, slot.serving.pid) == (False, new.pid)
    assert rig.total().received == 101
    rig.hear("gateway-1", old)  # a line that was still in its channel
    rig.instances.gone("gateway-1", old.pid)
    assert (slot.gone, rig.total().received) == (False, 101)


def test_container_that_was_restarted_has_the_same_pid(rig: Rig) -> None:
    """And the same name. It counts from 0, and the sum does not."""
    old, new = FakeProcess("gateway"), FakeProcess("gateway")
    new.pid = old.pid
    old.takes(5)
    rig.hear("gateway-a-1", old)
    assert rig.total().received == 5
    new.takes(1)
    rig.hear("gateway-a-1", new)
    assert rig.total().received == 6


def test_killed_processes_leave_no_imbalance(rig: Rig) -> None:
    """What a writer held comes again; of what a gateway held nobody knows. It is not held now."""
    gateway, writer = FakeProcess("gateway"), FakeProcess("writer")
    gateway.ledger.received = gateway.held = 7
    gateway.ledger.at_receiver = 1
    gateway.ledger.received += 1
    writer.ledger.delivered = writer.held = 5
    rig.hear("gateway-1", gateway)
    rig.hear("writer-1", writer)
    assert (rig.total().held, rig.total().imbalance) == (13, 0)
    rig.instances.gone("gateway-1", gateway.pid)
    rig.instances.gone("writer-1", writer.pid)
    total = rig.total()
    assert (total.held, total.imbalance) == (0, 0)
    assert total.rejected == {"outcome_unknown": 8}
    assert total.returned == 5
    rig.instances.gone("writer-1", writer.pid)  # a second time changes nothing
    rig.hear("writer-1", writer)  # a line that was still in the channel
    assert rig.total().delivered == 5
    successor = FakeProcess("writer")
    successor.takes(5)
    rig.hear("writer-1", successor)
    assert rig.total().delivered == 10
    assert [each.gone for each in rig.instances] == [True, False]


def test_forgotten_process_is_counted_once_if_it_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody says that it has ended. Another process of that name is another one."""
    rig = Rig(monkeypatch, forget_s=30)
    gateway, writer = FakeProcess("gateway"), FakeProcess("writer")
    gateway.takes(5)
    writer.takes(4)
    writer.ledger.delivered += 3
    writer.held = 3
    rig.hear("gateway-a", gateway)
    rig.hear("writer-b", writer)
    rig.now_s += 29
    rig.hear("gateway-a", gateway)
    rig.total()
    assert len(list(rig.instances)) == 2
    rig.now_s += 2
    rig.hear("gateway-a", gateway)
    total = rig.total()
    assert [each.name for each in rig.instances] == ["gateway-a"]
    assert (total.delivered, total.returned, total.imbalance) == (7, 3, 0)
    rig.seen.clear()  # what it held was not returned after all
    rig.hear("writer-b", writer)
    assert (rig.total().delivered, rig.instances.ledger.returned) == (7, 0)
    rig.hear("gateway-a", gateway, final=True)
    assert rig.total().received == 5
    assert [each.name for each in rig.instances] == ["writer-b"]
    successor = FakeProcess("gateway")
    successor.takes(2)
    rig.hear("gateway-a", successor)
    assert rig.total().received == 7


def test_loss_stays_when_the_process_that_has_seen_it_ends(rig: Rig) -> None:
    """Else the alert would end at a restart. Each process has seen the same removal."""
    one, two, new = FakeProcess("writer"), FakeProcess("gateway"), FakeProcess("writer")
    one.broker = {"stream_removed": 7, "stream_skipped_total": 2, "stream_altered": 1}
    two.broker = {"stream_removed": 6}
    assert rig.instances.losses() == {}
    for name, each in (("writer-1", one), ("gateway-1", two)):
        rig.hear(name, each)
        rig.instances.gone(name, each.pid)
    new.broker = {"stream_removed": 0, "stream_skipped_total": 1, "stream_altered": 0}
    rig.hear("writer-1", new)
    assert rig.instances.broker() == {
        "stream_removed": 7,
        "stream_skipped_total": 3,
        "stream_altered": 0,
    }
    assert rig.instances.losses() == {"stream_removed": 7, "stream_skipped_total": 2}
