"""Two services of two commits under the same short loads, alternately.

Both run at the same time, each with a state folder, a PostgreSQL and ports of its own, and with the
same settings. One of them has load while the other one is idle. A pair is four loads, A B B A, and
the next pair is B A A B: so a drift of the machine cancels. After these two pairs both are started
anew: two processes of the same code differ by 1 to 2 % for as long as they run (measured), since
their memory lies elsewhere. The load generator is this tree's, in this very process. It uses of a
service only the command line, HTTP and the metrics.

- CPU a reading: user and system seconds of the service's own process, by the kernel's CPU clock of
  the process, from the first post until all is in the table, over the readings that came to the
  table. PostgreSQL's CPU is a figure of its own: that of its processes that are there at the end.
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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks import telegraf
from benchmarks.columns import FORMS, MIXED, TABLES, VALUES
from benchmarks.contenders import FIRST_US, JOURNAL
from benchmarks.database import execute, number
from benchmarks.open_loop import JSON, LINES, Load, Tally, media_type_of, send
from benchmarks.processes import (
    REPOSITORY,
    Broken,
    cpu_by_process_s,
    make_certificate,
    scratch,
)
from benchmarks.ratios import MORE_IS_BETTER
from benchmarks.service import PLAIN_TABLE, Service
from benchmarks.telegraf import FLEET, TELEGRAF
from benchmarks.wrk import CONNECTIONS, READINGS
from ingest.access.token_lines import TokenEntry, digest_of, entry_line
from loadgen.measure.histogram import Histogram

THIS = "this"
ROWS_MAX = 12_000_000
MEMORY = ("--buffer-rows-max", str(ROWS_MAX), "--buffer-bytes-max", str(256 * ROWS_MAX))
HUNDREDS = Load(rows=100)
LOAD_US = 10_000_000  # between the first timestamps of two loads
QUIET_POLL_S = 0.05
SAME_SEED = {"PYTHONHASHSEED": "0"}  # a random seed makes two processes of the same code differ


# All tables of readings, and how many bytes they have on the disk.
TABLES_NOW = """from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace
and relname not like 'ingest\\_%'"""
BYTES = f"select coalesce(sum(pg_total_relation_size(oid)), 0)::int8 {TABLES_NOW}"
TRUNCATE = f"""do $$ begin execute (
    select 'truncate ' || string_agg(oid::regclass::text, ', ') {TABLES_NOW}); end $$"""


def knows(tree: Path, setting: str) -> bool:
    """Whether the code in a tree has this setting: an unknown one ends its start."""
    declared = tree.glob("ingest/**/*settings.py")
    return any(f"{setting}:" in each.read_text() for each in declared)


class Way(NamedTuple):
    """One case: what is sent, with which acknowledgement; `flags` of the service.

    `at_half`: at half the peak. `tokens`: both services want one; each of so many devices has its
    own, and sends it. `tls`: with a certificate of ECDSA, each handshake is a full one. `tables`:
    those of columns.toml are declared, if the tree knows that.
    """

    name: str
    load: Load
    ack: str
    flags: tuple[str, ...] = ()
    at_half: bool = False
    tokens: int = 0
    tls: bool = False
    tables: bool = False


WAYS = (
    Way("singles", Load(), "buffered"),
    Way("hundreds", HUNDREDS, "buffered", at_half=True),
    Way("singles_durable", Load(), "durable", JOURNAL),
    Way("hundreds_durable", HUNDREDS, "durable", JOURNAL, at_half=True),
)
_TELEGRAF = Load(rows=telegraf.ROWS, form=TELEGRAF, connections=telegraf.CONNECTIONS)
_FLEET = Load(rows=telegraf.HOSTS[FLEET].rows, form=FLEET, connections=4)
_NEW = Load(devices=100_000, closing=1.0)
# Several values of one time; all of them go to declared tables.
COLUMNS = {
    TELEGRAF: _TELEGRAF,
    MIXED: Load(rows=FORMS[MIXED].rows, form=MIXED, connections=telegraf.CONNECTIONS),
    **{form: Load(rows=FORMS[form].rows, form=form) for form in VALUES},
}
COLUMNS_HOSTS = {f"columns_telegraf_{hosts}": hosts for hosts in (500, 100_000)}
MORE_WAYS = (
    Way("singles_buffered", Load(), "buffered", JOURNAL),
    Way("singles_durable_half", Load(), "durable", JOURNAL, at_half=True),
    Way("singles_durable_512", Load(connections=512), "durable", JOURNAL),
    Way("singles_durable_new_heads", Load(new_heads=True), "durable", JOURNAL),
    *(
        Way(f"singles_committed{end}", Load(connections=connections), "committed", JOURNAL)
        for end, connections in (("", CONNECTIONS), ("_8", 8), ("_512", 512))
    ),
    Way("hundreds_committed", HUNDREDS, "committed", JOURNAL, at_half=True),
    Way("lines_singles", Load(form=LINES), "durable", JOURNAL),
    Way("lines_hundreds", HUNDREDS._replace(form=LINES), "durable", JOURNAL, at_half=True),
    Way("telegraf", _TELEGRAF, "durable", JOURNAL),
    # A fleet: many series in any order, new connections, a token for each device, few posts.
    Way("fleet_singles", _NEW, "durable", JOURNAL),
    Way("fleet_singles_tls", _NEW, "durable", JOURNAL, tls=True),
    *(
        Way(
            f"fleet_{name}_{devices}",
            HUNDREDS._replace(devices=devices, form=form),
            "durable",
            JOURNAL,
            at_half=True,
        )
        for name, form in (("hundreds", JSON), ("lines_hundreds", LINES))
        for devices in (500, 100_000, 1_000_000)
    ),
    *(
        Way(f"fleet_telegraf_{5 * hosts}", _TELEGRAF._replace(devices=hosts), "durable", JOURNAL)
        for hosts in (100, 20_000, 200_000)  # each has 5 keys of 10 fields
    ),
    *(
        Way(f"fleet_lines_{hosts}", _FLEET._replace(devices=hosts), "durable", JOURNAL)
        for hosts in (25, 1_000, 10_000)
    ),
    *(
        Way(f"fleet_tokens_{many}", Load(devices=many), "durable", JOURNAL, tokens=many)
        for many in (100, 100_000)
    ),
    *(
        Way(f"columns_{name}{end}", load._replace(twice=bool(end)), "durable", JOURNAL, tables=True)
        for name, load in COLUMNS.items()
        for end in ("", "_twice")
    ),
    *(
        Way(name, _TELEGRAF._replace(devices=hosts), "durable", JOURNAL, tables=True)
        for name, hosts in COLUMNS_HOSTS.items()
    ),
    Way("fleet_quiet", Load(rate_per_s=1_000, devices=60_000), "durable", JOURNAL),
    Way(
        "fleet_mixed",
        Load(
            rows=100,
            sizes=(*[1] * 16, *[10] * 3, 100),
            devices=1_000_000,
            repeats=0.02,
            late=0.02,
            closing=0.3,
        ),
        "durable",
        JOURNAL,
    ),
)


class Result(NamedTuple):
    """The result of one load; `took_s` until the last answer, `whole_s` until all is stored.

    `committed` are the readings that were stored, repeated ones counted each time. `table_bytes`
    are those of all tables with their indexes.
    """

    cpu_s: float
    postgres_s: float
    took_s: float
    whole_s: float
    committed: int
    tally: Tally
    table_bytes: int


def figures_of(results: Sequence[Result]) -> dict[str, float]:
    """Return the figures of several loads of one service together, by name and unit."""
    latencies = Histogram()
    for each in results:
        latencies.merge(each.tally.latencies)
    taken = sum(each.tally.taken_rows for each in results)
    committed = sum(each.committed for each in results)
    return {
        "cpu_us_per_reading": sum(each.cpu_s for each in results) / committed * 1e6,
        "readings_per_s": taken / sum(each.took_s for each in results),
        "p50_ms": latencies.quantile(0.5) * 1e3,
        "p99_ms": latencies.quantile(0.99) * 1e3,
        "postgres_us_per_reading": sum(each.postgres_s for each in results) / committed * 1e6,
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
    """Both services. `pairs` drives one case for as long as the caller asks for more; `alone`
    drives it on this tree's service only.

    `folder` takes their state folders, which stay from one start to the next. `flags` are more
    settings for this tree's service.
    """

    def __init__(
        self, folder: Path, other_tree: Path, seconds: float, flags: Sequence[str]
    ) -> None:
        self._sides = {THIS: (REPOSITORY, flags), "other": (other_tree, ())}
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
                    rows = rate_per_s * way.load.rows
                    say(f"{way.name}: at half the peak, {rows:,.0f} readings/s")
                for order in (both, both[::-1]):
                    results = self._load_both(order, way, rate_per_s)
                    yield Pair(*(figures_of(results[service]) for service in both))

    def alone(self, way: Way) -> dict[str, float]:
        """Warm up this tree's service, and return its figures. Raises Broken."""
        with next(self._services(way)) as service:
            self._load(service, way, None)
            result = self._load(service, way, None)
            per_reading = result.table_bytes / result.committed
            return {**figures_of([result]), "table_bytes_per_reading": per_reading}

    def _services(self, way: Way) -> Iterator[Service]:
        """Make this one's service, and the other one's once the first has been started."""
        for name, (tree, more) in self._sides.items():
            flags = (*MEMORY, *way.flags, *more)
            if way.tokens:
                file = self._folder / f"tokens-{way.tokens}"
                if not file.exists():
                    file.write_bytes(b"".join(map(_entry_line, range(way.tokens))))
                flags += ("--access", "token", "--tokens-file", str(file))
            if way.tls:
                cert_file, key_file = make_certificate(self._folder)
                flags += ("--tls-cert-file", str(cert_file), "--tls-key-file", str(key_file))
            if way.tables and knows(tree, "tables_file"):
                flags += ("--tables-file", str(TABLES))
            # Without that setting the table is plain too.
            table = PLAIN_TABLE if knows(tree, "partition_span") else {}
            yield Service(self._folder / name, *flags, tree=tree, env={**SAME_SEED, **table})

    def _half_peak_per_s(self, both: Sequence[Service], way: Way) -> float:
        """Return half of the posts a second that the slower one stores."""
        at_peak = self._load_both(both, way, None)
        rates = [sum(each.committed / each.whole_s for each in at_peak[of]) for of in both]
        return min(rates) / 4 / way.load.rows  # the sum of two loads, and half of the peak

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
        is_json = media_type_of(way.load.form) == "application/json"
        path = f"{READINGS}?" if is_json else "/write?precision=u&"
        load = way.load._replace(
            port=service.port,
            rate_per_s=rate_per_s or way.load.rate_per_s,
            seconds=self._seconds,
            first_us=first_us,
            target=f"{path}ack={way.ack}",
            tokens=tuple(map(_token, range(way.tokens))),
            ca_file=str(make_certificate(self._folder)[0]) if way.tls else "",
        )
        before = _stored(service.samples())
        servers_s = cpu_by_process_s(service.child.pid)
        used_s, began_s = service.child.cpu_s(), time.monotonic()
        gc.collect()
        gc.freeze()  # else a collection that walks all objects would count as latency
        _, tally = uvloop.run(send(load))
        samples = service.quiet(poll_s=QUIET_POLL_S)
        cpu_s = service.child.cpu_s() - used_s
        whole_s = time.monotonic() - began_s
        postgres_s = sum(
            each_s - servers_s.get(pid, 0.0)
            for pid, each_s in cpu_by_process_s(service.child.pid).items()
        )
        if samples["ingest_buffer_rows_max"] != ROWS_MAX:
            raise Broken("the service does not use the memory that its flags allow")
        committed = _stored(samples) - before
        if not 0 < tally.taken_rows <= committed <= ROWS_MAX:
            answers = f"answers {dict(tally.statuses)}, {tally.lost_posts} posts lost"
            raise Broken(f"{tally.taken_rows} readings taken, {committed} committed, {answers}")
        # The checkpoint is now, and not while the other service is measured.
        table_bytes = number(service.database_url, BYTES)
        execute(service.database_url, TRUNCATE, "checkpoint")
        took_s = tally.took_s if load.rate_per_s is None else self._seconds
        return Result(cpu_s, postgres_s, took_s, whole_s, committed, tally, table_bytes)


def _stored(samples: Mapping[str, float]) -> int:
    """Return how many readings the table has taken, or has had already."""
    names = "ingest_readings_committed_total", "ingest_readings_duplicate_total"
    return int(sum(samples[name] for name in names))


def _token(device: int) -> str:
    return f"token-of-device-{device:027d}"


def _entry_line(device: int) -> bytes:
    return entry_line(
        TokenEntry(f"d{device}", digest_of(_token(device)), devices=(f"device-{device:03d}",))
    )


@contextmanager
def two_services(other_tree: Path, seconds: float, flags: Sequence[str] = ()) -> Iterator[Two]:
    """Give the services of this tree and of another one a folder for one case."""
    with scratch() as folder:
        yield Two(folder, other_tree, seconds, flags)
