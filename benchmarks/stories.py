"""Measurements that are more than one peak: latency, a big table, idle devices, a start.

Each is a contender as in contenders.py: one function, one run, its figures. They drive with
loadgen's open loop where a rate must not yield, else with wrk.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import socket
import statistics
import time
from contextlib import ExitStack
from functools import partial

import uvloop

from benchmarks import floors, wrk
from benchmarks.contenders import (
    COMMITTED,
    FIRST_US,
    JOURNAL,
    PHASE_US,
    WARM_S,
    WARM_US,
    Contender,
    Figures,
    Plan,
    check_table,
    count_rows,
    running_service,
    service_peak,
)
from benchmarks.open_loop import drive_openly
from benchmarks.processes import Broken, free_port, raise_open_files_limit, scratch
from benchmarks.service import Service

IDLE_CONNECTIONS = 5_000
# Of a service with these flags: the levels, and the connections of each. As many as at the peak;
# `committed` waits some 10 ms for its batch, which is 150 posts at half the peak.
HALF_PEAK: tuple[tuple[tuple[str, ...], dict[str, int]], ...] = (
    ((), {"buffered": 64, "committed": 512}),
    (JOURNAL, {"durable": 64}),
)
BIG_ROWS, SMALL_ROWS, QUICK_ROWS = 20_000_000, 100_000, 1_000_000


# Latency


def measure_half_peak(plan: Plan) -> Figures:
    """Offer single readings at half of what a service takes, with each acknowledgement."""
    figures: Figures = {}
    for flags, levels in HALF_PEAK:
        with running_service(*flags) as service:
            wrk.drive("singles", service.port, WARM_S, WARM_US)
            service.quiet()
            target = f"{wrk.READINGS}?ack={next(iter(levels))}"
            half_s = max(1, plan.seconds / 2)
            peak = service_peak(service, "singles", half_s, FIRST_US, target=target)
            for phase, (ack, connections) in enumerate(levels.items(), start=1):
                figures |= _half_peak(
                    service,
                    plan,
                    ack,
                    rate=peak["posts_per_s"] / 2,
                    connections=connections,
                    first_us=FIRST_US + phase * PHASE_US,
                )
            check_table(service)
    return figures


def _half_peak(
    service: Service, plan: Plan, ack: str, *, rate: float, connections: int, first_us: int
) -> Figures:
    seen = drive_openly(
        service.port,
        rate,
        plan.seconds,
        first_us,
        target=f"{wrk.READINGS}?ack={ack}",
        connections=connections,
        warm_s=WARM_S,
    )
    service.quiet()
    if seen.refused or seen.lost or seen.skipped:
        raise Broken(f"at half the peak, ack={ack}: {seen}")
    return {
        f"{ack}_offered_posts_per_s": rate,
        f"{ack}_connections": connections,
        f"{ack}_p50_ms": seen.p50_ms,
        f"{ack}_p99_ms": seen.p99_ms,
        f"{ack}_p999_ms": seen.p999_ms,
        f"{ack}_max_ms": seen.max_ms,
        f"{ack}_driver_lag_ms_max": seen.lag_ms_max,
        f"{ack}_driver_cores": seen.cpu_cores,
    }


# A big table


class Filled:
    """Two services that stay for all runs, one with a big table; started when first asked for."""

    def __init__(self) -> None:
        self._ending = ExitStack()
        self._there: dict[str, Service] = {}
        self._rows = 0
        self._phase = 0
        atexit.register(self.close)

    def open(self, rows: int) -> dict[str, Service]:
        """Return the services by `big` and `small`; fill the big table if there is none yet."""
        if self._rows != rows:
            self.close()
            self._there = {
                name: self._ending.enter_context(running_service()) for name in ("small", "big")
            }
            fill(self._there["big"].database_url, rows)
            self._rows = rows
        return self._there

    def next_us(self) -> int:
        """Return the first timestamp of the next drive: later than all before."""
        self._phase += 1
        return FIRST_US + self._phase * PHASE_US

    def close(self) -> None:
        """Stop the services. Repeatable."""
        self._rows = 0
        self._there = {}
        self._ending.close()


def fill(url: str, rows: int) -> None:
    """Make a fresh table with so many readings from before the benchmark's."""
    uvloop.run(floors.fresh_table(url))
    at_once = min(rows, 1_000_000)
    for first in range(0, rows, at_once):
        streams = floors.ready_batches(min(at_once, rows - first), 5_000, WARM_US - rows + first)
        uvloop.run(floors.copy(url, streams))
    uvloop.run(floors.settle(url))


filled = Filled()


def measure_table(plan: Plan, name: str) -> Figures:
    """Measure posts of 100 into a table with many rows, or one with SMALL_ROWS."""
    service = filled.open(QUICK_ROWS if plan.quick else BIG_ROWS)[name]
    if name == "small":
        fill(service.database_url, SMALL_ROWS)
    rows_before = count_rows(service.database_url)
    wrk.drive("hundreds", service.port, WARM_S, filled.next_us())
    service.quiet()
    figures = service_peak(service, "hundreds", plan.seconds, filled.next_us())
    return {"table_rows_before": float(rows_before), **figures}


# Devices that say nothing


def measure_idle(plan: Plan) -> Figures:
    """Measure the peak of single readings without and with many idle connections beside.

    Memory counts from a service that has not had a post. The two peaks take turns, beside, alone,
    alone, beside, each into a fresh table.
    """
    raise_open_files_limit()
    seconds = max(1.0, plan.seconds / 2)
    peaks: dict[str, list[float]] = {"beside": [], "alone": []}
    with running_service() as service, contextlib.ExitStack() as ending:
        fresh_mib = service.rss_mib()
        devices = idle_devices(service.port, WARM_US - 2 * IDLE_CONNECTIONS)
        ending.callback(lambda: close_all(devices))
        held_mib = service.rss_mib() - fresh_mib
        wrk.drive("singles", service.port, WARM_S, WARM_US)
        service.quiet()
        for turn, kind in enumerate(("beside", "alone", "alone", "beside")):
            if kind == "beside" and not devices:
                devices += idle_devices(service.port, WARM_US - IDLE_CONNECTIONS)
                service.quiet()
            elif kind == "alone":
                close_all(devices)
            uvloop.run(floors.fresh_table(service.database_url))
            before = service.committed()
            figures = service_peak(service, "singles", seconds, FIRST_US + turn * PHASE_US)
            peaks[kind].append(figures["posts_per_s"])
            if (there := count_rows(service.database_url)) != service.committed() - before:
                raise Broken(f"the table has {there} readings, the service says otherwise")
            if closed := sum(not is_open(each) for each in devices):
                raise Broken(f"{closed} of the idle connections were closed meanwhile")
    alone, beside = statistics.mean(peaks["alone"]), statistics.mean(peaks["beside"])
    return {
        "alone_posts_per_s": alone,
        "beside_idle_posts_per_s": beside,
        "of_alone": beside / alone,
        "fresh_rss_mib": fresh_mib,
        "connection_kib": held_mib * 1024 / IDLE_CONNECTIONS,
    }


def idle_devices(port: int, first_us: int) -> list[socket.socket]:
    """Open IDLE_CONNECTIONS connections that have posted one reading each."""
    devices = []
    for number in range(IDLE_CONNECTIONS):
        devices.append(socket.create_connection(("127.0.0.1", port), 10))
        post_one(devices[-1], first_us + number)
    return devices


def close_all(devices: list[socket.socket]) -> None:
    """Close them, and have none."""
    while devices:
        devices.pop().close()


def is_open(device: socket.socket) -> bool:
    """Whether the other side has not closed an idle connection."""
    device.setblocking(False)
    try:
        return bool(device.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


def post_one(device: socket.socket, ts_us: int) -> bytes:
    """Post one reading as a device that will be back; return the answer.

    Raises Broken unless it is a 202.
    """
    body = json.dumps({"device_id": "idle", "metric": "m", "ts": ts_us, "value": 1.5})
    device.sendall(
        b"POST /v1/readings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body.encode())
    )
    answer = device.recv(4_096)
    if not answer.startswith(b"HTTP/1.1 202"):
        raise Broken(f"an idle device got {answer[:100]!r}")
    return answer


# A start


def measure_start(_plan: Plan) -> Figures:
    """Measure from the start of the process to the first committed reading; the data is there."""
    with scratch() as folder:
        with Service(folder / "state"):
            pass  # makes the data
        port = free_port()
        began_s = time.monotonic()
        service = Service(folder / "state", port=port)
        try:
            first_s = first_committed_s(service, port, began_s)
        finally:
            service.child.stop()
    return {"start_to_committed_s": first_s}


def first_committed_s(service: Service, port: int, began_s: float) -> float:
    """Post one reading until it is committed; return when, in seconds since `began_s`."""
    body = b'{"device_id":"first","metric":"m","ts":1700000000000000,"value":1.5}'
    status = 0

    def is_committed() -> bool:
        nonlocal status
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            line.request("POST", COMMITTED, body, {"Content-Type": "application/json"})
            status = line.getresponse().status
        except (OSError, http.client.HTTPException):
            return False
        finally:
            line.close()
        return status == 200

    service.child.wait_until(is_committed, poll_s=0.002)
    return time.monotonic() - began_s


STORIES = (
    Contender("half_peak", "single readings at half their peak", measure_half_peak),
    Contender(
        "small_table", "100 k rows in the table", partial(measure_table, name="small"), stays=True
    ),
    Contender(
        "big_table",
        "at least 20 M rows in the table",
        partial(measure_table, name="big"),
        stays=True,
    ),
    Contender("idle", "beside 5,000 idle connections", measure_idle),
    Contender("start", "start of the service, warm", measure_start, by_wrk=False),
)
