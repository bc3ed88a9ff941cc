"""A database that cannot keep up, and what the service does then.

The connection to the database is slowed to a quarter; then more is offered than the database takes,
open loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from benchmarks import wrk
from benchmarks.contenders import (
    FIRST_US,
    PHASE_US,
    WARM_US,
    Contender,
    Figures,
    Plan,
    running_service,
    service_peak,
    warm_up,
)
from benchmarks.database import COUNT, count_rows, fresh_table, number
from benchmarks.open_loop import Load, OpenLoop, drive_openly
from benchmarks.processes import Broken, Sample, own_server, sampled, scratch
from benchmarks.service import Service
from ingest.sinks.postgres.schema import TABLE

ROW_BYTES = 55  # a reading of the wrk scripts as binary COPY
SLOWED_TO = 0.25
BUFFER_S = 1.0  # of load that the buffer has space for, so that all is written soon after
MANY_CONNECTIONS = 5_000  # a post that waits for room must not keep others waiting
FIRST_FLOOD_S, FLOOD_S_MIN = 3.0, 3.0  # a batch of single readings takes most of a second
MISSING = (
    "select count(*) from unnest($1::bigint[]) us, generate_series(0, $2 - 1) row "
    f"where not exists (select from {TABLE} where "
    "ts = timestamptz 'epoch' + (us + row) * interval '1 microsecond')"
)
BETWEEN = (
    f"{COUNT} where ts >= timestamptz 'epoch' + $1::bigint * interval '1 microsecond' "
    "and ts < timestamptz 'epoch' + $2::bigint * interval '1 microsecond'"
)


@contextmanager
def slowed_service(url: str, bytes_per_s: float, *flags: str) -> Iterator[Service]:
    """Give a service that has a slow connection to the database of another one."""
    query = parse_qs(urlsplit(url).query)
    path = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
    with (
        scratch() as folder,
        own_server(folder, "slow_line", path, f"{bytes_per_s:.0f}") as (_, port),
    ):
        slow_url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        with Service(folder / "state", "--database-url", slow_url, *flags) as service:
            yield service


def commit_rate(samples: Sequence[Sample], from_s: float, to_s: float) -> float:
    """Return rows committed a second, from the first commit in that time to the last one.

    A slow connection takes a large batch for some tenths of a second. So whole steps are counted,
    not the rows that happen to be committed between two moments. Raises Broken if there were fewer
    than two steps.
    """
    within = [each for each in samples if from_s <= each.at_s <= to_s]
    steps = [new for old, new in pairwise(within) if new.value > old.value]
    if len(steps) < 2:
        raise Broken(f"only {len(steps)} commits were seen in {to_s - from_s:.1f} s")
    first, last = steps[0], steps[-1]
    return (last.value - first.value) / (last.at_s - first.at_s)


class Flood(NamedTuple):
    """What a service did while more was offered than it can store."""

    committed_per_s: float
    found: OpenLoop
    rss_mib: float
    cpu_cores: float


def flood(service: Service, rate_per_s: float, seconds: float, phase: int, rows: int) -> Flood:
    """Offer so many posts a second; return what was committed a second meanwhile."""
    cpu_s = service.child.cpu_s()
    load = Load(
        service.port,
        rate_per_s,
        seconds,
        FIRST_US + phase * PHASE_US,
        rows=rows,
        connections=MANY_CONNECTIONS,
        lists_taken=True,
    )
    with sampled(service.committed) as samples:
        found = drive_openly(load)
    committed_per_s = commit_rate(samples, found.began_s, found.began_s + seconds)
    cpu_cores = (service.child.cpu_s() - cpu_s) / (time.monotonic() - found.began_s)
    return Flood(committed_per_s, found, service.child.rss_mib(), cpu_cores)


def lost_rows(url: str, closed: Mapping[int, int], floods: Sequence[Flood], rows: int) -> int:
    """Return how many readings with a 2xx are not in the table.

    Those of the floods are searched one by one: a count would be too high by posts that were stored
    without an answer. `closed`: the number of readings with a 2xx to wrk, by the first timestamp of
    the drive. wrk does not say which readings they are. So posts without an answer at its end could
    hide as many lost readings, in that drive only.
    """
    lost = sum(number(url, MISSING, flood.found.taken_us, rows) for flood in floods)
    for first_us, taken in closed.items():
        lost += max(0, taken - number(url, BETWEEN, first_us, first_us + PHASE_US))
    return lost


def measure_slowed(plan: Plan, script: str) -> Figures:
    """Slow the database to a quarter; offer 2 and 4 times what it takes.

    What it takes is what it commits while a closed loop keeps its buffer full. Memory is compared
    with that after a first flood, which has as many connections.
    """
    rows = wrk.ROWS[script]
    seconds = max(plan.seconds, FLOOD_S_MIN)
    with running_service() as owner:
        warm_up(owner, script)
        peak = service_peak(owner, script, max(1, plan.seconds / 2), FIRST_US)
        fresh_table(owner.database_url)
        bytes_per_s = peak["rows_per_s"] * SLOWED_TO * ROW_BYTES
        buffer_s = BUFFER_S * peak["rows_per_s"] * SLOWED_TO
        flags = ("--writers", "1", "--buffer-rows-max", str(max(10_000, int(buffer_s))))
        with slowed_service(owner.database_url, bytes_per_s, *flags) as service:
            filling = wrk.drive("hundreds", service.port, 2, WARM_US)  # fills the buffer
            with sampled(service.committed) as samples:
                began_s, cpu_s = time.monotonic(), service.child.cpu_s()
                full = wrk.drive(script, service.port, seconds, FIRST_US)
            takes = commit_rate(samples, began_s, time.monotonic())
            takes_cores = (service.child.cpu_s() - cpu_s) / (time.monotonic() - began_s)
            floods = first, twice, four_times = [
                flood(service, times * takes / rows, for_s, phase, rows)
                for phase, (times, for_s) in enumerate(
                    ((4, FIRST_FLOOD_S), (2, seconds), (4, seconds)), start=1
                )
            ]
            committed = service.quiet()["ingest_readings_committed_total"]
            there = count_rows(owner.database_url)
            closed = {WARM_US: filling.taken * 100, FIRST_US: full.taken * rows}
            lost = lost_rows(owner.database_url, closed, floods, rows)
    if there != committed:
        raise Broken(f"the service has committed {committed:.0f} rows, the table has {there}")
    flooded_mib = max(twice.rss_mib, four_times.rss_mib)
    return {
        "unslowed_rows_per_s": peak["rows_per_s"],
        "takes_rows_per_s": takes,
        "twice_rows_per_s": twice.committed_per_s,
        "four_times_rows_per_s": four_times.committed_per_s,
        "least_of_takes": min(twice.committed_per_s, four_times.committed_per_s) / takes,
        "lost_rows": float(lost),
        "twice_refused_posts": float(twice.found.refused),
        "four_times_refused_posts": float(four_times.found.refused),
        "unanswered_posts": float(sum(each.found.lost for each in floods)),
        "skipped_posts": float(sum(each.found.skipped for each in floods)),
        "first_flood_rss_mib": first.rss_mib,
        "flooded_rss_mib": flooded_mib,
        "rss_growth": flooded_mib / first.rss_mib,
        "takes_server_cores": takes_cores,
        "twice_server_cores": twice.cpu_cores,
        "four_times_server_cores": four_times.cpu_cores,
        "four_times_p99_ms": four_times.found.p99_ms,
        "driver_cores": four_times.found.cpu_cores,
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
