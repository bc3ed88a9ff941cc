"""The processes of `ingest up`, by the status that each sends, and their sum.

Promises: the sum of the counters never falls. If a process ends, its last counters are kept in a
remainder, and its successor counts from 0. What it still held then is counted as returned to the
stream (a writer) or as rejected with an unknown outcome (a gateway): so the sum stays balanced. No
process is counted twice, whichever of two ends first.
Does not: start, watch or replace processes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ingest.admin.exposition import Shown
from ingest.app.metrics import values_of
from ingest.app.status import Status
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from ingest.model.metrics import Figures
from ingest.model.ports import BufferStats
from ingest.system.clock import monotonic_s

# One process that has seen it is enough.
AS_THE_WORST = ("stream_altered", "stream_removed", "sender_not_stored")
LOSSES = ("stream_removed", "stream_skipped_total")  # of messages that were acknowledged
SILENT_S = 3.0  # without a status for so long, a process does not count as running
RATE_S_MIN = 0.5  # a rate over less time says little
LEFT_S = 10.0  # a replaced process that has sent nothing for so long has ended
REFUSED_POSTS_MAX = 100
ENDED_MAX = 100
FORGOTTEN_MAX = 1_000

GATEWAY, WRITER = "gateway", "writer"
OWN = "up"  # the name of the process that shows the others


@dataclass
class Instance:
    """One slot of a process, such as `gateway-1`: who has it now, and who is leaving it."""

    name: str
    status: Status
    heard_s: float
    per_s: float = 0.0  # readings that it received, or that were delivered to it
    cpu: float = 0.0  # share of a core
    gone: bool = False  # it has ended, and its counters are in the remainder
    leaving: dict[int, tuple[Status, float]] = field(default_factory=dict)  # by their start
    ended: deque[int] = field(default_factory=lambda: deque(maxlen=ENDED_MAX))  # starts of others

    @property
    def silent_s(self) -> float:
        """Seconds since the last status."""
        return monotonic_s() - self.heard_s

    @property
    def serving(self) -> Status:
        """The status of the process that does the work: while a successor starts, the other one."""
        if self.status.state == "starting" and self.leaving:
            return next(reversed(self.leaving.values()))[0]
        return self.status

    @property
    def oldest_received_s(self) -> float | None:
        """When it received the oldest reading that it holds: of that age at its last status.

        If it does not run, the reading has become older since.
        """
        gauges = self.status.ledger.gauges
        oldest_s = gauges.buffer().oldest_received_s if gauges and not self.gone else None
        return oldest_s + self.silent_s if oldest_s is not None and self.runs else oldest_s

    @property
    def runs(self) -> bool:
        """Whether it has sent a status lately, and has not ended."""
        return not (self.has_ended or self.silent_s >= SILENT_S)

    @property
    def is_silent(self) -> bool:
        """Whether it may still run, and has sent no status lately."""
        return not self.has_ended and self.silent_s >= SILENT_S

    @property
    def has_ended(self) -> bool:
        """Whether its end is known: it has said so, or `gone` was called."""
        return self.gone or self.status.final


class Instances:
    """All processes. `own` is the ledger of this process, which is one of them.

    `ledger` has the sum at the last `refresh`. `unclean` counts processes that ended without a last
    status: what they did in their last second is not known. If nobody calls `gone`, a process that
    was silent for `forget_s` is left out of the list. Should it come back, it is counted once. Each
    process that is heard for the first time is unclean then: who was there with it is not known.
    """

    def __init__(self, own: Ledger, version: str, pid: int, *, forget_s: float = math.inf) -> None:
        self._forget_s = forget_s
        self._forgotten: dict[str, tuple[Status, Mapping[str, Any]]] = {}  # the last counters
        self._own = own
        self._version = version
        self._pid = pid
        self._slots: dict[str, Instance] = {}
        self._ended = Ledger()
        self._ended_figures: dict[str, float] = {}  # what ended processes counted of the broker
        self._refused_posts: deque[dict[str, Any]] = deque(maxlen=REFUSED_POSTS_MAX)
        self.unclean = 0
        self.ledger = Ledger()
        self.ledger.gauges = Gauges(
            buffer=self.buffer,
            dead_letters=lambda: own.gauges.dead_letters() if own.gauges else DeadLetterStats(),
            database_up=self.database_up,
            hold_reason=self.hold_reason,
            state=lambda: own.gauges.state() if own.gauges else "starting",
            figures=self.broker,
        )

    def heard(self, name: str, status: Status) -> None:
        """Take the status of a process that has the slot `name`, or is leaving it."""
        now_s = monotonic_s()
        slot = self._slots.get(name)
        if slot is None:
            is_known = self._remember(name, status)
            self.unclean += self._forget_s < math.inf and not is_known
            self._slots[name] = Instance(name, status, now_s)
        elif status.started_us in slot.ended:
            return  # it came late
        elif status.started_us == slot.status.started_us:  # a pid may come again in a container
            if status.sent_us < slot.status.sent_us:
                return
            took_s = (status.sent_us - slot.status.sent_us) / 1e6
            if took_s >= RATE_S_MIN:
                slot.per_s = max(0.0, (_taken(status) - _taken(slot.status)) / took_s)
                slot.cpu = max(0.0, (status.cpu_s - slot.status.cpu_s) / took_s)
            slot.status, slot.heard_s = status, now_s
        elif status.started_us < slot.status.started_us:
            slot.leaving[status.started_us] = status, now_s
        else:
            if not slot.gone:
                slot.leaving[slot.status.started_us] = slot.status, slot.heard_s
            slot.status, slot.heard_s, slot.gone = status, now_s, False
            slot.per_s = slot.cpu = 0.0
        self._refused_posts.extend(dict(each) for each in reversed(status.refused_posts))

    def gone(self, name: str, pid: int) -> None:
        """Note that a process of this slot has ended.

        If a successor has ended before it was ready, the slot is that of its predecessor again.
        """
        slot = self._slots.get(name)
        if slot is None:
            return
        for started_us, (status, _) in slot.leaving.items():
            if status.pid == pid:
                del slot.leaving[started_us]
                self._end(slot, status)
                return
        if slot.gone or slot.status.pid != pid:
            return
        self._end(slot, slot.status)
        slot.per_s = slot.cpu = 0.0
        if slot.leaving:
            _, (slot.status, slot.heard_s) = slot.leaving.popitem()
        else:
            slot.gone = True

    def of(self, *roles: str) -> list[Instance]:
        """Return the instances of some roles, by name."""
        return [each for each in self if each.status.role in roles]

    def __iter__(self) -> Iterator[Instance]:
        return iter(sorted(self._slots.values(), key=lambda each: _sortable(each.name)))

    def refresh(self) -> None:
        """Set `ledger` to the sum of all processes, those that have ended included."""
        now_s = monotonic_s()
        for slot in list(self._slots.values()):
            if slot.status.final or slot.silent_s > self._forget_s:
                self._forget(slot)
            for started_us, (status, heard_s) in list(slot.leaving.items()):
                if status.final or now_s - heard_s > LEFT_S:
                    del slot.leaving[started_us]
                    self._end(slot, status)
        total = Ledger()
        for snapshot in self._snapshots():
            total.add(snapshot)
        self.ledger.become(total)

    def _forget(self, slot: Instance) -> None:
        if self._forget_s == math.inf:
            return
        del self._slots[slot.name]
        if not slot.gone:
            ended = self._ended_ledger(slot.status)
            self._forgotten[slot.name] = slot.status, ended.snapshot()
            if len(self._forgotten) > FORGOTTEN_MAX:
                self._keep(*self._forgotten.pop(next(iter(self._forgotten))))

    def _remember(self, name: str, status: Status) -> bool:
        """Take a process out of those that have ended; return whether this is the same one."""
        if name not in self._forgotten:
            return False
        before, counters = self._forgotten.pop(name)
        is_same = before.started_us == status.started_us
        if not is_same:
            self._keep(before, counters)
        return is_same

    def _snapshots(self) -> Iterator[Mapping[str, Any]]:
        yield self._own.snapshot()
        yield self._ended.snapshot()
        yield from (counters for _, counters in self._forgotten.values())
        for slot in self._slots.values():
            if not slot.gone:
                yield slot.status.counters
            yield from (status.counters for status, _ in slot.leaving.values())

    def _end(self, slot: Instance, status: Status) -> None:
        """Keep the counters of a process that has ended."""
        slot.ended.append(status.started_us)
        self._keep(status, self._ended_ledger(status).snapshot())

    def _keep(self, status: Status, counters: Mapping[str, Any]) -> None:
        self._ended.add(counters)
        for name, value in _broker(status):
            known = self._ended_figures.get(name, 0)
            if isinstance(value, Mapping):
                continue
            if name.endswith("_total"):
                self._ended_figures[name] = known + value
            elif name in LOSSES:
                self._ended_figures[name] = max(known, value)

    def _ended_ledger(self, status: Status) -> Ledger:
        """Return the counters of a process that has ended, balanced."""
        self.unclean += not status.final
        ledger = Ledger.from_snapshot(status.counters)
        ledger.at_receiver = 0
        if (left := ledger.imbalance) > 0:
            if status.role == WRITER:
                ledger.returned += left
            else:
                ledger.rejected["outcome_unknown"] += left
        return ledger

    # What all of them say together

    def shown(self) -> list[Shown]:
        """Return the processes for /metrics, this one first."""
        others = [
            Shown(
                each.name,
                each.status.version,
                values_of(each.status.ledger),
                each.status.pid if each.runs else None,
            )
            for each in self
        ]
        return [Shown(OWN, self._version, values_of(self._own), self._pid), *others]

    def buffer(self) -> BufferStats:
        """Return the sum of the buffers of all processes; the space of the fullest one."""
        found = [gauges.buffer() for gauges in self._gauges()]
        oldest = [age for each in self if (age := each.oldest_received_s) is not None]
        fullest = max((each.used for each in found), default=0.0)
        sums = {
            name: sum(getattr(each, name) for each in found)
            for name in BufferStats._fields
            if name not in {"oldest_received_s", "disk_used"}
        }
        oldest_s = min(oldest, default=None)
        return BufferStats(**sums, oldest_received_s=oldest_s, disk_used=fullest)

    def database_up(self) -> bool | None:
        """Whether all writers reach the database; None if none has said it yet."""
        known = [up for each in self._gauges() if (up := each.database_up()) is not None]
        return all(known) if known else None

    def hold_reason(self) -> str | None:
        """Return why a writer's writes are paused, or None."""
        return next((why for each in self._gauges() if (why := each.hold_reason())), None)

    def broker(self) -> Figures:
        """Return the figures of the broker: counters as a sum, the others as the last one said."""
        figures: dict[str, float | Mapping[str, float]] = {**self._ended_figures}
        heard = [each.status for each in self._slots.values() if not each.gone]
        for status in sorted(heard, key=lambda each: each.sent_us):
            for name, value in _broker(status):
                known = figures.get(name, 0)
                if isinstance(value, Mapping) or isinstance(known, Mapping):
                    figures[name] = value
                elif name.endswith("_total"):
                    figures[name] = known + value
                elif name.endswith("_up") and name in figures:
                    figures[name] = min(known, value)
                elif name in AS_THE_WORST:
                    figures[name] = max(known, value)
                else:
                    figures[name] = value
        return figures

    def losses(self) -> Figures:
        """Return what ended processes counted as lost: an alert must outlast their restart."""
        return {name: lost for name in LOSSES if (lost := self._ended_figures.get(name))}

    def message(self) -> str:
        """Return what the database said last to a writer that waits."""
        return next((said for each in self.of(WRITER) if (said := each.status.message)), "")

    def refused_posts(self) -> list[dict[str, Any]]:
        """Return the last refused posts of all gateways, newest first."""
        return sorted(self._refused_posts, key=lambda each: str(each.get("at")), reverse=True)

    def _gauges(self) -> Iterator[Gauges]:
        for each in self:
            if not each.gone and each.status.ledger.gauges is not None:
                yield each.status.ledger.gauges


def _broker(status: Status) -> Iterable[tuple[str, float | Mapping[str, float]]]:
    gauges = status.ledger.gauges
    return gauges.figures().items() if gauges is not None else ()


def _taken(status: Status) -> int:
    return status.ledger.received + status.ledger.delivered


def _sortable(name: str) -> tuple[str, int, str]:
    """Return a key that sorts `gateway-10` behind `gateway-2`."""
    word, _, number = name.rpartition("-")
    return word, int(number) if number.isdecimal() else 0, name
