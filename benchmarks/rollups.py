"""`python -m benchmarks.rollups`: what rollups cost, beside half of the peak of posts of 100.

Two services take the same posts in turn, ROUNDS times: one has rollups, one has none. The rate is
half of the peak committed rate without rollups. Hours are short: each series has READINGS_AN_HOUR
in one, as many as with one reading every 10 s, and they end by the times of the readings. So
rollups are computed all the time. At the end they are compared with all readings. The p99 of one
phase is noise: while the server vacuums new rows, or writes a checkpoint, it is up to ten times
that of other phases, with rollups or without. So there is no such vacuum here, phases are short and
many, each service is first in every second round, and the median of the phases counts. Exit codes:
0 the CPU of PostgreSQL a reading is at most CPU_RATIO_MAX times that without rollups, the p99 of
posts at most twice, no rollup is wrong, and after the last post the rest is computed within
BEHIND_S_MAX; 1 it is not so.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import threading
import time
from contextlib import ExitStack
from typing import NamedTuple

import asyncpg

from benchmarks.contenders import JOURNAL, service_peak
from benchmarks.database import count_rows, execute
from benchmarks.open_loop import Load, drive_openly
from benchmarks.processes import Broken, scratch
from benchmarks.service import Service
from ingest.sinks.postgres.housekeeping import (
    registry,
    rollup_hours,
    rollup_late,
    rollup_tables,
    rollups,
)
from ingest.sinks.postgres.housekeeping.rollup_run import US, Run
from ingest.sinks.postgres.housekeeping.rollup_state import Progress
from ingest.sinks.postgres.housekeeping.rollup_tables import RollupSpans
from ingest.sinks.postgres.housekeeping.view import look_at
from ingest.sinks.postgres.target import TargetTable

ROWS, SERIES = 100, 100  # of a post: one reading of each series
READINGS_AN_HOUR = 360
ROUNDS = 8
SECONDS, WARM_S, PEAK_S = 5.0, 0.5, 5.0
PAUSE_S, SETTLE_S = 2.0, 3.0  # a run has many hours to compute, as in the service
CPU_RATIO_MAX = 1.4
BEHIND_S_MAX = 5.0
PHASE_US = 600_000_000
FLAGS = (*JOURNAL, "--housekeeping", "false")
SPANS = RollupSpans(hour_us=SERIES * READINGS_AN_HOUR, day_us=24 * SERIES * READINGS_AN_HOUR)
_NO_VACUUM = "alter table readings set (autovacuum_vacuum_insert_threshold = -1)"
_WRONG = """
with wanted as (
    select device_id, metric, date_bin($1::interval, ts, 'epoch') as hour, count(*), min(value),
           max(value), sum(value), (array_agg(value order by ts, value))[1] as first,
           (array_agg(value order by ts desc, value))[1] as last
    from readings where ts < $2::timestamptz group by 1, 2, 3)
select count(*) from wanted w full join readings_hourly h using (device_id, metric, hour)
where (w.count, w.min, w.max, w.first, w.last) is distinct from
      (h.count, h.min, h.max, h.first, h.last) or not abs(w.sum - h.sum) <= 1e-12 * abs(w.sum)"""


class _Run(Run):
    """An hour is over once a reading of a later one is stored."""

    async def closed_us(self) -> int:
        newest_us = await self.connection.fetchval(f"select {US.format('max(ts)')} from readings")
        return self.hour(newest_us or 0)


class Roller(threading.Thread):
    """Computes rollups until `stop`, with a pause between two runs."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._stopping = threading.Event()
        self._made = threading.Event()
        self.wrong = -1
        self.row_bytes = 0  # of an hour of a series, with its key
        self.behind_s = 0.0  # how long it took to compute the rest after the last post

    def begin(self) -> None:
        """Start, and return once the trigger is there."""
        self.start()
        if not self._made.wait(30):
            raise Broken("the tables of rollups were not made")

    def stop(self) -> None:
        """Compute what is left, compare, and end."""
        self._stopping.set()
        self.join()

    def run(self) -> None:
        """Run the loop."""
        asyncio.run(self._roll())

    async def _roll(self) -> None:
        connection = await asyncpg.connect(self._url, server_settings={"timezone": "UTC"})
        view = await look_at(connection, "readings", "none")
        target = TargetTable(schema=view.schema, table=view.name)
        name = await registry.make(connection, view.table)
        async with connection.transaction():
            await rollup_tables.make(connection, view.oid, target, SPANS)
        await connection.execute(rollups.SESSION)
        self._made.set()
        last, at = False, Progress()
        while not last:
            last, began_s = self._stopping.is_set(), time.monotonic()
            run = _Run(
                connection,
                view.oid,
                target,
                spans=SPANS,
                end_s=float("inf"),
                stopped=lambda: False,
                part_us=SPANS.hour_us,
            )
            run.registry, run.at = name, at
            await rollup_late.gather(run)
            await rollup_late.compute(run)
            await rollup_hours.compute_hours(run)
            await rollup_hours.compute_days(run)
            at = run.at
            self.behind_s = time.monotonic() - began_s
            await asyncio.sleep(0 if last else PAUSE_S)
        until = f"select to_timestamp({at.until_us or 0}::numeric / 1000000)"
        until_at = await connection.fetchval(until)
        hour = await connection.fetchval(f"select '{SPANS.hour_us} us'::interval")
        self.wrong = await connection.fetchval(_WRONG, hour, until_at)
        self.row_bytes = await connection.fetchval(
            "select pg_total_relation_size('readings_hourly') / greatest(count(*), 1) "
            "from readings_hourly"
        )
        await connection.close()


class Part(NamedTuple):
    """One round of one service: CPU of PostgreSQL in us a reading, and the p99 of posts."""

    cpu_us: float
    p99_ms: float


def measure(service: Service, rate_per_s: float, first_us: int) -> Part:
    """Post for SECONDS, until all is in the table, and in the rollups."""
    before, committed = service.cpu().postgres_s, service.committed()
    load = Load(service.port, rate_per_s, SECONDS, first_us, rows=ROWS, warm_s=WARM_S)
    found = drive_openly(load)
    if found.failed:
        raise Broken(f"not every post was taken: {found.statuses}")
    rows = service.quiet()["ingest_readings_committed_total"] - committed
    time.sleep(SETTLE_S)
    return Part(1e6 * (service.cpu().postgres_s - before) / rows, found.p99_ms)


def main() -> int:
    """Measure, print, and return the exit code."""
    start_us = int(time.time() * 1e6) + PHASE_US  # not late, whatever the posts' own pace is
    with scratch() as folder, ExitStack() as ending:
        plain = ending.enter_context(Service(folder / "plain", *FLAGS))
        rolled = ending.enter_context(Service(folder / "rolled", *FLAGS))
        for each in (plain, rolled):
            execute(each.database_url, _NO_VACUUM)
        peak = service_peak(plain, "hundreds", PEAK_S, start_us)["rows_per_s"] / ROWS
        service_peak(rolled, "hundreds", PEAK_S, start_us)
        roller = Roller(rolled.database_url)
        roller.begin()
        ending.callback(roller.stop)
        parts: dict[str, list[Part]] = {"without": [], "with": []}
        for number in range(1, ROUNDS + 1):
            first_us = start_us + number * PHASE_US
            both = [("without", plain), ("with", rolled)]
            for name, service in both if number % 2 else reversed(both):
                parts[name].append(measure(service, peak / 2, first_us))
        roller.stop()
        rows = count_rows(rolled.database_url)
    cpu = {name: statistics.median(each.cpu_us for each in found) for name, found in parts.items()}
    p99 = {name: statistics.median(each.p99_ms for each in found) for name, found in parts.items()}
    ratio = cpu["with"] / cpu["without"]
    print(f"half of the peak: {peak / 2:,.0f} posts of {ROWS} readings a second")
    print(
        f"PostgreSQL, us of CPU a reading: {cpu['without']:.2f} without, {cpu['with']:.2f} with "
        f"rollups: {ratio:.2f} times"
    )
    for name, found in parts.items():
        all_ms = sorted(part.p99_ms for part in found)
        print(
            f"p99 of posts {name} rollups: {p99[name]:.1f} ms ({all_ms[0]:.1f} to "
            f"{all_ms[-1]:.1f} in {ROUNDS} phases)"
        )
    print(
        f"after the last post the rest took {roller.behind_s:.1f} s; of the rollups of {rows:,} "
        f"readings {roller.wrong} differ; one has {roller.row_bytes} bytes"
    )
    good = ratio <= CPU_RATIO_MAX and p99["with"] <= 2 * p99["without"] and roller.wrong == 0
    good &= roller.behind_s <= BEHIND_S_MAX
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
