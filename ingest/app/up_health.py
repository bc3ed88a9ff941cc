"""Whether the processes of `ingest up` can take readings now: one /readyz for all of them.

Promises: the state is the worst one of the gateways that run, since 1 of 4 gateways that refuses
posts refuses a quarter of them. While a process is replaced it keeps its state: posts wait in the
socket. Writers cannot refuse posts: what keeps them from writing is the
cause, and `on_hold` the state. Each process is listed with its own state.
Does not: decide for a gateway; each has its own health.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from ingest.app.causes import INSTANCE_AWAY, cause_of, next_step, rank_of
from ingest.app.fill import WAITS_S_MIN, Fill
from ingest.app.forecast import Forecast
from ingest.app.health import UNREADY
from ingest.app.instances import GATEWAY, WRITER, Instance, Instances
from ingest.model.ledger import DeadLetterStats
from ingest.model.ports import STATES
from ingest.system.clock import monotonic_s, rfc3339, unix_us

STREAM_S_MIN = 20.0  # samples of less say nothing about the rate of the stream
# From the best to the worst. Who starts or stops does so on purpose, and soon does not any more.
_WORST = ("accepting", "slowed", "on_hold", "starting", "draining")


class Judged(NamedTuple):
    """The state of all processes together, and its cause."""

    state: str
    cause: str = ""
    reason: str = ""


class UpHealth:
    """The health of all processes. `advice` are the words of the next steps, as for Health.

    `fill` has the forecasts of the dead letters and of the disk.
    """

    def __init__(self, instances: Instances, fill: Fill, advice: Mapping[str, str]) -> None:
        self._instances = instances
        self._fill = fill
        self._advice = advice
        self._stream = Forecast(span_s_min=STREAM_S_MIN)
        self._bytes_max = 0.0
        self._draining = False
        self._now = Judged("starting", "starting", "no gateway has reported its state yet")
        self._since_us = self._cause_since_us = unix_us()

    def draining(self) -> None:
        """Note that all processes stop."""
        self._draining = True

    def tick(self, letters: DeadLetterStats, disk_free_bytes: int | None) -> None:
        """Take samples for the forecasts; once a second."""
        self._refresh()
        self._fill.tick(self._instances.buffer(), letters, disk_free_bytes)
        figures = self._instances.broker()
        now_s = monotonic_s()
        self._bytes_max = _number(figures.get("stream_bytes_max"))
        if _number(figures.get("stream_oldest_age_seconds")) < WAITS_S_MIN:
            self._stream.restart()  # it also grows while all is stored, until the next purge
        else:
            self._stream.sample(now_s, _number(figures.get("stream_bytes")))

    def state(self) -> str:
        """Return the state now, one of STATES."""
        self._refresh()
        return self._now.state

    def readyz(self) -> tuple[int, bytes]:
        """Return the HTTP status and the JSON document of /readyz."""
        self._refresh()
        state, cause, reason = self._now
        document = {
            "state": state,
            "reason": reason,
            "since": rfc3339(self._since_us),
            "refusing": state in UNREADY,
            "cause": cause,
            "cause_since": rfc3339(self._cause_since_us) if cause else None,
            "runbook": cause_of(cause).runbook if cause else "",
            "full_in_s": self._full_in_s(),
            "refused_60s": self._summed("refused_60s"),
            "closed_60s": self._summed("closed_60s"),
            "next": next_step(cause, self._advice),
            "instances": [described(each) for each in self._instances],
        }
        return 503 if state in UNREADY else 200, orjson.dumps(document)

    def in_words(self) -> str:
        """Return the state and its reason as a text for a process manager."""
        self._refresh()
        return ": ".join(filter(None, (self._now.state, self._now.reason)))

    def _refresh(self) -> None:
        was, self._now = self._now, self._verdict()
        if self._now.state != was.state:
            self._since_us = unix_us()
        if self._now.cause != was.cause:
            self._cause_since_us = unix_us()

    def _verdict(self) -> Judged:
        if self._draining:
            return Judged("draining", "draining", cause_of("draining").words)
        running = [each for each in self._instances.of(GATEWAY) if each.runs or each.restarts]
        if not running:
            return self._without_gateway()
        worst = max(running, key=_badness)
        if worst.serving.state in UNREADY:
            return _of_gateway(worst, running)
        of_writers, state = self._of_writers(), worst.serving.state
        if of_writers.state == "on_hold":
            return of_writers
        found = [of_writers._replace(state=state), Judged(state, *_cause(worst))]
        if away := [each for each in self._instances if not (each.runs or each.restarts)]:
            why = f"{_names(away)} does not report its state"
            found.append(Judged(state, INSTANCE_AWAY, why))
        return min(found, key=lambda each: rank_of(each.cause))

    def _without_gateway(self) -> Judged:
        if self._instances.of(GATEWAY):
            return Judged("starting", INSTANCE_AWAY, "no gateway reports its state")
        return Judged("starting", "starting", "no gateway has reported its state yet")

    def _of_writers(self) -> Judged:
        """Return what keeps readings from being stored."""
        running = [each for each in self._instances.of(WRITER) if each.runs or each.restarts]
        if not running:
            return Judged("accepting", INSTANCE_AWAY, "no writer runs; the stream keeps readings")
        paused = [each for each in running if each.serving.state == "on_hold"]
        for each in (*paused, *running):
            cause, reason = _cause(each)
            if cause and cause != "starting":
                return Judged("on_hold" if paused else "accepting", cause, reason)
        return Judged("on_hold" if paused else "accepting")

    def _full_in_s(self) -> dict[str, int | None]:
        ours = {what: left for what, left in self._fill.full_in_s().items() if what != "journal"}
        return {"stream": self._stream.full_in_s(self._bytes_max), **ours}

    def _summed(self, field: str) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for each in self._instances.of(GATEWAY):
            if each.runs and isinstance(counts := each.serving.ready.get(field), dict):
                sums.update(counts)
        return dict(sums)


def _of_gateway(worst: Instance, running: list[Instance]) -> Judged:
    refusing = [each for each in running if each.serving.state in UNREADY]
    cause, reason = _cause(worst)
    if len(refusing) < len(running):
        reason = f"{_names(refusing)} of {len(running)} gateways: {reason}"
    return Judged(worst.serving.state, cause, reason)


def _cause(instance: Instance) -> tuple[str, str]:
    ready = instance.serving.ready
    return str(ready.get("cause") or ""), str(ready.get("reason") or "")


def _badness(gateway: Instance) -> tuple[int, float]:
    state, (cause, _) = gateway.serving.state, _cause(gateway)
    place = _WORST.index(state) if state in _WORST else len(_WORST) + STATES.index(state)
    return place, -rank_of(cause)


def _names(instances: list[Instance]) -> str:
    return ", ".join(each.name for each in instances)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def described(instance: Instance) -> dict[str, Any]:
    """Return one process for /readyz and for the page."""
    status = instance.status
    cause, reason = _cause(instance)
    return {
        "instance": instance.name,
        "role": status.role,
        "runs": instance.runs,
        "state": status.state,
        "refusing": status.state in UNREADY,
        "cause": cause,
        "reason": reason,
        "version": status.version,
        "pid": status.pid,
        "started": status.started,
        "silent_s": round(instance.silent_s, 1),
        "readings_per_s": round(instance.per_s, 1),
        "held": status.ledger.held,
        "cpu": round(instance.cpu, 3),
        "memory_bytes": status.memory_bytes,
    }
