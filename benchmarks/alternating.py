"""Two services of two commits under the same short loads, in turn.

Both run all the time, each with a state folder, a PostgreSQL and ports of its own, and with the
same settings; one of them has load while the other one is idle. A pair is four loads, A B B A, and
the next one B A A B: so a drift of the machine cancels. The load generator is this tree's, in this
very process. It knows of a service what its users know: command line, HTTP, metrics.

- CPU a reading: user and system seconds of the service's own process, by the kernel's CPU clock of
  the process, from the first post until all is in the table, over the readings that came to the
  table. PostgreSQL's are not in it.
- Rate: readings with a 2xx a second. Latency: of posts with a 2xx.

Single readings are driven at their peak: 64 connections, each sends as soon as it has an answer.
Posts of 100 are driven at half of their peak, which is looked for once: they come at random moments
(Poisson, one seed), and latency counts from the moment at which a post was due. There the rate says
only that the service keeps up.

Nothing is spilled to the disk. Memory may hold ROWS_MAX readings, as the metrics confirm; a load
begins when nothing is held, and one of more readings than that is an error. So a journal is
written, and never read.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg
import uvloop

from benchmarks.contenders import FIRST_US, JOURNAL
from benchmarks.open_loop import SEED, Readings, Tally
from benchmarks.processes import REPOSITORY, Broken, cpu_clock_s, scratch
from benchmarks.ratios import MORE_IS_BETTER
from benchmarks.service import Service
from loadgen.driver.driver import Driver
from loadgen.measure.histogram import Histogram
from loadgen.traffic.schedule import constant, moments

CONNECTIONS = 64
ROWS_MAX = 4_000_000
MEMORY = ("--buffer-rows-max", str(ROWS_MAX), "--buffer-bytes-max", str(256 * ROWS_MAX))
LOAD_US = 10_000_000  # between the first timestamps of two loads
QUIET_POLL_S = 0.05
SAME_SEED = {"PYTHONHASHSEED": "0"}  # a drawn one makes two processes of the same code differ


class Way(NamedTuple):
    """One case: posts of `rows` readings with this acknowledgement; `flags` of the service."""

    name: str
    rows: int
    ack: str
    flags: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """Path and query of a post."""
        return f"/v1/readings?ack={self.ack}"


WAYS = (
    Way("singles", 1, "buffered"),
    Way("hundreds", 100, "buffered"),
    Way("singles_durable", 1, "durable", JOURNAL),
    Way("hundreds_durable", 100, "durable", JOURNAL),
)


class Seen:
    """What the loads of one service in one pair came to, taken together."""

    def __init__(self) -> None:
        self.cpu_s = self.took_s = 0.0
        self.committed = self.taken = 0
        self.latencies = Histogram()

    def figures(self) -> dict[str, float]:
        """Return the figures by name and unit."""
        return {
            "cpu_us_per_reading": self.cpu_s / self.committed * 1e6,
            "readings_per_s": self.taken / self.took_s,
            "p50_ms": self.latencies.quantile(0.5) * 1e3,
            "p99_ms": self.latencies.quantile(0.99) * 1e3,
        }


class Pair(NamedTuple):
    """The figures of both under the same loads."""

    this: dict[str, float]
    other: dict[str, float]

    def ratios(self) -> dict[str, float]:
        """Return this one's figures over the other one's, by the names of ratios.py."""
        names = zip(MORE_IS_BETTER, self.this, strict=True)
        return {name: self.this[figure] / self.other[figure] for name, figure in names}


class Two:
    """Both services. `pairs` drives one case for as long as it is asked for more."""

    def __init__(self, this: Service, other: Service, seconds: float) -> None:
        self._this, self._other, self._seconds = this, other, seconds
        self._next_us = FIRST_US

    def pairs(self, way: Way, say: Callable[[str], None]) -> Iterator[Pair]:
        """Warm both up, find the peak if need be, then yield pairs for ever. Raises Broken."""
        both = self._this, self._other
        for service in both:
            self._load(service, way, None, Seen())
        rate_per_s = None
        if way.rows > 1:
            rate_per_s = self._half_peak(way)
            say(f"{way.name}: at half the peak, {rate_per_s * way.rows:,.0f} readings/s")
        while True:
            for order in (both, both[::-1]):
                yield self._pair(order, way, rate_per_s)

    def _pair(self, order: Sequence[Service], way: Way, rate_per_s: float | None) -> Pair:
        """Drive A B B A: neither is later than the other one."""
        seen = {service: Seen() for service in order}
        for service in (*order, *order[::-1]):
            self._load(service, way, rate_per_s, seen[service])
        return Pair(seen[self._this].figures(), seen[self._other].figures())

    def _half_peak(self, way: Way) -> float:
        """Return half of what the slower one commits, in posts a second."""
        in_turn = (self._this, self._other, self._other, self._this)
        found = [self._load(each, way, None, Seen()) for each in in_turn]
        return min(found[0] + found[3], found[1] + found[2]) / 4 / way.rows

    def _load(self, service: Service, way: Way, rate_per_s: float | None, seen: Seen) -> float:
        """Drive one load until all is in the table, and add it to `seen`.

        Return how many readings were committed a second.
        """
        before = service.committed()
        used_s, began_s = cpu_clock_s(service.child.pid), time.monotonic()
        tally, took_s = self._drive(service.port, way, rate_per_s)
        samples = service.quiet(poll_s=QUIET_POLL_S)
        seen.cpu_s += cpu_clock_s(service.child.pid) - used_s
        whole_s = time.monotonic() - began_s
        if samples["ingest_buffer_rows_max"] != ROWS_MAX:
            raise Broken("the service does not have the memory that it was told to have")
        committed = int(samples["ingest_readings_committed_total"] - before)
        if not 0 < tally.taken_rows <= committed <= ROWS_MAX:
            raise Broken(f"{tally.taken_rows} readings taken, {committed} committed")
        seen.committed += committed
        seen.taken += tally.taken_rows
        seen.took_s += took_s
        seen.latencies.merge(tally.latencies)
        uvloop.run(emptied(service.database_url))
        return committed / whole_s

    def _drive(self, port: int, way: Way, rate_per_s: float | None) -> tuple[Tally, float]:
        first_us, self._next_us = self._next_us, self._next_us + LOAD_US
        gc.collect()
        gc.freeze()  # else a look through all that is there would be the service's latency
        return uvloop.run(drive(port, way, rate_per_s, self._seconds, first_us))


async def drive(
    port: int, way: Way, rate_per_s: float | None, seconds: float, first_us: int
) -> tuple[Tally, float]:
    """Send at a rate, or without one as fast as answers come. Return its seconds, too.

    With a rate they are the seconds that were asked for: then equal counts are equal rates.
    """
    tally = Tally()
    schedule = None
    if rate_per_s is not None:
        schedule = moments(constant(rate_per_s), arrivals="poisson", seed=SEED, within_s=seconds)
    driver = Driver(
        "127.0.0.1",
        port,
        Readings(way.target, port, way.rows, first_us),
        tally,
        connections=CONNECTIONS,
        schedule=schedule,
        retry=None,
    )
    if rate_per_s is None:
        asyncio.get_running_loop().call_later(seconds, driver.stop)
    await driver.run()
    return tally, time.monotonic() - driver.started_s if rate_per_s is None else seconds


async def emptied(url: str) -> None:
    """Empty the table, and let the server settle now, and not while the other one is measured."""
    line = await asyncpg.connect(url)
    try:
        await line.execute("truncate readings")
        await line.execute("checkpoint")
    finally:
        await line.close()


@contextmanager
def two_services(other_tree: Path, flags: tuple[str, ...], seconds: float) -> Iterator[Two]:
    """Start the service of this tree and that of another one."""
    with ExitStack() as ending:
        folder = ending.enter_context(scratch())
        services = []
        for name, tree in (("this", REPOSITORY), ("other", other_tree)):
            service = Service(folder / name, *MEMORY, *flags, tree=tree, env=SAME_SEED)
            ending.callback(service.child.stop)  # if the other one does not start
            services.append(service)
        this, other = (ending.enter_context(each) for each in services)
        yield Two(this, other, seconds)
