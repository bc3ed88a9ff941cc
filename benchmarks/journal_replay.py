"""Replay of a large journal beside live posts: memory of the service, latency of the posts.

`python -m benchmarks.journal_replay --gib 5`: live single readings, open loop, on a service with an
empty journal. Then the same on a service that finds a journal of 5 GiB at its start, until all of
it is in the table; then once more. The service's own code writes the journal, without a database,
as an outage leaves it. Every row is counted at the end. It needs disk of some five times the
journal's size in TMPDIR. A phase is as long as the kernel keeps written pages (30 s): with phases
of 5 s, the moment when the kernel writes the database's pages is in one of six, and in no median.
Exit code 1 if a bound is not kept. Timings of a busy machine have no meaning.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.contenders import FIRST_US, PHASE_US
from benchmarks.database import count_rows
from benchmarks.machine import environment
from benchmarks.open_loop import Load, drive_openly
from benchmarks.processes import Broken, raise_open_files_limit, scratch
from benchmarks.service import Service
from benchmarks.wrk import READINGS
from ingest.buffers.journal.folder import JournalFolder
from ingest.model.block import Block
from ingest.model.rows import PG_EPOCH_US, encode_rows, names_between
from ingest.system.clock import unix_us

GIB, MIB = 1024**3, 1024**2
RSS_MIB_MAX = 400.0
P99_TIMES_MAX = 3.0
OVER_SHARE_MAX = 0.1  # of the phases may be over that: a shared disk is slow at times
DISK_TIMES = 5  # of the journal: the table, its key and the server's log beside it
ROWS = 100  # of a post
GROUP_POSTS = 200  # brought to the disk together
SEGMENT_BYTES = 64 * MIB
NEARLY_ALL = 0.02  # of the backlog is left: then a phase is no longer one beside a replay
PHASES_ALONE = 3
BACKLOG_US = FIRST_US - PHASE_US
NAMES = [names_between(f"3f2b8c1e-9d4a-4c55-8e0a-{at:012x}", "temperature") for at in range(ROWS)]
VALUES = [20.5 + at for at in range(ROWS)]
LAST_S_MAX = 600.0  # for the last NEARLY_ALL of the backlog


class Phase(NamedTuple):
    """One drive of live posts: latencies in ms, posts without a 2xx, backlog rows at its end."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    failed: int
    left_rows: float


def write_journal(
    folder: Path, *, size_bytes: int, segment_bytes: int = SEGMENT_BYTES
) -> tuple[int, int]:
    """Write the journal that a service leaves if it is killed in an outage; return rows and bytes.

    Posts of ROWS readings, a microsecond apart, from BACKLOG_US on. Every group is fsynced.
    """
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o755)
    store = JournalFolder(folder, segment_bytes=segment_bytes)
    store.open()
    posts = written = 0
    with contextlib.closing(store):
        while written < size_bytes:
            place = store.write([_post(posts + number) for number in range(GROUP_POSTS)])
            written += place.end - place.start
            posts += GROUP_POSTS
    return posts * ROWS, written


def _post(number: int) -> Block:
    first_us = BACKLOG_US + number * ROWS
    times_us = range(first_us, first_us + ROWS)
    rows = encode_rows([ts_us - PG_EPOCH_US for ts_us in times_us], NAMES, VALUES)
    block = Block(rows, ROWS, received_s=0, received_us=unix_us(), newest_ts_us=times_us[-1])
    block.sequence = number + 1
    return block


class Live:
    """Live posts on one service, phase by phase, every reading a new one."""

    def __init__(
        self, service: Service, rate_per_s: float, seconds: float, *, backlog_rows: int = 0
    ) -> None:
        self._service = service
        self._backlog_rows = backlog_rows
        self._load = Load(
            service.port, rate_per_s, seconds, FIRST_US, target=f"{READINGS}?ack=durable"
        )
        self._phase_us = int(2 * rate_per_s * seconds)
        self.taken = 0

    def phase(self) -> Phase:
        """Drive once. Raises Broken if the driver fails, not if posts are refused."""
        found = drive_openly(self._load)
        # PHASE_US is too much: hundreds of phases would end in the future, and be refused.
        self._load = self._load._replace(first_us=self._load.first_us + self._phase_us)
        self.taken += found.taken_rows
        samples = self._service.samples()
        scanned = samples["ingest_readings_recovered_total"] == self._backlog_rows
        left = samples["ingest_readings_held"] if scanned else float(self._backlog_rows)
        return Phase(found.p50_ms, found.p99_ms, found.max_ms, found.failed, left)


class Found(NamedTuple):
    """The result of a run; `rss_peak_mib` is of the service with the backlog, from start to end."""

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
        """Count the phases beside the replay with a p99 over P99_TIMES_MAX times the normal one."""
        bound_ms = P99_TIMES_MAX * _p99(self.before)
        return sum(each.p99_ms > bound_ms for each in self.beside)

    @property
    def faults(self) -> list[str]:
        """The bounds that were not kept, in words."""
        times, over, phases = self.p99_times, self.phases_over, len(self.beside)
        failed = sum(each.failed for each in (*self.before, *self.beside, *self.after))
        found = {
            f"RSS {self.rss_peak_mib:.0f} MiB is over {RSS_MIB_MAX:.0f} MiB": (
                self.rss_peak_mib > RSS_MIB_MAX
            ),
            f"p99 is {times:.1f} times normal, over {P99_TIMES_MAX:g}": times > P99_TIMES_MAX,
            f"{over} of {phases} phases had a p99 over that": (
                times <= P99_TIMES_MAX and over > OVER_SHARE_MAX * phases
            ),
            f"{failed} live posts were refused, lost or skipped": failed > 0,
        }
        return [text for text, is_fault in found.items() if is_fault]


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
        service.quiet(poll_s=0.1, within_s=LAST_S_MAX)
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
    """Drive during the replay of the backlog; return the phases that the replay fills."""
    phases: list[Phase] = []
    while not phases or phases[-1].left_rows > rows * NEARLY_ALL:
        phases.append(live.phase())
    return phases[:-1] or phases


def summary(found: Found) -> str:
    """Return the result as text."""
    lines = [
        f"journal       {found.journal_bytes / GIB:.2f} GiB, {found.backlog_rows:,} readings",
        f"replayed in   {found.replay_s:.0f} s, with live posts beside it: "
        f"{found.backlog_rows / found.replay_s:,.0f} readings/s",
        f"most memory   {found.rss_peak_mib:.0f} MiB (wanted: at most {RSS_MIB_MAX:.0f})",
        *(
            f"{name:<12}  p50 {statistics.median(each.p50_ms for each in phases):.2f} ms, "
            f"p99 {_p99(phases):.2f} ms (worst phase {max(each.p99_ms for each in phases):.2f}), "
            f"{len(phases)} phases"
            for name, phases in (
                ("live before", found.before),
                ("live beside", found.beside),
                ("live after", found.after),
            )
        ),
        f"p99           {found.p99_times:.2f} times normal (median phase; at most "
        f"{P99_TIMES_MAX:g}); over that: {found.phases_over} of {len(found.beside)} phases",
        *(f"NOT KEPT: {each}" for each in found.faults),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 0 if all bounds were kept."""
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
        print(summary(found))
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
