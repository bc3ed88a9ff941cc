"""Two services of two commits under the same short loads, alternately.

Both run at the same time, each with a state folder, a PostgreSQL and ports of its own, and with the
same settings. One of them has load while the other one is idle. A pair is four loads, A B B A, and
the next pair is B A A B: so a drift of the machine cancels. After these two pairs both are started
anew: two processes of the same code differ by 1 to 2 % for as long as they run (measured), since
their memory lies elsewhere. The load generator is this tree's, in this very process. It uses of a
service only the command line, HTTP and the metrics.

- CPU a reading: user and system seconds of the service's own process, by the kernel's CPU clock of
  the process, from the first post until all is in the table, over the readings that came to the
  table. PostgreSQL's CPU is not in it.
- Rate: readings with a 2xx a second. Latency: of posts with a 2xx.

Single readings are driven at their peak: 64 connections, each sends as soon as it has an answer.
Posts of 100 are driven at half of their peak, which is measured once: they come at random moments
(Poisson, one seed), and latency counts from the moment at which a post was due. There the rate says
only that the service keeps up.

Nothing is spilled to the disk. The memory has space for ROWS_MAX readings, as the metrics confirm.
A load begins when the service is empty, and a load of more readings than that is an error. So a
journal is written, and never read.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks import telegraf
from benchmarks.contenders import FIRST_US, JOURNAL
from benchmarks.database import execute
from benchmarks.open_loop import JSON, LINES, TELEGRAF, Load, Tally, send
from benchmarks.processes import REPOSITORY, Broken, scratch
from benchmarks.ratios import MORE_IS_BETTER
from benchmarks.service import PLAIN_TABLE, Service
from benchmarks.wrk import CONNECTIONS, READINGS
from ingest.access.entries import TokenEntry, digest_of, entry_line, new_secret
from loadgen.measure.histogram import Histogram

THIS = "this"
ROWS_MAX = 4_000_000
MEMORY = ("--buffer-rows-max", str(ROWS_MAX), "--buffer-bytes-max", str(256 * ROWS_MAX))
LOAD_US = 10_000_000  # between the first timestamps of two loads
QUIET_POLL_S = 0.05
SAME_SEED = {"PYTHONHASHSEED": "0"}  # a random seed makes two processes of the same code differ


def knows_partitions(tree: Path) -> bool:
    """Whether the code in a tree has the setting of PLAIN_TABLE: an unknown one ends its start."""
    declared = tree.glob("ingest/**/*settings.py")
    return any("partition_span:" in each.read_text() for each in declared)


class Way(NamedTuple):
    """One case: posts of `rows` readings with this acknowledgement; `flags` of the service.

    `at_half`: at half the peak. `new_heads` and `form` as in open_loop.Load. With `token_for` this
    tree's service wants a token, which each post to it has; it is for these devices, or for all if
    there are none. To the other service everybody may post, without a token.
    """

    name: str
    rows: int
    ack: str
    flags: tuple[str, ...] = ()
    connections: int = CONNECTIONS
    at_half: bool = False
    new_heads: bool = False
    token_for: tuple[str, ...] | None = None
    form: str = JSON


WAYS = (
    Way("singles", 1, "buffered"),
    Way("hundreds", 100, "buffered", at_half=True),
    Way("singles_durable", 1, "durable", JOURNAL),
    Way("hundreds_durable", 100, "durable", JOURNAL, at_half=True),
)
MORE_WAYS = (
    Way("singles_buffered", 1, "buffered", JOURNAL),
    Way("singles_durable_half", 1, "durable", JOURNAL, at_half=True),
    Way("singles_durable_512", 1, "durable", JOURNAL, connections=512),
    Way("singles_durable_new_heads", 1, "durable", JOURNAL, new_heads=True),
    Way("singles_durable_token", 1, "durable", JOURNAL, token_for=()),
    Way("singles_durable_devices", 1, "durable", JOURNAL, token_for=("device-*",)),
    Way("singles_committed", 1, "committed", JOURNAL),
    Way("hundreds_committed", 100, "committed", JOURNAL, at_half=True),
    Way("lines_singles", 1, "durable", JOURNAL, form=LINES),
    Way("lines_hundreds", 100, "durable", JOURNAL, at_half=True, form=LINES),
    Way(
        *("telegraf", telegraf.ROWS, "durable", JOURNAL),
        connections=telegraf.CONNECTIONS,
        form=TELEGRAF,
    ),
)


class Result(NamedTuple):
    """The result of one load; `took_s` until the last answer, `whole_s` until all is stored."""

    cpu_s: float
    took_s: float
    whole_s: float
    committed: int
    tally: Tally


def figures_of(results: Sequence[Result]) -> dict[str, float]:
    """Return the figures of several loads of one service together, by name and unit."""
    latencies = Histogram()
    for each in results:
        latencies.merge(each.tally.latencies)
    taken = sum(each.tally.taken_rows for each in results)
    cpu_s = sum(each.cpu_s for each in results)
    return {
        "cpu_us_per_reading": cpu_s / sum(each.committed for each in results) * 1e6,
        "readings_per_s": taken / sum(each.took_s for each in results),
        "p50_ms": latencies.quantile(0.5) * 1e3,
        "p99_ms": latencies.quantile(0.99) * 1e3,
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
    """Both services. `pairs` drives one case for as long as the caller asks for more.

    `folder` takes their state folders, which stay from one start to the next. `flags` are more
    settings for this tree's service.
    """

    def __init__(
        self, folder: Path, other_tree: Path, seconds: float, flags: Sequence[str]
    ) -> None:
        self._sides = {THIS: (REPOSITORY, flags), "other": (other_tree, ())}
        self._token = new_secret()
        self._folder, self._seconds = folder, seconds
        self._next_us = FIRST_US

    def pairs(self, way: Way, say: Callable[[str], None]) -> Generator[Pair, None, None]:
        """Yield pairs for ever; start and warm up both for each two of them. Raises Broken.

        Close it: a service runs until then.
        """
        rate_per_s = None
        while True:
            with ExitStack() as running:
                both = [running.enter_context(each) for each in self._services(way)]
                for service in both:
                    self._load(service, way, None)
                if way.at_half and rate_per_s is None:
                    rate_per_s = self._half_peak_per_s(both, way)
                    say(f"{way.name}: at half the peak, {rate_per_s * way.rows:,.0f} readings/s")
                for order in (both, both[::-1]):
                    results = self._load_both(order, way, rate_per_s)
                    yield Pair(*(figures_of(results[service]) for service in both))

    def _services(self, way: Way) -> Iterator[Service]:
        """Make this one's service, and the other one's once the first has been started."""
        for name, (tree, more) in self._sides.items():
            flags = (*MEMORY, *way.flags, *more)
            if name == THIS and way.token_for is not None:
                entry = TokenEntry("bench", digest_of(self._token), devices=way.token_for)
                file = self._folder / "tokens"
                file.write_bytes(entry_line(entry))
                flags += ("--access", "token", "--tokens-file", str(file))
            table = PLAIN_TABLE if knows_partitions(tree) else {}  # without them it is plain too
            yield Service(self._folder / name, *flags, tree=tree, env={**SAME_SEED, **table})

    def _half_peak_per_s(self, both: Sequence[Service], way: Way) -> float:
        """Return half of the posts a second that the slower one stores."""
        at_peak = self._load_both(both, way, None)
        rates = [sum(each.committed / each.whole_s for each in at_peak[of]) for of in both]
        return min(rates) / 4 / way.rows  # the sum of two loads, and half of the peak

    def _load_both(
        self, order: Sequence[Service], way: Way, rate_per_s: float | None
    ) -> dict[Service, list[Result]]:
        """Drive A B B A: neither is later than the other one."""
        results: dict[Service, list[Result]] = {service: [] for service in order}
        for service in (*order, *order[::-1]):
            results[service].append(self._load(service, way, rate_per_s))
        return results

    def _load(self, service: Service, way: Way, rate_per_s: float | None) -> Result:
        """Drive one load until all is in the table, and empty the table.

        Without a rate posts are sent as fast as answers come. With a rate, `took_s` is the time
        that the load should take: so equal counts are equal rates.
        """
        first_us, self._next_us = self._next_us, self._next_us + LOAD_US
        path = f"{READINGS}?" if way.form == JSON else "/write?precision=u&"
        load = Load(
            service.port,
            rate_per_s,
            self._seconds,
            first_us,
            way.rows,
            f"{path}ack={way.ack}",
            connections=way.connections,
            new_heads=way.new_heads,
            token="" if way.token_for is None or service.folder.name != THIS else self._token,
            form=way.form,
        )
        before = service.committed()
        used_s, began_s = service.child.cpu_s(), time.monotonic()
        gc.collect()
        gc.freeze()  # else a collection that walks all objects would count as latency
        _, tally = uvloop.run(send(load))
        samples = service.quiet(poll_s=QUIET_POLL_S)
        cpu_s = service.child.cpu_s() - used_s
        whole_s = time.monotonic() - began_s
        if samples["ingest_buffer_rows_max"] != ROWS_MAX:
            raise Broken("the service does not use the memory that its flags allow")
        committed = int(samples["ingest_readings_committed_total"] - before)
        if not 0 < tally.taken_rows <= committed <= ROWS_MAX:
            raise Broken(f"{tally.taken_rows} readings taken, {committed} committed")
        # The checkpoint is now, and not while the other service is measured.
        execute(service.database_url, "truncate readings", "checkpoint")
        took_s = tally.took_s if rate_per_s is None else self._seconds
        return Result(cpu_s, took_s, whole_s, committed, tally)


@contextmanager
def two_services(other_tree: Path, seconds: float, flags: Sequence[str] = ()) -> Iterator[Two]:
    """Give the services of this tree and of another one a folder for one case."""
    with scratch() as folder:
        yield Two(folder, other_tree, seconds, flags)
