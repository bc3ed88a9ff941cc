"""The contenders: one function a contender and run, each on fresh data.

A measurement is a mapping of figures by name, units at the end. `rows_per_s` of the service is
readings committed a second, from the first post until the last is in the table. Every measurement
checks that all taken readings are stored, and raises Broken if they are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks import floors, library, peers, wrk
from benchmarks.database import count_rows
from benchmarks.processes import Broken, Child, make_certificate, own_server, scratch
from benchmarks.service import Service

Figures = dict[str, float]
WARM_US = 1_600_000_000_000_000
FIRST_US = 1_700_000_000_000_000
PHASE_US = 1_000_000_000_000  # between the first timestamps of two drives of one service
WARM_S = 1.0
INSERTS_S_MIN = 3.0
COPY_ROWS_PER_S = 500_000  # about; says how many rows a run of `seconds` copies
JOURNAL = ("--buffer", "journal")
CPU_US = "cpu_us_per_reading"
COMMITTED, DURABLE = f"{wrk.READINGS}?ack=committed", f"{wrk.READINGS}?ack=durable"
LINES = "/write?precision=u&ack=durable"  # the same bytes as InfluxDB gets


class Plan(NamedTuple):
    """How long a run drives, in seconds; `quick` only shows that everything works."""

    seconds: float
    quick: bool = False


class Contender(NamedTuple):
    """One thing that is measured: its name, its title for a reader, one run of it."""

    name: str
    title: str
    measure: Callable[[Plan], Figures]
    by_wrk: bool = True

    def run(self, plan: Plan) -> Figures:
        """Measure once. Raises Missing before anything is started, or Broken."""
        if self.by_wrk:
            wrk.require_wrk()
        return self.measure(plan)


def peak_figures(peak: wrk.Peak, rows: int) -> Figures:
    """Return the figures that every run of wrk has. Raises Broken if nothing was taken."""
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
def running_service(*flags: str, module: str = "ingest") -> Iterator[Service]:
    """Give a fresh service in a folder of its own."""
    with scratch() as folder, Service(folder / "state", *flags, module=module) as service:
        yield service


def warm_up(service: Service, script: str, target: str = wrk.READINGS) -> None:
    """Drive a service for WARM_S, until all is in the table."""
    wrk.drive(script, service.port, WARM_S, WARM_US, target=target, form=_form(target))
    service.quiet()


def service_peak(
    service: Service, script: str, seconds: float, first_us: int, *, target: str = wrk.READINGS
) -> Figures:
    """Drive a running service, until all is in the table; return its figures."""
    rows = wrk.ROWS[script]
    before, cpu = service.committed(), service.cpu()
    began_s = time.monotonic()
    form = _form(target)
    peak = wrk.drive(script, service.port, seconds, first_us, target=target, form=form)
    samples = service.quiet()
    took_s = time.monotonic() - began_s
    used = service.cpu()
    committed = samples["ingest_readings_committed_total"] - before
    if committed < peak.taken * rows:
        raise Broken(f"{peak.taken * rows} readings taken, {committed:.0f} committed")
    return {
        **peak_figures(peak, rows),
        "rows_per_s": committed / took_s,
        CPU_US: (used.service_s - cpu.service_s) / committed * 1e6,
        "server_cores": (used.service_s - cpu.service_s) / took_s,
        "postgres_cores": (used.postgres_s - cpu.postgres_s) / took_s,
        "rss_peak_mib": service.child.rss_peak_mib(),
    }


def _form(target: str) -> str:
    return "line" if target.startswith("/write") else "json"


def check_table(service: Service) -> None:
    """Raise Broken unless the table has as many readings as the service has committed."""
    committed, there = service.committed(), count_rows(service.database_url)
    if committed != there:
        raise Broken(f"the service has committed {committed:.0f} readings, the table has {there}")


def measure_service(
    plan: Plan,
    script: str,
    target: str = wrk.READINGS,
    flags: tuple[str, ...] = (),
    module: str = "ingest",
) -> Figures:
    """Measure a fresh service at its peak."""
    with running_service(*flags, module=module) as service:
        warm_up(service, script, target)
        figures = service_peak(service, script, plan.seconds, FIRST_US, target=target)
        check_table(service)
    return figures


def program_peak(
    child: Child, drive: Callable[[float, int], wrk.Peak], seconds: float, rows: int
) -> tuple[wrk.Peak, Figures]:
    """Drive another program; return what wrk saw, and its figures."""
    cpu_s = child.cpu_s()
    peak = drive(seconds, FIRST_US)
    cores = (child.cpu_s() - cpu_s) / peak.seconds
    own = {"server_cores": cores, "rss_peak_mib": child.rss_peak_mib()}
    return peak, {**peak_figures(peak, rows), **own}


def measure_floor(plan: Plan, kind: str, script: str) -> Figures:
    """Measure a floor of the receiver."""
    with scratch() as folder:
        files = make_certificate(folder) if script == wrk.NEW_TLS else ()
        with own_server(folder, "floors", kind, *map(str, files)) as (child, port):
            drive = partial(wrk.drive, script, port)
            drive(WARM_S, WARM_US)
            _, figures = program_peak(child, drive, plan.seconds, 1)
    del figures["rows_per_s"]  # it keeps none
    return figures


def measure_tls(plan: Plan) -> Figures:
    """Measure the service with a whole handshake for each post."""
    with scratch() as folder:
        cert_file, key_file = make_certificate(folder)
        files = "--tls-cert-file", str(cert_file), "--tls-key-file", str(key_file)
        return measure_service(plan, wrk.NEW_TLS, DURABLE, (*JOURNAL, *files))


def measure_inserts(plan: Plan, script: str, kind: str = "first") -> Figures:
    """Measure one INSERT a reading; the service beside it only lends its database."""
    rows = wrk.ROWS[script]
    with running_service() as service, scratch() as folder:
        url = service.database_url
        with own_server(folder, "floors", kind, url) as (child, port):
            drive = partial(wrk.drive, script, port)
            drive(WARM_S, WARM_US)
            database_s = service.cpu().postgres_s
            before, began_s = count_rows(url), time.monotonic()
            # A post of 100 takes a second: posts that have no answer at the end must count too.
            peak, figures = program_peak(child, drive, max(plan.seconds, INSERTS_S_MIN), rows)
            there = count_rows(url) - before
            took_s = time.monotonic() - began_s
            used_s = service.cpu().postgres_s - database_s
    if there < peak.taken * rows:
        raise Broken(f"{peak.taken * rows} readings taken, {there} in the table")
    return {**figures, "rows_per_s": there / took_s, "postgres_cores": used_s / peak.seconds}


def measure_app(plan: Plan, script: str) -> Figures:
    """Measure an app of aiohttp with the pages; the service beside it only lends its database."""
    with running_service() as service:
        of_app = ("--database-url", service.database_url, "--partition-span", "none")
        figures = measure_service(
            plan, script, DURABLE, (*JOURNAL, *of_app), module=library.__name__
        )
    del figures["postgres_cores"]  # it has started none
    return figures


def measure_puts(plan: Plan, tasks: int) -> Figures:
    """Measure tasks of this process that put; the service beside it only lends its database."""
    with running_service() as service, scratch() as folder:
        url = service.database_url
        return uvloop.run(library.puts(url, folder / "state", tasks, plan.seconds))


# Streams are encoded once: every run has a fresh table.
_ready = cache(floors.ready_batches)


def measure_copy(plan: Plan, batch_rows: int) -> Figures:
    """Measure the floor of the database; the service only lends its database."""
    rows, warm_rows = (int(seconds * COPY_ROWS_PER_S) for seconds in (plan.seconds, WARM_S))
    warming, streams = _ready(warm_rows, batch_rows, WARM_US), _ready(rows, batch_rows, FIRST_US)
    with running_service() as service:
        url = service.database_url
        uvloop.run(floors.copy(url, warming))
        postgres_s, own_s = service.cpu().postgres_s, time.process_time()
        took_s = uvloop.run(floors.copy(url, streams))
        figures = {
            "rows_per_s": rows / took_s,
            "postgres_cores": (service.cpu().postgres_s - postgres_s) / took_s,
            "driver_cores": (time.process_time() - own_s) / took_s,
        }
        if (there := count_rows(url)) != rows + warm_rows:
            raise Broken(f"COPY of {rows + warm_rows} rows left {there} in the table")
    return figures


def measure_peer(
    plan: Plan, peer_in: Callable[[Path], AbstractContextManager[peers.Peer]], script: str
) -> Figures:
    """Measure another server with the same readings as line protocol."""
    rows = wrk.ROWS[script]
    with scratch() as folder, peer_in(folder) as peer:
        drive = partial(wrk.drive, script, peer.port, target=peer.target, form="line")
        warm = drive(WARM_S, WARM_US)
        peak, figures = program_peak(peer.child, drive, plan.seconds, rows)
        taken = (warm.taken + peak.taken) * rows
        peers.check_count(peer, taken, unanswered=2 * wrk.connections_of(script) * rows)
        figures["rss_peak_mib"] = peer.child.rss_peak_mib()  # it may still have been writing
    return figures


# Ways to run the service: end of the name, title, target of the posts, flags.
WAYS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("", "memory, ack=buffered", wrk.READINGS, ()),
    ("_committed", "memory, ack=committed", COMMITTED, ()),
    ("_journal_buffered", "journal, ack=buffered", f"{wrk.READINGS}?ack=buffered", JOURNAL),
    ("_journal_durable", "journal, ack=durable", DURABLE, JOURNAL),
    ("_lines_durable", "line protocol, journal, ack=durable", LINES, JOURNAL),
)


def _ways(script: str, ways: Iterable[tuple[str, str, str, tuple[str, ...]]]) -> list[Contender]:
    """Return the service in some of WAYS."""
    return [
        Contender(
            script + end,
            f"iot-ingest, {title}",
            partial(measure_service, script=script, target=target, flags=flags),
        )
        for end, title, target, flags in ways
    ]


def _peers(script: str) -> list[Contender]:
    return [
        Contender(f"{script}_{name}", title, partial(measure_peer, peer_in=peer_in, script=script))
        for name, title, peer_in in (
            ("influx", "InfluxDB 1.x", peers.influx),
            ("victoria", "VictoriaMetrics", peers.victoria),
        )
    ]


def _of_script(script: str) -> tuple[Contender, ...]:
    """Return the contenders that there are for singles and for hundreds."""
    return (
        *_ways(script, WAYS),
        Contender(
            f"{script}_web",
            "iot-ingest in an app of aiohttp, journal, ack=durable",
            partial(measure_app, script=script),
        ),
        Contender(
            f"{script}_inserts",
            f"one INSERT per {'request' if script == 'singles' else 'reading'}",
            partial(measure_inserts, script=script),
        ),
        *_peers(script),
    )


CONTENDERS = (
    Contender(
        "bare", "bare aiohttp handler", partial(measure_floor, kind="bare", script="singles")
    ),
    Contender(
        "fleet_floor",
        "server of uvloop, a fixed answer",
        partial(measure_floor, kind="fixed", script=wrk.NEW),
    ),
    *_ways(wrk.NEW, [("", "journal, ack=durable", DURABLE, JOURNAL)]),
    Contender(
        "fleet_floor_tls",
        "Python's TLS in a loop, a fixed answer",
        partial(measure_floor, kind="tls", script=wrk.NEW_TLS),
    ),
    Contender(wrk.NEW_TLS, "iot-ingest, TLS, journal, ack=durable", measure_tls),
    *_peers(wrk.NEW)[:1],
    *_of_script("singles"),
    Contender(
        "singles_inserts_tuned",
        "the same, on uvloop and with msgspec",
        partial(measure_inserts, script="singles", kind="tuned"),
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
    *_of_script("hundreds"),
    *(
        Contender(
            f"put_{tasks}",
            f"put of 100 by {tasks} task{'s' * (tasks > 1)}, journal, ack=durable",
            partial(measure_puts, tasks=tasks),
            by_wrk=False,
        )
        for tasks in (1, wrk.CONNECTIONS)
    ),
    *_ways("telegraf", WAYS[-1:]),
    *_peers("telegraf"),
)
