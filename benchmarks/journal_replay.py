"""Replay of a large journal beside live posts: its memory, and what it costs their latency.

`python -m benchmarks.journal_replay --gib 5`: live single readings, open loop, on a service with an
empty journal; then the same on one that has found a journal of 5 GiB, until that is in the table;
then once more when it is. The journal is written by the service's own code, with no database, as an
outage leaves it. Every row is counted at the end. Needs some five times the journal's size of disk
in TMPDIR. A phase is as long as the kernel keeps written pages (30 s): of phases of 5 s the moment
when it brings the database's to the disk is in one of six, and in no median. Exit code 1 if a bound
is not kept; timings of a busy machine say nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.contenders import FIRST_US, PHASE_US, count_rows
from benchmarks.machine import environment
from benchmarks.open_loop import Openly, drive_openly
from benchmarks.processes import Broken, raise_open_files_limit, scratch
from benchmarks.service import Service
from ingest.buffers.journal.folder import JournalFolder
from ingest.model.block import Block
from ingest.model.rows import encode_rows, names_between
from ingest.system.clock import unix_us

GIB, MIB = 1024**3, 1024**2
RSS_MIB_MAX = 400.0
P99_TIMES_MAX = 3.0
OVER_SHARE_MAX = 0.1  # of the phases may be over that: a disk that others use too stalls at times
DISK_TIMES = 5  # of the journal: the table, its key and the server's log beside it
ROWS = 100  # of a post
GROUP_POSTS = 200  # brought to the disk together
SEGMENT_BYTES = 64 * MIB
NEARLY_ALL = 0.02  # of the backlog is left: then a phase is no longer one beside a replay
PHASES_ALONE = 3
BACKLOG_US = FIRST_US - PHASE_US
STALLED_S_MAX = 120.0


class Phase(NamedTuple):
    """One drive of live posts: latencies in ms, posts that had no 2xx, backlog rows at its end."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    failed: int
    left_rows: float


def write_journal(
    folder: Path, *, size_bytes: int, segment_bytes: int = SEGMENT_BYTES
) -> tuple[int, int]:
    """Leave what a service that was killed during an outage leaves; return its rows and bytes.

    Posts of ROWS readings, a microsecond apart, from BACKLOG_US on. Every group is fsynced.
    """
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o755)
    store = JournalFolder(folder, segment_bytes=segment_bytes)
    store.open()
    posts = written = 0
    try:
        for group in _groups():
            if written >= size_bytes:
                break
            place = store.write(group)
            written += place.end - place.start
            posts += len(group)
    finally:
        store.close()
    return posts * ROWS, written


def _groups() -> Iterator[list[Block]]:
    ids = [f"3f2b8c1e-9d4a-4c55-8e0a-{number:012x}" for number in range(ROWS)]
    names = [names_between(each, "temperature") for each in ids]
    values = [20.5 + number for number in range(ROWS)]
    first_us, sequence = BACKLOG_US, 0
    while True:
        group: list[Block] = []
        for _ in range(GROUP_POSTS):
            times_us = range(first_us, first_us + ROWS)
            block = Block(
                encode_rows(times_us, names, values),
                ROWS,
                received_s=0,
                received_us=unix_us(),
                newest_ts_us=times_us[-1],
            )
            first_us, sequence = first_us + ROWS, sequence + 1
            block.sequence = sequence
            group.append(block)
        yield group


class Live:
    """Live posts on one service, phase by phase, every reading a new one."""

    def __init__(
        self, service: Service, rate_per_s: float, seconds: float, *, backlog_rows: int = 0
    ) -> None:
        self._service = service
        self._backlog_rows = backlog_rows
        self._rate_per_s = rate_per_s
        self._seconds = seconds
        self._next_us = FIRST_US
        self.taken = 0

    def phase(self) -> Phase:
        """Drive once. Raises Broken if the driver fails, not if posts are refused."""
        seen: Openly = drive_openly(
            self._service.port,
            self._rate_per_s,
            self._seconds,
            self._next_us,
            target="/v1/readings?ack=durable",
        )
        # Not a phase of the other benchmarks: hundreds of those end in the future, and are refused.
        self._next_us += int(2 * self._rate_per_s * self._seconds)
        self.taken += seen.taken_rows
        failed = seen.refused + seen.lost + seen.skipped
        samples = self._service.samples()
        scanned = samples["ingest_readings_recovered_total"] == self._backlog_rows
        left = samples["ingest_readings_held"] if scanned else float(self._backlog_rows)
        return Phase(seen.p50_ms, seen.p99_ms, seen.max_ms, failed, left)


class Found(NamedTuple):
    """What a run found; `rss_peak_mib` is of the service with the backlog, over all of its life."""

    journal_bytes: int
    backlog_rows: int
    replay_s: float
    rss_peak_mib: float
    before: list[Phase]
    beside: list[Phase]
    after: list[Phase]

    @property
    def p99_times(self) -> float:
        """The median p99 beside the replay, over that before it."""
        return _p99(self.beside) / _p99(self.before)

    @property
    def phases_over(self) -> int:
        """How many phases beside the replay had a p99 over P99_TIMES_MAX times the normal one."""
        bound_ms = P99_TIMES_MAX * _p99(self.before)
        return sum(each.p99_ms > bound_ms for each in self.beside)

    @property
    def faults(self) -> list[str]:
        """Which bounds were not kept."""
        faults = []
        if self.rss_peak_mib > RSS_MIB_MAX:
            faults.append(f"RSS {self.rss_peak_mib:.0f} MiB is over {RSS_MIB_MAX:.0f} MiB")
        if self.p99_times > P99_TIMES_MAX:
            faults.append(f"p99 is {self.p99_times:.1f} times normal, over {P99_TIMES_MAX:g}")
        elif self.phases_over > OVER_SHARE_MAX * len(self.beside):
            faults.append(f"{self.phases_over} of {len(self.beside)} phases had a p99 over that")
        failed = sum(each.failed for each in (*self.before, *self.beside, *self.after))
        if failed:
            faults.append(f"{failed} live posts were refused, lost or skipped")
        return faults


def _p99(phases: Sequence[Phase]) -> float:
    return statistics.median(each.p99_ms for each in phases)


def measure(folder: Path, *, size_bytes: int, rate_per_s: float, seconds: float) -> Found:
    """Run all of it in `folder`. Raises Broken if a row is missing or too many, or it stalls."""
    flags = ("--buffer", "journal", "--journal-bytes-max", str(4 * size_bytes + GIB))
    with Service(folder / "alone", *flags) as service:
        live = Live(service, rate_per_s, seconds)
        live.phase()  # warms it up
        before = [live.phase() for _ in range(PHASES_ALONE)]
        service.quiet()
    rows, written = write_journal(folder / "state" / "journal", size_bytes=size_bytes)
    began_s = time.monotonic()
    with Service(folder / "state", *flags) as service:
        live = Live(service, rate_per_s, seconds, backlog_rows=rows)
        beside = _beside(live, rows)
        _wait_replayed(service, rows)
        replay_s = time.monotonic() - began_s
        after = [live.phase() for _ in range(PHASES_ALONE)]
        samples = service.quiet()
        if samples["ingest_readings_recovered_total"] != rows:
            raise Broken(f"of {rows} rows {samples['ingest_readings_recovered_total']:.0f} came")
        if (there := count_rows(service.database_url)) != rows + live.taken:
            raise Broken(f"{rows} rows and {live.taken} live ones are {there} in the table")
        rss_mib = service.child.rss_peak_mib()
    return Found(written, rows, replay_s, rss_mib, before, beside, after)


def _beside(live: Live, rows: int) -> list[Phase]:
    """Drive while the backlog is being replayed; return the phases that were wholly beside it."""
    phases: list[Phase] = []
    while not phases or phases[-1].left_rows > rows * NEARLY_ALL:
        phases.append(live.phase())
    return phases[:-1] or phases


def _wait_replayed(service: Service, rows: int) -> None:
    seen, changed_s = -1.0, time.monotonic()
    while True:
        samples = service.samples()
        held = samples["ingest_readings_held"]
        if samples["ingest_readings_recovered_total"] == rows and not held:
            return
        if held != seen:
            seen, changed_s = held, time.monotonic()
        elif time.monotonic() - changed_s > STALLED_S_MAX:
            raise Broken(f"{held:.0f} readings are held and nothing moves")
        time.sleep(0.1)


def told(found: Found) -> str:
    """Return what a person reads."""
    lines = [
        f"journal       {found.journal_bytes / GIB:.2f} GiB, {found.backlog_rows:,} readings",
        f"replayed in   {found.replay_s:.0f} s, with live posts beside it: "
        f"{found.backlog_rows / found.replay_s:,.0f} readings/s",
        f"most memory   {found.rss_peak_mib:.0f} MiB (wanted: at most {RSS_MIB_MAX:.0f})",
    ]
    for name, phases in (
        ("live before", found.before),
        ("live beside", found.beside),
        ("live after", found.after),
    ):
        worst = max(each.p99_ms for each in phases)
        lines.append(
            f"{name:<12}  p50 {statistics.median(each.p50_ms for each in phases):.2f} ms, "
            f"p99 {_p99(phases):.2f} ms (worst phase {worst:.2f}), {len(phases)} phases"
        )
    lines.append(
        f"p99           {found.p99_times:.2f} times normal (median phase; at most "
        f"{P99_TIMES_MAX:g}); over that: {found.phases_over} of {len(found.beside)} phases"
    )
    return "\n".join([*lines, *(f"NOT KEPT: {each}" for each in found.faults)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say whether the bounds were kept."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.journal_replay", description=__doc__
    )
    parser.add_argument("--gib", type=float, default=5.0, help="size of the journal (5)")
    parser.add_argument("--rate", type=float, default=1_000.0, help="live posts a second (1,000)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a phase (30)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    chosen = parser.parse_args(arguments)
    size_bytes = int(chosen.gib * GIB)
    raise_open_files_limit()
    try:
        with scratch() as folder:
            if (free := shutil.disk_usage(folder).free) < DISK_TIMES * size_bytes:
                raise Broken(f"{free / GIB:.0f} GiB are free, {DISK_TIMES * chosen.gib:.0f} needed")
            found = measure(
                folder, size_bytes=size_bytes, rate_per_s=chosen.rate, seconds=chosen.seconds
            )
    except Broken as error:
        print(f"it broke: {error}", file=sys.stderr)
        return 2
    if chosen.json:
        phases = {
            name: [each._asdict() for each in getattr(found, name)]
            for name in ("before", "beside", "after")
        }
        record = {**found._asdict(), **phases, "p99_times": found.p99_times}
        print(json.dumps({**record, "faults": found.faults, "environment": environment()}))
    else:
        print(told(found))
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
