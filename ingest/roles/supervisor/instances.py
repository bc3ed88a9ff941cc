"""The processes of `ingest up`, by the status that each sends, and their sum.

The sum is made of the last counters of each process, those that have ended included. What a process
held at its end is counted as returned to the stream (a writer) or as rejected with an unknown
outcome (a gateway): so the sum stays balanced.
Promises: the sum of the counters never falls, and no process is counted twice.
Does not: start, watch or replace processes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from os import getpid
from typing import Any

from ingest import __version__
from ingest.admin.exposition import Shown
from ingest.app.metrics_and_causes import values_of
from ingest.model.ledger import DeadLetterStats, Figures, Gauges, Ledger
from ingest.model.ports import BufferStats
from ingest.roles.status import Status
from ingest.system.clock import monotonic_s

# One process that has seen it is enough.
AS_THE_WORST = ("stream_altered", "stream_removed", "sender_not_stored")
LOSSES = ("stream_removed", "stream_skipped_total")  # of messages that were acknowledged
SILENT_S = 3.0  # without a status for so long, a process does not count as running
RATE_S_MIN = 0.5  # a rate over less time says little
RESTART_S = 5.0  # so long posts wait in the socket for a process that follows another one
REFUSED_POSTS_MAX = 100
ENDED_MAX = 50  # processes whose counters are known one by one: one of them may only be silent

GATEWAY, WRITER = "gateway", "writer"
OWN = "up"  # the name of the process that shows the others
_AT_BEGIN_OR_END = ("starting", "draining")


@dataclass
class Instance:
    """The process that has a name, such as `gateway-1`."""

    name: str
    status: Status
    heard_s: float
    per_s: float = 0.0  # readings that it received, or that were delivered to it
    cpu: float = 0.0  # share of a core
    gone: bool = False  # `gone` was called
    worked: Status | None = None  # the last status between start and stop, of its predecessor too
    worked_s: float = -math.inf

    def __post_init__(self) -> None:
        self.hear(self.status, self.heard_s)

    def hear(self, status: Status, now_s: float) -> None:
        """Take its next status."""
        self.status, self.heard_s = status, now_s
        if status.state not in _AT_BEGIN_OR_END:
            self.worked, self.worked_s = status, now_s

    @property
    def silent_s(self) -> float:
        """Seconds since the last status."""
        return monotonic_s() - self.heard_s

    @property
    def restarts(self) -> bool:
        """Whether it has ended, or starts or stops, and has worked a moment ago."""
        is_away = self.has_ended or self.status.state in _AT_BEGIN_OR_END
        return is_away and monotonic_s() - self.worked_s < RESTART_S

    @property
    def serving(self) -> Status:
        """The status that counts: at a restart, that from before it."""
        return self.worked if self.restarts and self.worked is not None else self.status

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
        return not self.has_ended and self.silent_s < SILENT_S

    @property
    def has_ended(self) -> bool:
        """Whether its end is known: it has said so, or `gone` was called."""
        return self.gone or self.status.final


class Instances:
    """All processes. `own` is the ledger of this process, which is one of them.

    `ledger` has the sum at the last `refresh`. If nobody calls `gone`, a process that was silent
    for `forget_s` is not listed, and counts as ended. Should it come back, it is counted once.
    """

    def __init__(self, own: Ledger, *, forget_s: float = math.inf) -> None:
        self._forget_s = forget_s
        self._own = own
        self._current: dict[str, Instance] = {}
        self._last: dict[tuple[str, int], Status] = {}  # by name and start
        self._older = Ledger()  # of those that ended first, and what they counted of the broker
        self._older_figures: Figures = {}
        self._refused_posts: deque[dict[str, Any]] = deque(maxlen=REFUSED_POSTS_MAX)
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
        """Take the status of a process of this name.

        One from before the last one is a late one, or the clock was set back: its counters wait.
        """
        known = self._last.get((name, status.started_us))
        if known is None or status.sent_us >= known.sent_us:
            self._last[name, status.started_us] = status
        now_s, current = monotonic_s(), self._current.get(name)
        if current is None:
            self._current[name] = Instance(name, status, now_s)
        elif _follows(status, current):
            self._current[name] = replace(
                current, status=status, heard_s=now_s, per_s=0.0, cpu=0.0, gone=False
            )
        elif known is not None and status.started_us == current.status.started_us:
            took_s = (status.sent_us - known.sent_us) / 1e6
            if took_s >= RATE_S_MIN:
                current.per_s = max(0.0, (_taken(status) - _taken(known)) / took_s)
                current.cpu = max(0.0, (status.cpu_s - known.cpu_s) / took_s)
            current.hear(status, now_s)
        self._refused_posts.extend(dict(each) for each in reversed(status.refused_posts))

    def gone(self, name: str, pid: int) -> None:
        """Note that a process of this name has ended."""
        current = self._current.get(name)
        if current is not None and current.status.pid == pid:
            current.gone = True
            current.per_s = current.cpu = 0.0

    def of(self, *roles: str) -> list[Instance]:
        """Return the instances of some roles, by name."""
        return [each for each in self if each.status.role in roles]

    def __iter__(self) -> Iterator[Instance]:
        listed = [each for each in self._current.values() if not self._is_forgotten(each)]
        return iter(sorted(listed, key=lambda each: _sortable(each.name)))

    def _is_forgotten(self, instance: Instance) -> bool:
        if self._forget_s == math.inf:
            return False  # somebody starts the next one
        return instance.status.final or instance.silent_s > self._forget_s

    def refresh(self) -> None:
        """Set `ledger` to the sum of all processes, those that have ended included."""
        running = {(each.name, each.status.started_us) for each in self if not each.gone}
        ended = [key for key in self._last if key not in running]
        for name, started_us in ended[:-ENDED_MAX]:
            status = self._last.pop((name, started_us))
            self._older.add(_balanced(status).snapshot())
            self._older_figures = _sum((self._older_figures, _broker(status)))
        total = Ledger()
        total.add(self._own.snapshot())
        total.add(self._older.snapshot())
        for key, status in self._last.items():
            total.add(status.counters if key in running else _balanced(status).snapshot())
        self.ledger.become(total)

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
        return [Shown(OWN, __version__, values_of(self._own), getpid()), *others]

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
        figures: dict[str, float | Mapping[str, float]] = {**self._ended_figures()}
        heard = [each.status for each in self if not each.gone]
        for status in sorted(heard, key=lambda each: each.sent_us):
            for name, value in _broker(status).items():
                figures[name] = _joined(name, figures.get(name), value)
        return figures

    def losses(self) -> Figures:
        """Return what ended processes counted as lost: an alert must outlast their restart."""
        figures = self._ended_figures()
        return {name: figures[name] for name in LOSSES if figures.get(name)}

    def _ended_figures(self) -> Figures:
        running = {(each.name, each.status.started_us) for each in self if not each.gone}
        ended = (_broker(status) for key, status in self._last.items() if key not in running)
        return _sum((self._older_figures, *ended))

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


def _follows(status: Status, current: Instance) -> bool:
    """Whether it is of the next process. The clock may be set back after the end of the last."""
    before_us = current.status.started_us
    return status.started_us > before_us or (current.gone and status.started_us != before_us)


def _broker(status: Status) -> Figures:
    gauges = status.ledger.gauges
    return gauges.figures() if gauges is not None else {}


def _sum(figures: Iterable[Figures]) -> Figures:
    """Return the sum of what ended processes have counted of the broker, and their losses."""
    found: dict[str, float | Mapping[str, float]] = {}
    for name, value in (item for each in figures for item in each.items()):
        if not isinstance(value, Mapping) and (name.endswith("_total") or name in LOSSES):
            found[name] = _joined(name, found.get(name), value)
    return found


def _joined(name: str, known: Any, value: Any) -> Any:
    """Return a figure of several processes: counters as a sum, the others as `broker` says."""
    if known is None or isinstance(value, Mapping) or isinstance(known, Mapping):
        return value
    if name.endswith("_total"):
        return known + value
    if name.endswith("_up"):
        return min(known, value)
    return max(known, value) if name in AS_THE_WORST else value


def _balanced(status: Status) -> Ledger:
    """Return the counters of a process that has ended."""
    ledger = Ledger.from_snapshot(status.counters)
    ledger.at_receiver = 0
    if (left := ledger.imbalance) > 0:
        if status.role == WRITER:
            ledger.returned += left
        else:
            ledger.rejected["outcome_unknown"] += left
    return ledger


def _taken(status: Status) -> int:
    return status.ledger.received + status.ledger.delivered


def _sortable(name: str) -> tuple[str, int, str]:
    """Return a key that sorts `gateway-10` behind `gateway-2`."""
    word, _, number = name.rpartition("-")
    return word, int(number) if number.isdecimal() else 0, name
