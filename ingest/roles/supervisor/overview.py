"""All processes as one: their statuses, their sum, and their state, for /readyz and the page.

The port of `ingest up` and that of a writer show it.
Promises: what a process sends cannot break it; a status that is not readable is left out, and
logged now and then. The state is the worst one of the gateways that run, since 1 of 4 gateways that
refuses posts refuses a quarter of them. While a process is replaced it keeps its state: posts wait
in the socket. Writers cannot refuse posts: what keeps them from writing is the cause, and `on_hold`
the state. If no gateway reports and this process knows why (no broker brings it), it says that.
Does not: know how statuses come, or which processes there should be; or decide for a gateway: each
has its own health.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ingest.admin.dashboard.pages import Dashboard
from ingest.admin.dashboard.tail import Observed, Tail
from ingest.app import space
from ingest.app.health import UNREADY, Judged
from ingest.app.metrics_and_causes import rank_of
from ingest.app.space import WAITS_S_MIN, Fill, Forecast
from ingest.config.settings import Settings
from ingest.model.causes import Trouble
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger, figures_of
from ingest.model.ports import STATES, BufferStats
from ingest.roles.broker_state import INSTANCE_AWAY
from ingest.roles.nats.protocol import Message
from ingest.roles.status import read_message, read_status
from ingest.roles.supervisor.instances import GATEWAY, WRITER, Instance, Instances
from ingest.system.clock import monotonic_s, rfc3339_s
from ingest.system.logs import Occasionally, get_logger

STREAM_S_MIN = 20.0  # samples of less say nothing about the rate of the stream
UNHEARD = Trouble("starting", "no gateway has reported its state yet", state="starting")
# From the best to the worst. Who starts or stops does so on purpose, and soon does not any more.
_WORST = ("accepting", "slowed", "on_hold", "starting", "draining")
LATE_S = 0.5  # a tick comes so long after the full second, at which the processes send
EMPTY = BufferStats(0, 0, 0, 0, 0, 0, 0, None)


class Overview(Judged):
    """The processes that this one shows, and their common health.

    `free_bytes` returns the free space of the state folder, and may raise OSError; None: it has no
    folder. `advice` are the words of the next steps. `unheard` returns why no process can be heard
    now, or nothing. `forget_s`: see Instances.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        dead_letters: Callable[[], DeadLetterStats],
        free_bytes: Callable[[], int] | None,
        advice: Mapping[str, str],
        unheard: Callable[[], Trouble] = Trouble,
        forget_s: float = math.inf,
    ) -> None:
        super().__init__(advice, UNHEARD)
        self._dead_letters = dead_letters
        self._free_bytes = free_bytes
        self._unheard = unheard
        self._log = get_logger("admin")
        self._occasionally = Occasionally(60.0)
        self._fill = Fill(settings, has_folder=free_bytes is not None)
        self._stream = Forecast(span_s_min=STREAM_S_MIN)
        self._stream_bytes_max = 0.0
        own = figures_of((space.METRICS, lambda: self._fill))
        self.own = Ledger()  # of this process, for what it counts itself
        self.own.gauges = Gauges(
            buffer=lambda: EMPTY,
            dead_letters=dead_letters,
            database_up=lambda: None,
            hold_reason=lambda: None,
            state=self.state,
            figures=lambda: {**own(), **self.instances.losses()},
        )
        self._tail = Tail()
        self.instances = Instances(self.own, forget_s=forget_s)
        self.observed = Observed(
            self.instances.ledger,
            self.readyz,
            self._tail,
            self.instances.message,
            self.instances.refused_posts,
        )

    def status(self, instance: str, blob: Mapping[str, Any]) -> None:
        """Take the status of a process, which StatusSource has made. Never fails."""
        try:
            status = read_status(blob)
            self._tail.add(status.tail)
            self.instances.heard(instance, status)
        except ValueError as error:
            if (left_out := self._occasionally.due("status")) is not None:
                self._log.error(
                    "status_not_read",
                    instance=instance[:100],
                    why=str(error)[:200],
                    similar_suppressed=left_out,
                )

    def hear(self, own: str, message: Message) -> None:
        """Take what a process that nobody leads has told the others, of which one is `own`."""
        try:
            instance, status = read_message(message.data)
        except ValueError:
            instance, status = "", {}  # which is logged as one that cannot be read
        if instance != own:
            self.status(instance, status)

    def release_hold(
        self, tell: Callable[[str, dict[str, Any]], object], dead_letter: bool
    ) -> bool:
        """Tell all writers that wait to try at once; return whether there are any.

        `tell` sends a message to the process with this name.
        """
        waiting = [
            each
            for each in self.instances.of(WRITER)
            if each.runs
            and (gauges := each.status.ledger.gauges) is not None
            and (gauges.database_up() is False or gauges.hold_reason() is not None)
        ]
        for each in waiting:
            tell(each.name, {"do": "release_hold", "dead_letter": dead_letter})
        return bool(waiting)

    async def show(self, dashboard: Dashboard, stop: asyncio.Event) -> None:
        """Update the page each second until `stop` is set."""
        await dashboard.run(stop, late_s=LATE_S, before=self.tick)

    def tick(self) -> None:
        """Add all up; once a second, some time after the statuses have come."""
        try:
            free_bytes = None if self._free_bytes is None else self._free_bytes()
        except OSError:
            free_bytes = 0
        self.instances.refresh()
        self.look()
        self._fill.tick(self.instances.buffer(), self._dead_letters(), free_bytes)
        figures = self.instances.broker()
        self._stream_bytes_max = _number(figures.get("stream_bytes_max"))
        if _number(figures.get("stream_oldest_age_seconds")) < WAITS_S_MIN:
            self._stream.restart()  # it also grows while all is stored, until the next purge
        else:
            self._stream.sample(monotonic_s(), _number(figures.get("stream_bytes")))

    # Their state

    def figures(self) -> dict[str, Any]:
        """Return what is said of Health, over all gateways, and each process."""
        return {
            "full_in_s": self._full_in_s(),
            "refused_60s": self._summed("refused_60s"),
            "closed_60s": self._summed("closed_60s"),
            "instances": [_described(each) for each in self.instances],
        }

    def judge(self) -> Trouble:
        """Return the worst state of the gateways that run, and its cause."""
        running = [each for each in self.instances.of(GATEWAY) if each.runs or each.restarts]
        if not running:
            if (deaf := self._unheard()).cause:
                return deaf
            unknown = Trouble(INSTANCE_AWAY, "no gateway reports its state", state="starting")
            return unknown if self.instances.of(GATEWAY) else UNHEARD
        worst = max(running, key=_badness)
        if worst.serving.state in UNREADY:
            return _of_gateway(worst, running)
        of_writers, state = self._of_writers(), worst.serving.state
        if of_writers.state == "on_hold":
            return of_writers
        found = [of_writers._replace(state=state), _said(worst)]
        if away := [each for each in self.instances if not (each.runs or each.restarts)]:
            why = f"{_names(away)} does not report its state"
            found.append(Trouble(INSTANCE_AWAY, why, state=state))
        return min(found, key=lambda each: rank_of(each.cause))

    def _of_writers(self) -> Trouble:
        """Return what keeps readings from being stored."""
        running = [each for each in self.instances.of(WRITER) if each.runs or each.restarts]
        if not running:
            why = "no writer runs; the stream keeps readings"
            return Trouble(INSTANCE_AWAY, why, state="accepting")
        # One that starts on hold is `starting`.
        paused = [
            each
            for each in running
            if (gauges := each.serving.ledger.gauges) and gauges.hold_reason() is not None
        ]
        said = (_said(each) for each in (*paused, *running))
        first = next((each for each in said if each.cause not in {"", "starting"}), Trouble())
        return first._replace(state="on_hold" if paused else "accepting")

    def _full_in_s(self) -> dict[str, int | None]:
        ours = {what: left for what, left in self._fill.full_in_s().items() if what != "journal"}
        return {"stream": self._stream.full_in_s(self._stream_bytes_max), **ours}

    def _summed(self, field: str) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for each in self.instances.of(GATEWAY):
            if each.runs and isinstance(counts := each.serving.ready.get(field), dict):
                sums.update(counts)
        return dict(sums)


def _of_gateway(worst: Instance, running: list[Instance]) -> Trouble:
    refusing = [each for each in running if each.serving.state in UNREADY]
    said = _said(worst)
    if len(refusing) == len(running):
        return said
    return said._replace(words=f"{_names(refusing)} of {len(running)} gateways: {said.words}")


def _said(instance: Instance) -> Trouble:
    state, ready = instance.serving.state, instance.serving.ready
    return Trouble(str(ready.get("cause") or ""), str(ready.get("reason") or ""), state=state)


def _badness(gateway: Instance) -> tuple[int, float]:
    cause, _, _, state = _said(gateway)
    place = _WORST.index(state) if state in _WORST else len(_WORST) + STATES.index(state)
    return place, -rank_of(cause)


def _names(instances: list[Instance]) -> str:
    return ", ".join(each.name for each in instances)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _described(instance: Instance) -> dict[str, Any]:
    """Return one process for /readyz and for the page."""
    status = instance.status
    cause, reason, _, _ = _said(instance)
    return {
        "instance": instance.name,
        "role": status.role,
        "runs": instance.runs,
        "state": status.state,
        "refusing": status.role == GATEWAY and status.state in UNREADY,
        "cause": cause,
        "reason": reason,
        "version": status.version,
        "pid": status.pid,
        "started": rfc3339_s(status.started_us),
        "silent_s": round(instance.silent_s, 1),
        "readings_per_s": round(instance.per_s, 1),
        "held": status.ledger.held,
        "cpu": round(instance.cpu, 3),
        "memory_bytes": status.memory_bytes,
    }
