"""A database that cannot keep up, and what the service does then.

The line to the database is slowed to a quarter; then more is offered than it takes, open loop.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

import asyncpg
import uvloop

from benchmarks import floors, wrk
from benchmarks.contenders import (
    FIRST_US,
    PHASE_US,
    WARM_S,
    WARM_US,
    Contender,
    Figures,
    Plan,
    count_rows,
    running_service,
    service_peak,
)
from benchmarks.open_loop import Openly, drive_openly, first_us_of_taken
from benchmarks.processes import Broken, Child, accepts, free_port, scratch
from benchmarks.service import Service
from ingest.sinks.postgres.schema import TABLE

ROW_BYTES = 55  # a reading of the wrk scripts as binary COPY
SLOWED_TO = 0.25
BUFFER_S = 1.0  # what the buffer holds, so that all is written soon after
MANY_CONNECTIONS = 5_000  # a post that waits for room must not keep others waiting
FIRST_FLOOD_S, FLOOD_S_MIN = 3.0, 3.0  # a batch of single readings takes most of a second
WATCHES_PER_S = 20


@contextmanager
def slowed_service(url: str, bytes_per_s: float, *flags: str) -> Iterator[Service]:
    """Give a service on a slow line to the database of another one."""
    query = parse_qs(urlsplit(url).query)
    path = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
    with scratch() as folder, ExitStack() as ending:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.slow_line", str(port), path]
        line = Child("slow_line", [*command, f"{bytes_per_s:.0f}"], folder)
        ending.callback(line.stop)
        line.wait_until(partial(accepts, port))
        slow_url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        yield ending.enter_context(Service(folder / "state", "--database-url", slow_url, *flags))


class Watch:
    """Notes WATCHES_PER_S times a second what a service has committed, beside all else."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._seen: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(1 / WATCHES_PER_S):
            self._seen.append((time.monotonic(), self._service.committed()))

    def rate(self, from_s: float, to_s: float) -> float:
        """Return rows committed a second, from the first commit in that time to the last one.

        A slow line takes a large batch for some tenths of a second: whole steps are counted, not
        what happens to fall between two moments. Raises Broken if there were fewer than two.
        """
        within = [each for each in self._seen if from_s <= each[0] <= to_s]
        steps = [new for old, new in pairwise(within) if new[1] > old[1]]
        if len(steps) < 2:
            raise Broken(f"only {len(steps)} commits were seen in {to_s - from_s:.1f} s")
        (first_s, first_rows), (last_s, last_rows) = steps[0], steps[-1]
        return (last_rows - first_rows) / (last_s - first_s)


class Flood(NamedTuple):
    """What a service did while it was offered more than it can store."""

    committed_per_s: float
    seen: Openly
    taken_us: list[int]  # the first timestamp of each post with a 2xx
    rss_mib: float
    cpu_cores: float


def flood(service: Service, rate_per_s: float, seconds: float, phase: int, rows: int) -> Flood:
    """Offer so many posts a second; return what was committed a second meanwhile."""
    cpu_s = service.child.cpu_s()
    first_us = FIRST_US + phase * PHASE_US
    taken_to = service.folder / "taken"
    with Watch(service) as watch:
        seen = drive_openly(
            service.port,
            rate_per_s,
            seconds,
            first_us,
            rows=rows,
            connections=MANY_CONNECTIONS,
            taken_to=taken_to,
        )
    committed_per_s = watch.rate(seen.began_s, seen.began_s + seconds)
    cpu_cores = (service.child.cpu_s() - cpu_s) / (time.monotonic() - seen.began_s)
    taken_us = first_us_of_taken(taken_to, first_us, rows)
    return Flood(committed_per_s, seen, taken_us, service.rss_mib(), cpu_cores)


def missing_rows(url: str, first_us: Sequence[int], rows: int) -> int:
    """Return how many of the timestamps, `rows` from each of `first_us` on, are in no row.

    Looked for one by one: a count would be made good by posts that were stored without an answer.
    """

    async def ask() -> int:
        line = await asyncpg.connect(url)
        try:
            return int(
                await line.fetchval(
                    f"select count(*) from unnest($1::bigint[]) us, generate_series(0, $2 - 1) row "
                    f"where not exists (select from {TABLE} where "
                    "ts = timestamptz 'epoch' + (us + row) * interval '1 microsecond')",
                    first_us,
                    rows,
                )
            )
        finally:
            await line.close()

    return uvloop.run(ask())


def rows_between(url: str, first_us: int, end_us: int) -> int:
    """Return how many rows there are from one timestamp up to another one."""

    async def ask() -> int:
        line = await asyncpg.connect(url)
        try:
            return int(
                await line.fetchval(
                    f"select count(*) from {TABLE} "
                    "where ts >= timestamptz 'epoch' + $1::bigint * interval '1 microsecond' "
                    "and ts < timestamptz 'epoch' + $2::bigint * interval '1 microsecond'",
                    first_us,
                    end_us,
                )
            )
        finally:
            await line.close()

    return uvloop.run(ask())


def lost_rows(url: str, closed: Mapping[int, int], floods: Sequence[Flood], rows: int) -> int:
    """Return how many readings with a 2xx are not in the table.

    `closed`: what wrk's drives were told is kept, in readings by their first timestamp. wrk cannot
    say which, so what it left unanswered at its end could hide as much, in that drive only.
    """
    lost = sum(missing_rows(url, flood.taken_us, rows) for flood in floods)
    for first_us, taken in closed.items():
        lost += max(0, taken - rows_between(url, first_us, first_us + PHASE_US))
    return lost


def measure_slowed(plan: Plan, script: str) -> Figures:
    """Slow the database to a quarter; offer 2 and 4 times what it takes.

    What it takes is what it commits while a closed loop keeps its buffer full. Memory is compared
    with that after a first flood, which has as many connections.
    """
    rows = wrk.ROWS[script]
    seconds = max(plan.seconds, FLOOD_S_MIN)
    with running_service() as owner:
        wrk.drive(script, owner.port, WARM_S, WARM_US)
        owner.quiet()
        peak = service_peak(owner, script, max(1, plan.seconds / 2), FIRST_US)
        uvloop.run(floors.fresh_table(owner.database_url))
        bytes_per_s = peak["rows_per_s"] * SLOWED_TO * ROW_BYTES
        buffer_s = BUFFER_S * peak["rows_per_s"] * SLOWED_TO
        flags = ("--writers", "1", "--buffer-rows-max", str(max(10_000, int(buffer_s))))
        with slowed_service(owner.database_url, bytes_per_s, *flags) as service:
            filling = wrk.drive("hundreds", service.port, 2, WARM_US)  # fills the buffer
            with Watch(service) as watch:
                began_s, cpu_s = time.monotonic(), service.child.cpu_s()
                full = wrk.drive(script, service.port, seconds, FIRST_US)
            takes = watch.rate(began_s, time.monotonic())
            takes_cores = (service.child.cpu_s() - cpu_s) / (time.monotonic() - began_s)
            first, twice, four_times = (
                flood(service, times * takes / rows, for_s, phase, rows)
                for phase, (times, for_s) in enumerate(
                    ((4, FIRST_FLOOD_S), (2, seconds), (4, seconds)), start=1
                )
            )
            samples = service.quiet()
            floods = (first, twice, four_times)
            there = count_rows(owner.database_url)
            closed = {WARM_US: filling.taken * 100, FIRST_US: full.taken * rows}
            lost = lost_rows(owner.database_url, closed, floods, rows)
    if there != samples["ingest_readings_committed_total"]:
        raise Broken(f"the service says that it committed other rows than the {there} there are")
    flooded_mib = max(twice.rss_mib, four_times.rss_mib)
    return {
        "unslowed_rows_per_s": peak["rows_per_s"],
        "takes_rows_per_s": takes,
        "twice_rows_per_s": twice.committed_per_s,
        "four_times_rows_per_s": four_times.committed_per_s,
        "least_of_takes": min(twice.committed_per_s, four_times.committed_per_s) / takes,
        "lost_rows": float(lost),
        "twice_refused_posts": float(twice.seen.refused),
        "four_times_refused_posts": float(four_times.seen.refused),
        "unanswered_posts": float(sum(each.seen.lost for each in floods)),
        "skipped_posts": float(sum(each.seen.skipped for each in floods)),
        "first_flood_rss_mib": first.rss_mib,
        "flooded_rss_mib": flooded_mib,
        "rss_growth": flooded_mib / first.rss_mib,
        "takes_server_cores": takes_cores,
        "twice_server_cores": twice.cpu_cores,
        "four_times_server_cores": four_times.cpu_cores,
        "four_times_p99_ms": four_times.seen.p99_ms,
        "driver_cores": four_times.seen.cpu_cores,
    }


OVERLOADS = (
    Contender(
        "slowed", "posts of 100, database slowed", partial(measure_slowed, script="hundreds")
    ),
    Contender(
        "slowed_singles",
        "single readings, database slowed",
        partial(measure_slowed, script="singles"),
    ),
)
