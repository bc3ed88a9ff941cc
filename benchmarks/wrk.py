"""wrk, the driver of peaks: closed loop, one thread, every timestamp new.

There are 64 connections, but few for the posts of Telegraf, which have 10,000 readings each.
The Lua scripts beside this file make the bodies: the same readings as JSON or as line protocol.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from benchmarks import telegraf
from benchmarks.processes import Broken, Missing, run_driver

HERE = Path(__file__).resolve().parent
CONNECTIONS = 64
NEW, NEW_TLS = "fleet_singles", "fleet_singles_tls"  # the latter: the same script over TLS
ROWS = {"singles": 1, "hundreds": 100, "telegraf": telegraf.ROWS, NEW: 1, NEW_TLS: 1}
READINGS = "/v1/readings"
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_MISSING = "wrk is not on PATH: install it (Debian: apt-get install wrk)"


class Peak(NamedTuple):
    """The result of one run of wrk.

    `refused` counts answers that are not 2xx or 3xx, `broken` errors of connections. Latencies are
    of a closed loop: do not compare them between servers.
    """

    posts: int
    seconds: float
    refused: int
    broken: int
    p50_ms: float
    p99_ms: float
    cpu_cores: float

    @property
    def taken(self) -> int:
        """Posts with an answer of 2xx."""
        return self.posts - self.refused


def require_wrk() -> None:
    """Raise Missing unless wrk can be run."""
    if shutil.which("wrk") is None:
        raise Missing(_MISSING)


def drive(
    script: str,
    port: int,
    seconds: float,
    first_us: int,
    *,
    target: str = READINGS,
    form: str = "json",
    connections: int = 0,
) -> Peak:
    """Drive one port of the loopback for so long. `script` is one of ROWS, `form` json or line.
    0 connections: as many as is usual for the script.

    Timestamps count up from `first_us`, one microsecond a reading. Raises Missing, Broken.
    """
    words = [str(first_us), form]
    if script == "telegraf":
        words.append(str(telegraf.bodies(first_us, max(1, round(seconds)))))
    connections = connections or connections_of(script)
    output, cpu_s = run_driver(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency"),
            *("--timeout", "30s", "-s", HERE / f"{script.removesuffix('_tls')}.lua"),
            f"{'https' if script == NEW_TLS else 'http'}://127.0.0.1:{port}{target}",
            *("--", *words),
        ],
        seconds,
    )
    return understand(output, cpu_s)


def connections_of(script: str) -> int:
    """Return how many connections a script usually has."""
    return telegraf.CONNECTIONS if script == "telegraf" else CONNECTIONS


def understand(output: str, cpu_s: float) -> Peak:
    """Read the output of wrk 4. Raises Broken if it is another text."""
    total = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", output)
    p50 = re.search(r"50%\s+([\d.]+)(us|ms|s|m)", output)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", output)
    if total is None or p50 is None or p99 is None:
        raise Broken(f"wrk printed what is not known: {output}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output
    )
    seconds = float(total[2]) * _MS[total[3]] / 1e3
    return Peak(
        posts=int(total[1]),
        seconds=seconds,
        refused=int(refused[1]) if refused else 0,
        broken=sum(map(int, errors.groups())) if errors else 0,
        p50_ms=float(p50[1]) * _MS[p50[2]],
        p99_ms=float(p99[1]) * _MS[p99[2]],
        cpu_cores=cpu_s / seconds,
    )
