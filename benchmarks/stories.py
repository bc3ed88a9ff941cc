"""Measurements that are more than one peak: latency, idle devices, a start.

Each is a contender as in contenders.py: one function, one run, its figures. They drive with
loadgen's open loop where the rate must not depend on the answers, else with wrk.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from contextlib import ExitStack
from functools import partial

from benchmarks import wrk
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
    running_service,
    service_peak,
    warm_up,
)
from benchmarks.database import count_rows, fresh_table
from benchmarks.open_loop import Load, drive_openly
from benchmarks.processes import Broken, free_port, raise_open_files_limit, scratch, serving
from benchmarks.service import Service

IDLE_CONNECTIONS = 5_000
# For a service with these flags: the levels, and the connections of each. As many as at the peak;
# `committed` waits some 10 ms for its batch, which is 150 posts at half the peak.
HALF_PEAK: tuple[tuple[tuple[str, ...], dict[str, int]], ...] = (
    ((), {"buffered": 64, "committed": 512}),
    (JOURNAL, {"durable": 64}),
)


# Latency


def measure_half_peak(plan: Plan) -> Figures:
    """Offer single readings at half of what a service takes, with each acknowledgement."""
    figures: Figures = {}
    for flags, levels in HALF_PEAK:
        with running_service(*flags) as service:
            warm_up(service, "singles")
            target = f"{wrk.READINGS}?ack={next(iter(levels))}"
            half_s = max(1, plan.seconds / 2)
            peak = service_peak(service, "singles", half_s, FIRST_US, target=target)
            os.sync()  # what the peak, and the cases before, have left for the disk to write
            for phase, (ack, connections) in enumerate(levels.items(), start=1):
                load = Load(
                    service.port,
                    peak["posts_per_s"] / 2,
                    plan.seconds,
                    FIRST_US + phase * PHASE_US,
                    target=f"{wrk.READINGS}?ack={ack}",
                    connections=connections,
                    warm_s=WARM_S,
                )
                figures |= {f"{ack}_{name}": each for name, each in _latency(load).items()}
                service.quiet()
            check_table(service)
    return figures


def _latency(load: Load) -> Figures:
    found = drive_openly(load)
    if found.failed:
        raise Broken(f"at half the peak, {load.target}: {found}")
    return {
        "offered_posts_per_s": load.rate_per_s or 0.0,
        "connections": load.connections,
        "p50_ms": found.p50_ms,
        "p99_ms": found.p99_ms,
        "p999_ms": found.p999_ms,
        "max_ms": found.max_ms,
        "driver_lag_ms_max": found.lag_ms_max,
        "driver_cores": found.cpu_cores,
    }


# Devices that send nothing


def measure_idle(plan: Plan) -> Figures:
    """Measure the peak of single readings, without idle connections and with many.

    Memory counts from a service that has not had a post. The two peaks alternate, beside, alone,
    alone, beside, each into a fresh table.
    """
    raise_open_files_limit()
    seconds = max(1.0, plan.seconds / 2)
    peaks: dict[str, list[float]] = {"beside": [], "alone": []}
    with running_service() as service, ExitStack() as ending:
        fresh_mib = service.child.rss_mib()
        devices = idle_devices(service.port, WARM_US - 2 * IDLE_CONNECTIONS)
        ending.callback(lambda: close_all(devices))
        held_mib = service.child.rss_mib() - fresh_mib
        warm_up(service, "singles")
        for phase, kind in enumerate(("beside", "alone", "alone", "beside")):
            if kind == "beside" and not devices:
                devices += idle_devices(service.port, WARM_US - IDLE_CONNECTIONS)
                service.quiet()
            elif kind == "alone":
                close_all(devices)
            fresh_table(service.database_url)
            before = service.committed()
            figures = service_peak(service, "singles", seconds, FIRST_US + phase * PHASE_US)
            peaks[kind].append(figures["posts_per_s"])
            if (there := count_rows(service.database_url)) != service.committed() - before:
                raise Broken(f"the table has {there} readings, the service committed another count")
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
    """Open IDLE_CONNECTIONS connections; post one reading on each. Raises Broken without a 202."""
    devices = []
    for number in range(IDLE_CONNECTIONS):
        devices.append(socket.create_connection(("127.0.0.1", port), 10))
        answer = post_one(devices[-1], first_us + number)
        if not answer.startswith(b"HTTP/1.1 202"):
            raise Broken(f"an idle device got {answer[:100]!r}")
    return devices


def close_all(devices: list[socket.socket]) -> None:
    """Close all connections, and empty the list."""
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


def post_one(device: socket.socket, ts_us: int, target: str = wrk.READINGS) -> bytes:
    """Post one reading on a connection that stays open; return the answer."""
    body = json.dumps({"device_id": "idle", "metric": "m", "ts": ts_us, "value": 1.5})
    device.sendall(
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (target.encode(), len(body), body.encode())
    )
    return device.recv(4_096)


# A start


def measure_start(_plan: Plan) -> Figures:
    """Measure from the start of the process to the first committed reading; the data is there."""
    with scratch() as folder:
        with Service(folder / "state"):
            pass  # makes the data
        port = free_port()
        began_s = time.monotonic()
        service = Service(folder / "state", port=port)
        with serving(service.child, partial(_commits_one, port), poll_s=0.002):
            took_s = time.monotonic() - began_s
    return {"start_to_committed_s": took_s}


def _commits_one(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as device:
            return post_one(device, FIRST_US, COMMITTED).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


STORIES = (
    Contender("half_peak", "single readings at half their peak", measure_half_peak),
    Contender("idle", "beside 5,000 idle connections", measure_idle),
    Contender("start", "start of the service, warm", measure_start, by_wrk=False),
)
