"""The status of one process: counters, gauges and state as one JSON object, sent once a second.

A gateway or a writer sends it to the process that shows all of them (`ingest up`). It is sent at
full seconds, so that the figures of several processes are of the same moment.
Promises: an object has less than STATUS_BYTES_MAX bytes as JSON. Counters are complete in each, so
one that is lost does no harm. What a newer version adds is ignored.
Does not: send or receive; roles/supervisor/child.py does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from ingest import __version__
from ingest.admin.dashboard.tail import Observed, TailSample
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from ingest.model.ports import STATES, BufferStats, JournalStats
from ingest.system.clock import (
    monotonic_s,
    process_cpu_s,
    sleep_unless,
    unix_us,
)

STATUS_BYTES_MAX = 128 * 1024
MESSAGE_CHARACTERS_MAX = 500
NAME_CHARACTERS_MAX = 128
READINGS_MAX = 9  # of the live tail
REJECTED_MAX = 20  # devices
REFUSED_POSTS_MAX = 10
EARLY_S = 0.1


class StatusSource:
    """The status of this process. `role` is `gateway` or `writer`."""

    def __init__(self, role: str, own: Observed) -> None:
        self._role = role
        self._own = own
        self._refused_sent: dict[str, Any] | None = None  # the newest that was sent
        self._started_us = unix_us()

    async def run(self, send: Callable[[dict[str, Any]], object], stop: asyncio.Event) -> None:
        """Send the status at each full second until `stop` is set."""
        while True:
            send(self.status())
            pause_s = 1.0 - unix_us() / 1e6 % 1.0
            # A sleep may end a moment too early: that second has its status already.
            if await sleep_unless(stop, pause_s if pause_s > EARLY_S else pause_s + 1.0):
                return

    def status(self, *, final: bool = False) -> dict[str, Any]:
        """Return the status now; takes some 100 us. `final`: nothing is counted after it."""
        own = self._own
        _, ready = own.readyz()
        return {
            "role": self._role,
            "version": __version__,
            "pid": os.getpid(),
            "started_us": self._started_us,
            "sent_us": unix_us(),
            "final": final,
            "cpu_s": round(process_cpu_s(), 3),
            "memory_bytes": _memory_bytes(),
            "counters": own.ledger.snapshot(),
            "gauges": _gauges_sent(own.ledger.gauges) if own.ledger.gauges else None,
            "ready": orjson.loads(ready),
            "message": own.message()[:MESSAGE_CHARACTERS_MAX],
            "tail": _tail_sent(own.tail.take()),
            "refused_posts": self._new_refused_posts(),
        }

    def _new_refused_posts(self) -> list[dict[str, Any]]:
        listed = self._own.refused_posts()
        new = listed[: listed.index(self._refused_sent)] if self._refused_sent in listed else listed
        if listed:
            self._refused_sent = listed[0]
        return new[:REFUSED_POSTS_MAX]


def _memory_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        return 0


def _gauges_sent(gauges: Gauges) -> dict[str, Any]:
    buffer = gauges.buffer()._asdict()
    oldest_s = buffer.pop("oldest_received_s")
    return {
        "buffer": buffer,
        "oldest_age_s": None if oldest_s is None else round(monotonic_s() - oldest_s, 3),
        "dead_letters": gauges.dead_letters()._asdict(),
        "database_up": gauges.database_up(),
        "hold_reason": gauges.hold_reason(),
        "journal": gauges.journal()._asdict(),
        "state": gauges.state(),
        "figures": dict(gauges.figures()),
    }


def _tail_sent(sample: TailSample) -> dict[str, Any]:
    return {
        "posts": sample.posts,
        "readings": [
            [each.ts_us, each.device_id, each.metric, each.value]
            for each in sample.sampled[:READINGS_MAX]
        ],
        "rejected": [each[:NAME_CHARACTERS_MAX] for each in sample.rejected[:REJECTED_MAX]],
        "rejected_sampled": sample.rejected_sampled or len(sample.rejected) > REJECTED_MAX,
    }


def status_message(instance: str, status: Mapping[str, Any]) -> bytes:
    """Return the message with which a process that nobody leads tells its status to others."""
    return orjson.dumps({"instance": instance, "status": status})


def read_message(message: bytes) -> tuple[str, dict[str, Any]]:
    """Return name and status of such a message. Raises ValueError; the status is not checked."""
    try:
        said = orjson.loads(message)
        return str(said["instance"])[:NAME_CHARACTERS_MAX], dict(said["status"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no status: {type(error).__name__}: {error}") from error


class Status(NamedTuple):
    """The status of a process as it was read. The gauges of `ledger` stand still."""

    role: str
    version: str
    pid: int
    started_us: int
    sent_us: int
    final: bool
    cpu_s: float
    memory_bytes: int
    ledger: Ledger
    counters: Mapping[str, Any]  # those of `ledger`, as Ledger.add takes them
    state: str
    ready: Mapping[str, Any]  # the document of /readyz
    message: str
    tail: Mapping[str, Any]
    refused_posts: Sequence[Mapping[str, Any]]


def read_status(sent: Mapping[str, Any]) -> Status:
    """Return the status of an object that `StatusSource.status` made. Raises ValueError."""
    try:
        ledger = Ledger.from_snapshot(sent["counters"])
        ready = dict(sent["ready"])
        state = str(ready["state"])
        ledger.gauges = _gauges_read(sent["gauges"], state) if sent["gauges"] else None
        return Status(
            role=str(sent["role"]),
            version=str(sent["version"]),
            pid=int(sent["pid"]),
            started_us=int(sent["started_us"]),
            sent_us=int(sent["sent_us"]),
            final=bool(sent["final"]),
            cpu_s=float(sent["cpu_s"]),
            memory_bytes=int(sent["memory_bytes"]),
            ledger=ledger,
            counters=sent["counters"],
            state=state if state in STATES else "starting",
            ready=ready,
            message=str(sent["message"]),
            tail=dict(sent["tail"]),
            refused_posts=list(sent["refused_posts"]),
        )
    except (AttributeError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(f"no status of a process: {type(error).__name__}: {error}") from error


def _gauges_read(sent: Mapping[str, Any], state: str) -> Gauges:
    age_s = sent["oldest_age_s"]
    oldest_s = None if age_s is None else monotonic_s() - age_s
    buffer = BufferStats(**_known(BufferStats, sent["buffer"]), oldest_received_s=oldest_s)
    dead_letters = DeadLetterStats(**_known(DeadLetterStats, sent["dead_letters"]))
    journal = JournalStats(**_known(JournalStats, sent["journal"]))
    # What is no number was no number: JSON has no NaN.
    figures = {name: value for name, value in sent["figures"].items() if value is not None}
    return Gauges(
        buffer=lambda: buffer,
        dead_letters=lambda: dead_letters,
        database_up=lambda: sent["database_up"],
        hold_reason=lambda: sent["hold_reason"],
        journal=lambda: journal,
        state=lambda: state,
        figures=lambda: figures,
    )


def _known(kind: Any, sent: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sent.items() if name in kind._fields}
