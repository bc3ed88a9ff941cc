"""What is measured against what: one function a contender and run, each on fresh data.

A measurement is a mapping of figures by name, units at the end. `rows_per_s` of the service is
readings committed a second, from the first post until the last is in the table; every measurement
checks that what was taken is there, and raises Broken if it is not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import asyncpg
import uvloop

from benchmarks import floors, peers, wrk
from benchmarks.processes import Broken, Child, accepts, free_port, scratch
from benchmarks.service import Service
from ingest.sinks.postgres.schema import TABLE

Figures = dict[str, float]
WARM_US = 1_600_000_000_000_000
FIRST_US = 1_700_000_000_000_000
PHASE_US = 1_000_000_000_000  # between the first timestamps of two drives of one service
WARM_S = 1.0
INSERTS_S_MIN = 3.0
COPY_ROWS_PER_S = 500_000  # about what a run of `seconds` should take


class Plan(NamedTuple):
    """How long a run drives, in seconds, and whether it is only to see that all works."""

    seconds: float
    quick: bool = False


class Contender(NamedTuple):
    """One thing that is measured: its name, what a reader calls it, one run of it.

    `stays`: it leaves servers running for its next run, so it is measured after all others.
    """

    name: str
    title: str
    measure: Callable[[Plan], Figures]
    by_wrk: bool = True
    stays: bool = False

    def run(self, plan: Plan) -> Figures:
        """Measure once. Raises Missing before anything is started, or Broken."""
        if self.by_wrk:
            wrk.require_wrk()
        return self.measure(plan)


def count_rows(url: str) -> int:
    """Return how many rows the table has."""

    async def ask() -> int:
        line = await asyncpg.connect(url)
        try:
            return int(await line.fetchval(f"select count(*) from {TABLE}"))
        finally:
            await line.close()

    return uvloop.run(ask())


def peak_figures(peak: wrk.Peak, rows: int) -> Figures:
    """Return what every run of wrk tells."""
    if peak.broken:
        raise Broken(f"{peak.broken} connections of wrk broke")
    if peak.taken == 0:
        raise Broken(f"not one post was taken in {peak.seconds:g} s, {peak.refused} were refused")
    return {
        "posts_per_s": peak.taken / peak.seconds,
        "rows_per_s": peak.taken * rows / peak.seconds,
        "refused_posts": float(peak.refused),
        "p50_ms": peak.p50_ms,
        "p99_ms": peak.p99_ms,
        "driver_cores": peak.cpu_cores,
    }


@contextmanager
def running_service(*flags: str) -> Iterator[Service]:
    """Give a fresh service in a folder of its own."""
    with scratch() as folder, Service(folder / "state", *flags) as service:
        yield service


def service_peak(
    service: Service,
    script: str,
    seconds: float,
    first_us: int,
    *,
    target: str = wrk.READINGS,
) -> Figures:
    """Drive a service that runs, until all is in the table; return its figures."""
    rows = wrk.ROWS[script]
    before, cpu = service.committed(), service.cpu()
    began_s = time.monotonic()
    peak = wrk.drive(script, service.port, seconds, first_us, target=target)
    samples = service.quiet()
    took_s = time.monotonic() - began_s
    used = service.cpu()
    committed = samples["ingest_readings_committed_total"] - before
    if committed < peak.taken * rows:
        raise Broken(f"{peak.taken * rows} readings taken, {committed:.0f} committed")
    figures = peak_figures(peak, rows)
    figures["rows_per_s"] = committed / took_s
    figures["server_cores"] = (used.service_s - cpu.service_s) / took_s
    figures["postgres_cores"] = (used.postgres_s - cpu.postgres_s) / took_s
    figures["rss_peak_mib"] = service.child.rss_peak_mib()
    return figures


def check_table(service: Service) -> None:
    """Raise Broken unless the table holds what the service says that it has committed."""
    said, there = service.committed(), count_rows(service.database_url)
    if said != there:
        raise Broken(f"the service has committed {said:.0f} readings, the table has {there}")


def measure_service(
    plan: Plan, script: str, target: str = wrk.READINGS, flags: tuple[str, ...] = ()
) -> Figures:
    """Measure a fresh service at its peak."""
    with running_service(*flags) as service:
        wrk.drive(script, service.port, WARM_S, WARM_US, target=target)
        service.quiet()
        figures = service_peak(service, script, plan.seconds, FIRST_US, target=target)
        check_table(service)
    return figures


@contextmanager
def handler(folder: Path, kind: str, *words: str) -> Iterator[tuple[Child, int]]:
    """Serve a handler of floors.py."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.floors", kind, str(port), *words]
    child = Child(kind, command, folder)
    try:
        child.wait_until(partial(accepts, port))
        yield child, port
    finally:
        child.stop()


def measure_bare(plan: Plan) -> Figures:
    """Measure the floor of the door."""
    with scratch() as folder, handler(folder, "bare") as (child, port):
        wrk.drive("singles", port, WARM_S, WARM_US)
        cpu_s = child.cpu_s()
        peak = wrk.drive("singles", port, plan.seconds, FIRST_US)
        figures = peak_figures(peak, 1)
        figures["server_cores"] = (child.cpu_s() - cpu_s) / peak.seconds
        figures["rss_peak_mib"] = child.rss_peak_mib()
    del figures["rows_per_s"]  # it keeps none
    return figures


def measure_inserts(plan: Plan, script: str, kind: str = "first") -> Figures:
    """Measure one INSERT a reading; the service beside it only lends its database."""
    rows = wrk.ROWS[script]
    with running_service() as service, scratch() as folder:
        url = service.database_url
        with handler(folder, kind, url) as (child, port):
            wrk.drive(script, port, WARM_S, WARM_US)
            cpu_s, database_s = child.cpu_s(), service.cpu().postgres_s
            before, began_s = count_rows(url), time.monotonic()
            # A post of 100 takes a second: what is under way at the end must count as well.
            peak = wrk.drive(script, port, max(plan.seconds, INSERTS_S_MIN), FIRST_US)
            there = count_rows(url) - before
            took_s = time.monotonic() - began_s
            figures = {**peak_figures(peak, rows), "rows_per_s": there / took_s}
            figures["server_cores"] = (child.cpu_s() - cpu_s) / peak.seconds
            used_s = service.cpu().postgres_s - database_s
            figures["postgres_cores"] = used_s / peak.seconds
            figures["rss_peak_mib"] = child.rss_peak_mib()
    if there < peak.taken * rows:
        raise Broken(f"{peak.taken * rows} readings taken, {there} in the table")
    return figures


_streams: dict[tuple[int, int, int], list[bytes]] = {}


def _ready(rows: int, batch_rows: int, first_us: int) -> list[bytes]:
    """Return streams that are encoded once; every run has a fresh table."""
    key = rows, batch_rows, first_us
    if key not in _streams:
        _streams[key] = floors.ready_batches(*key)
    return _streams[key]


def measure_copy(plan: Plan, batch_rows: int) -> Figures:
    """Measure the floor of the database; the service only lends its database."""
    rows = int(plan.seconds * COPY_ROWS_PER_S)
    warm_rows = int(WARM_S * COPY_ROWS_PER_S)
    warming, streams = _ready(warm_rows, batch_rows, WARM_US), _ready(rows, batch_rows, FIRST_US)
    with running_service() as service:
        url = service.database_url
        uvloop.run(floors.copy(url, warming))
        postgres_s, mine_s = service.cpu().postgres_s, time.process_time()
        took_s = uvloop.run(floors.copy(url, streams))
        figures = {
            "rows_per_s": rows / took_s,
            "postgres_cores": (service.cpu().postgres_s - postgres_s) / took_s,
            "driver_cores": (time.process_time() - mine_s) / took_s,
        }
        if (there := count_rows(url)) != rows + warm_rows:
            raise Broken(f"COPY of {rows + warm_rows} rows left {there} in the table")
    return figures


def measure_peer(plan: Plan, kind: Callable[[Path], peers.Peer], script: str) -> Figures:
    """Measure another server with the same readings as line protocol."""
    rows = wrk.ROWS[script]
    with scratch() as folder, kind(folder) as peer:
        drive = partial(wrk.drive, script, peer.port, target=peer.target, form="line")
        warm = drive(WARM_S, WARM_US)
        cpu_s = peer.child.cpu_s()
        peak = drive(plan.seconds, FIRST_US)
        used_s = peer.child.cpu_s() - cpu_s
        peers.check_count(
            peer, (warm.taken + peak.taken) * rows, unanswered=2 * wrk.CONNECTIONS * rows
        )
        figures = peak_figures(peak, rows)
        figures["server_cores"] = used_s / peak.seconds
        figures["rss_peak_mib"] = peer.child.rss_peak_mib()
    return figures


JOURNAL = ("--buffer", "journal")
COMMITTED = f"{wrk.READINGS}?ack=committed"

CONTENDERS = (
    Contender("bare", "bare aiohttp handler", measure_bare),
    Contender(
        "singles",
        "iot-ingest, memory, ack=buffered",
        partial(measure_service, script="singles"),
    ),
    Contender(
        "singles_committed",
        "iot-ingest, memory, ack=committed",
        partial(measure_service, script="singles", target=COMMITTED),
    ),
    Contender(
        "singles_inserts", "one INSERT per request", partial(measure_inserts, script="singles")
    ),
    Contender(
        "singles_inserts_tuned",
        "the same, on uvloop and with msgspec",
        partial(measure_inserts, script="singles", kind="tuned"),
    ),
    Contender(
        "singles_influx", "InfluxDB 1.x", partial(measure_peer, kind=peers.Influx, script="singles")
    ),
    Contender(
        "singles_victoria",
        "VictoriaMetrics",
        partial(measure_peer, kind=peers.Victoria, script="singles"),
    ),
    *(
        Contender(
            f"copy_{rows}",
            f"COPY in batches of {rows:,}",
            partial(measure_copy, batch_rows=rows),
            by_wrk=False,
        )
        for rows in floors.COPY_BATCHES
    ),
    Contender(
        "hundreds",
        "iot-ingest, memory, ack=buffered",
        partial(measure_service, script="hundreds"),
    ),
    Contender(
        "hundreds_committed",
        "iot-ingest, memory, ack=committed",
        partial(measure_service, script="hundreds", target=COMMITTED),
    ),
    Contender(
        "hundreds_inserts", "one INSERT per reading", partial(measure_inserts, script="hundreds")
    ),
    Contender(
        "hundreds_influx",
        "InfluxDB 1.x",
        partial(measure_peer, kind=peers.Influx, script="hundreds"),
    ),
    Contender(
        "hundreds_victoria",
        "VictoriaMetrics",
        partial(measure_peer, kind=peers.Victoria, script="hundreds"),
    ),
    *(
        Contender(
            f"{script}_journal_{ack}",
            f"iot-ingest, journal, ack={ack}",
            partial(
                measure_service,
                script=script,
                target=f"{wrk.READINGS}?ack={ack}",
                flags=JOURNAL,
            ),
        )
        for script in wrk.ROWS
        for ack in ("buffered", "durable")
    ),
)
