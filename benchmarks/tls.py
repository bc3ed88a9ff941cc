"""`python -m benchmarks.tls`: what TLS costs a post on a connection that stays open.

Two services run side by side, one of them with TLS (a P-256 key). wrk posts single readings with
`ack=durable` to one and to the other in turn, PAIRS times. Each pair gives a ratio (with TLS /
without) for the rate and for the CPU a post of the service. Printed are the median, the least and
the greatest. Exit code 1: the median rate is below RATE_MIN of that without TLS.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

from benchmarks import wrk
from benchmarks.contenders import FIRST_US, PHASE_US
from benchmarks.hellos import KEYS, certificate
from benchmarks.processes import scratch
from benchmarks.service import Service

PAIRS = 8
SECONDS = 5.0
RATE_MIN = 0.7
JOURNAL = ("--buffer", "journal", "--ack-default", "durable")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code. With `quick` one short pair, whatever it shows."""
    quick = "quick" in (sys.argv[1:] if arguments is None else arguments)
    pairs, seconds = (1, 1.0) if quick else (PAIRS, SECONDS)
    wrk.require_wrk()
    with scratch() as folder:
        (folder / "key").mkdir()
        files = certificate(folder / "key", KEYS["P-256"])
        flags = ("--tls-cert-file", str(files[0]), "--tls-key-file", str(files[1]))
        with (
            Service(folder / "plain", *JOURNAL) as plain,
            Service(folder / "tls", *JOURNAL, *flags) as secured,
        ):
            found = [_pair(plain, secured, seconds, number) for number in range(pairs)]
    for name, values in zip(("rate", "CPU a post"), zip(*found, strict=True), strict=True):
        print(
            f"{name} with TLS, of that without: {statistics.median(values):.2f} "
            f"({min(values):.2f} to {max(values):.2f}, {len(values)} pairs)",
            flush=True,
        )
    return int(statistics.median(each[0] for each in found) < RATE_MIN and not quick)


def _pair(plain: Service, secured: Service, seconds: float, number: int) -> tuple[float, float]:
    """Return the ratios of rate and CPU; every second pair begins with TLS."""
    order = (plain, secured) if number % 2 else (secured, plain)
    got = {
        each is secured: _load(each, "https" if each is secured else "http", seconds, number)
        for each in order
    }
    return got[True][0] / got[False][0], got[True][1] / got[False][1]


def _load(service: Service, scheme: str, seconds: float, number: int) -> tuple[float, float]:
    """Return posts a second, and the service's CPU seconds a post, until all is written."""
    before = service.cpu()
    first_us = FIRST_US + number * PHASE_US
    peak = wrk.drive("singles", service.port, seconds, first_us, scheme=scheme)
    service.quiet()
    return peak.taken / peak.seconds, (service.cpu().service_s - before.service_s) / peak.taken


if __name__ == "__main__":
    sys.exit(main())
