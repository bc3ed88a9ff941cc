"""A table for years: 100 M readings in day partitions, one device's day, retention beside posts.

`python -m benchmarks.years --rows 100000000`: the readings of 10,000 devices in the 30 days before
today are posted to a service (line protocol, `ack=committed`, so at the speed of the COPY). Then
the index for devices is made, and days of single devices are read by it. At last `ingest
housekeeping run --yes` archives and drops all but 7 days, while single readings of today are posted
with `ack=durable`. Count and checksum of the table and of the files together are compared with what
was sent; an independent sum of both kinds: SQL for the table, ours for the files. How many readings
a second are archived has no bound here, as the archive rests for the posts: benchmarks.archive
measures it alone.
It needs disk of some 300 bytes a reading in TMPDIR, and removes all of it. Exit code 1 if a bound
is not kept. Timings of a busy machine have no meaning.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import uvloop

from benchmarks import machine
from benchmarks.database import execute
from benchmarks.open_loop import OpenLoop
from benchmarks.processes import Broken, Child, raise_open_files_limit, scratch
from benchmarks.service import Service
from benchmarks.watched import Watched
from benchmarks.years_live import Live
from benchmarks.years_readings import DAY_S, DAYS, Plan
from benchmarks.years_table import DayRead, read_days, sizes, table_checksum
from ingest.archive import files
from ingest.archive.postgres_hash import Checksum

KEPT_DAYS = 7
LAST_MIN, DAY_MS_MAX, P99_TIMES_MAX, RSS_MB_MAX = 0.9, 10.0, 3.0, 300.0
DISK_BYTES = 300  # a reading: table, keys, log; then the files beside it
LOG_ROWS_MAX = 8_000_000  # of a table that is dropped: makes the server's log files
_FILLER = "create table filler as select at, repeat('x', 90) from generate_series(1, {}) at"
PHASES_BEFORE = 5  # the fill leaves writes behind: single ones had a p99 of a second
DAYS_DRAWN = 1_000


class Filled(NamedTuple):
    """The posting of the old readings: seconds, and committed rows a second of two tenths."""

    took_s: float
    first_per_s: float
    last_per_s: float
    statuses: dict[str, int]
    service_cores: float
    postgres_cores: float


def fill(service: Service, folder: Path, plan: Plan) -> Filled:
    """Post all old readings. Raises Broken if one of the posts is not answered with a 2xx."""
    execute(
        service.database_url,
        # Else the first tenth waits for new files of the server's log.
        _FILLER.format(min(plan.rows, LOG_ROWS_MAX)),
        "drop table filler",
        "checkpoint",
    )
    words = (service.port, plan.rows, plan.first_s * 1_000_000)
    command = [sys.executable, "-m", "benchmarks.years_readings", *map(str, words)]
    before, began_s = service.cpu(), time.monotonic()
    seen = [(began_s, 0.0)]
    child = Child("years_readings", command, folder)
    try:
        while child.running:
            seen.append((time.monotonic(), service.committed()))
            time.sleep(0.2)
    finally:
        child.stop()
    service.quiet(poll_s=0.1, within_s=600)
    seen.append((time.monotonic(), service.committed()))
    after = service.cpu()
    try:
        sent = json.loads(child.output())
    except ValueError:
        raise Broken(f"the readings were not sent: {child.output()}") from None
    if seen[-1][1] != plan.rows:
        raise Broken(f"{seen[-1][1]:,.0f} of {plan.rows:,} readings were committed: {sent}")
    at_s = [_moment(seen, share * plan.rows) for share in (0.0, 0.1, 0.9, 1.0)]
    took_s = at_s[3] - at_s[0]
    return Filled(
        took_s,
        0.1 * plan.rows / (at_s[1] - at_s[0]),
        0.1 * plan.rows / (at_s[3] - at_s[2]),
        sent["statuses"],
        (after.service_s - before.service_s) / took_s,
        (after.postgres_s - before.postgres_s) / took_s,
    )


def _moment(seen: Sequence[tuple[float, float]], rows: float) -> float:
    """Return when so many rows were committed, between two samples by a straight line."""
    last = max(at for at, (_, there) in enumerate(seen) if there <= rows)
    (from_s, low) = seen[last]
    following = [each for each in seen[last:] if each[1] > low]
    if rows == low or not following:  # the first moment at which there were so many
        return min(at_s for at_s, there in seen if there == low) if rows else from_s
    to_s, high = following[0]
    return from_s + (to_s - from_s) * (rows - low) / (high - low)


class Retention(NamedTuple):
    """The run of the housekeeping: what it did, and the phases of live posts beside it."""

    partitions: int
    took_s: float
    rss_mb: float
    run_cores: float
    beside: list[OpenLoop]


def retain(service: Service, folder: Path, live: Live) -> Retention:
    """Let all but KEPT_DAYS leave, beside live posts. Raises Broken if a step failed."""
    command: list[str | Path] = [
        *(sys.executable, "-m", "ingest", "housekeeping", "run", "--yes", "--json"),
        *("--state-dir", service.folder, "--partition-span", "day"),
        *("--keep-hot", f"{KEPT_DAYS}d", "--archive-dir", folder / "archive"),
    ]
    beside: list[OpenLoop] = []
    with Watched(Child("housekeeping", command, folder)) as run:
        while not run.ended:
            beside.append(live.phase())
    output = run.child.output(1 << 20)
    try:
        did = json.loads(output)["did"]
    except ValueError:
        raise Broken(f"the housekeeping did not run: {output}") from None
    if wrong := [each for each in did if each["error"]]:
        raise Broken(f"{len(wrong)} steps failed: {wrong[0]}")
    archived = sum(each["kind"] == "archive" for each in did)
    # The last phase is only in part beside the run.
    phases = beside[:-1] or beside
    took_s = run.took_s
    return Retention(archived, took_s, run.rss_peak_mib * 1024**2 / 1e6, run.cpu_s / took_s, phases)


class Run(NamedTuple):
    """All that was measured; `sent` is the checksum of all readings, `hot` and `cold` of those
    that are in the table and in the files. The sizes are bytes of the table before the index for
    devices, and with it.
    """

    plan: Plan
    filled: Filled
    bare: asyncpg.Record
    indexed: asyncpg.Record
    days: DayRead
    before: list[OpenLoop]
    retained: Retention
    after: OpenLoop
    live_rows: int
    stolen: list[float]  # of all phases, the first of which only warms it up
    sent: Checksum
    hot: Checksum
    cold: Checksum
    cold_bytes: int
    service_rss_mib: float


def measure(folder: Path, *, rows: int, rate_per_s: float, seconds: float) -> Run:
    """Run all of it in `folder`. Raises Broken if it stalls."""
    today_s = int(time.time()) // DAY_S * DAY_S
    plan = Plan(rows, (today_s - DAYS * DAY_S) * 1_000_000)
    flags = ("--buffer", "journal", "--partition-span", "day", "--housekeeping", "false")
    with Service(folder / "state", *flags) as service:
        url = service.database_url
        filled = fill(service, folder, plan)
        _tell(f"filled: {filled}")
        bare = uvloop.run(sizes(url))
        days = uvloop.run(read_days(url, plan, DAYS_DRAWN))
        _tell(f"days: {days}")
        indexed = uvloop.run(sizes(url))
        live = Live(service, rate_per_s, seconds)
        live.phase()  # warms it up
        before = [live.phase() for _ in range(PHASES_BEFORE)]
        retained = retain(service, folder, live)
        _tell(f"retained: {retained}")
        after = live.phase()
        service.quiet()
        hot = uvloop.run(table_checksum(url))
        rss_mib = service.child.rss_peak_mib()
    paths = sorted((folder / "archive").glob("*.parquet"))
    cold = files.checksum_of_files(paths, lambda: None)
    cold_bytes = sum(each.stat().st_size for each in paths)
    sent = plan.checksum().plus(live.sent)
    return Run(
        *(plan, filled, bare, indexed, days, before, retained, after),
        *(live.sent.rows, live.stolen, sent, hot, cold, cold_bytes, rss_mib),
    )


def figures_of(run: Run) -> dict[str, Any]:
    """Return the figures for the record."""
    rows, retained = run.plan.rows, run.retained
    phases = {"before": run.before, "beside": retained.beside, "after": [run.after]}
    return {
        "rows": rows,
        "filled": run.filled._asdict(),
        "last_of_first": run.filled.last_per_s / run.filled.first_per_s,
        "heap_bytes": run.bare["heap"] / rows,
        "key_bytes": run.bare["keys"] / rows,
        "index_bytes": (run.indexed["keys"] - run.bare["keys"]) / rows,
        "day": run.days._asdict(),
        "live_rows": run.live_rows,
        "p50_ms": {name: [each.p50_ms for each in found] for name, found in phases.items()},
        "p99_ms": {name: [each.p99_ms for each in found] for name, found in phases.items()},
        "stolen_cpu": run.stolen,
        "p99_times": _p99(retained.beside) / _p99(run.before),
        "failed": sum(each.failed for found in phases.values() for each in found),
        "retention": {**retained._asdict(), "beside": len(retained.beside)},
        "archived_rows": run.cold.rows,
        "archived_per_s": run.cold.rows / retained.took_s,
        "archive_bytes": run.cold_bytes / max(1, run.cold.rows),
        "hot_rows": run.hot.rows,
        "missing_rows": run.sent.rows - run.hot.rows - run.cold.rows,
        "is_same": run.hot.plus(run.cold) == run.sent,
        "service_rss_mib": run.service_rss_mib,
    }


def _p99(phases: Sequence[OpenLoop]) -> float:
    return statistics.median(each.p99_ms for each in phases)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def faults_of(found: dict[str, Any]) -> list[str]:
    """Return the bounds that were not kept, in words."""
    day, run = found["day"], found["retention"]
    wrong = {
        f"the last tenth had {found['last_of_first']:.2f} of the rate of the first": (
            found["last_of_first"] < LAST_MIN
        ),
        f"a day of a device took {day['p99_ms']:.1f} ms": day["p99_ms"] >= DAY_MS_MAX,
        f"{found['missing_rows']} readings are lost, or there twice (below 0); the same checksum: "
        f"{found['is_same']}": not found["is_same"],
        f"{found['failed']} live posts were refused, lost or skipped": found["failed"] > 0,
        f"p99 beside it is {found['p99_times']:.1f} times normal": (
            found["p99_times"] > P99_TIMES_MAX
        ),
        f"the run needed {run['rss_mb']:.0f} MB": run["rss_mb"] > RSS_MB_MAX,
    }
    return [text for text, is_fault in wrong.items() if is_fault]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 0 if all bounds were kept."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.years", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--rows", type=int, default=2_000_000, help="old readings (2,000,000)")
    parser.add_argument("--rate", type=float, default=2_000.0, help="live posts a second (2,000)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a phase of them (30)")
    parser.add_argument("--write", type=Path, help="file that gets the figures as a line")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so the folder is removed
    raise_open_files_limit()
    try:
        with scratch() as folder:
            free = shutil.disk_usage(folder).free
            if free < DISK_BYTES * chosen.rows:
                raise Broken(f"{free / 1e9:.0f} GB are free: too few for {chosen.rows:,} readings")
            run = measure(folder, rows=chosen.rows, rate_per_s=chosen.rate, seconds=chosen.seconds)
    except Broken as error:
        print(f"it broke: {error}", file=sys.stderr)
        return 2
    found = figures_of(run)
    faults = faults_of(found)
    line = {
        "at": machine.now(),
        "commit": machine.commit(),
        **found,
        "faults": faults,
        "environment": machine.environment(),
    }
    if chosen.write:
        with chosen.write.open("a") as file:
            file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=2))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
