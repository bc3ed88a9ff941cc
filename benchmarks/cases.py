"""The claims, and the figures that show them: the cases that `--only` names.

A case names its contenders (measured alternately, in every run) and the bounds of their medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from benchmarks import wrk
from benchmarks.alternating import COLUMNS_HOSTS
from benchmarks.contenders import CONTENDERS, CPU_US, Contender, Figures
from benchmarks.fleets import FLEETS, HOSTS, MANY, MIXED, QUIET
from benchmarks.floors import COPY_BATCHES
from benchmarks.overload import OVERLOADS
from benchmarks.stories import STORIES

ALL: dict[str, Contender] = {
    each.name: each for each in (*CONTENDERS, *OVERLOADS, *STORIES, *FLEETS)
}
FEW_HOSTS, MANY_HOSTS = COLUMNS_HOSTS
Runs = Mapping[str, list[Figures]]  # by contender
Medians = Callable[[str, str], float]  # of contender and figure


class Wanted(NamedTuple):
    """A bound on one number: `at_least` or, if that is False, at most `bound`.

    `value` takes the medians; it raises KeyError or StatisticsError if a contender was left out.
    """

    what: str
    value: Callable[[Medians], float]
    bound: float
    at_least: bool = True
    unit: str = ""


class Case(NamedTuple):
    """One claim.

    `shown` are figures of its own (label, contender, figure), in `unit`.
    """

    name: str
    title: str
    contenders: tuple[str, ...]
    wanted: tuple[Wanted, ...]
    shown: tuple[tuple[str, str, str], ...] = ()
    unit: str = ""


class Verdict(NamedTuple):
    """A bound and its value, which is None if a contender of it was left out."""

    wanted: Wanted
    value: float | None

    @property
    def met(self) -> bool:
        """Whether the bound is kept."""
        wanted, value = self
        if value is None:
            return False
        return value >= wanted.bound if wanted.at_least else value <= wanted.bound


def ratio(
    mine: str, its: str, figure: str = "rows_per_s", its_figure: str = ""
) -> Callable[[Medians], float]:
    """Return one contender's figure over another one's."""
    return lambda of: of(mine, figure) / of(its, its_figure or figure)


def figure(contender: str, name: str) -> Callable[[Medians], float]:
    """Return one figure unchanged."""
    return lambda of: of(contender, name)


def cpu_of_floor(mine: str, floor: str) -> Callable[[Medians], float]:
    """Return the CPU of a reading over that of a post to a floor, which keeps nothing."""

    def value(of: Medians) -> float:
        own = of(mine, "server_cores") / of(mine, "rows_per_s")
        return own * of(floor, "posts_per_s") / of(floor, "server_cores")

    return value


def cpu_of_both(of: Medians, name: str = QUIET) -> float:
    """Return the CPU of a reading of the quiet fleet, or of another one, that of PostgreSQL too."""
    return of(name, CPU_US) + of(name, "postgres_us_per_reading")


def _columns(name: str, table_bytes: float, of_influx: float | None = None) -> Case:
    """Return the case of a load whose readings go to tables with columns."""
    mine = f"columns_{name}"
    value = figure(mine, "table_bytes_per_reading")
    wanted = [Wanted("bytes a reading on disk", value, table_bytes, at_least=False)]
    if of_influx is not None:
        wanted.append(
            Wanted(
                "CPU a reading of service and PostgreSQL, divided by that of InfluxDB",
                lambda of: cpu_of_both(of, mine) / of(f"{mine}_influx", CPU_US),
                of_influx,
                at_least=False,
            )
        )
    return Case(
        mine,
        f"Tables with columns: {name.replace('_', ' ')}, beside InfluxDB",
        tuple(mine + end for end in ("_influx", "", "_twice_influx", "_twice")),
        tuple(wanted),
    )


def of_copy(of: Medians) -> float:
    """Return the committed rate over the better of the COPY floors."""
    floor = max(of(f"copy_{rows}", "rows_per_s") for rows in COPY_BATCHES)
    return of("hundreds", "rows_per_s") / floor


def _beside_peers(script: str) -> tuple[str, ...]:
    ours = [script + end for end in ("", "_committed", "_journal_durable", "_lines_durable")]
    return (f"{script}_influx", f"{script}_victoria", *ours)


def _of_influx(script: str, bound: float, lines_bound: float) -> tuple[Wanted, ...]:
    """InfluxDB answers after an fsync, as `durable` does; the aim is older than `durable`."""
    return tuple(
        Wanted(
            f"rows/s with {way}, divided by those of InfluxDB",
            ratio(mine, f"{script}_influx"),
            least,
        )
        for way, mine, least in (
            ("ack=buffered", script, bound),
            ("ack=durable", f"{script}_journal_durable", bound),
            ("line protocol and ack=durable", f"{script}_lines_durable", lines_bound),
        )
    )


CASES = (
    Case(
        "singles",
        "Single readings, beside a bare aiohttp handler",
        ("bare", "singles"),
        (
            Wanted(
                "committed rows/s, divided by the bare handler's posts/s",
                ratio("singles", "bare", "rows_per_s", "posts_per_s"),
                0.85,
            ),
        ),
    ),
    Case(
        "hundreds",
        "Posts of 100, beside COPY of ready bytes",
        (*(f"copy_{rows}" for rows in COPY_BATCHES), "hundreds"),
        (Wanted("rows/s, divided by those of the better COPY", of_copy, 0.75),),
    ),
    Case(
        "singles_inserts",
        "Single readings, beside one INSERT per request",
        ("singles_inserts", "singles_inserts_tuned", "singles"),
        (
            Wanted(
                "rows/s, divided by those of one INSERT per request",
                ratio("singles", "singles_inserts"),
                6,
            ),
        ),
    ),
    Case(
        "hundreds_inserts",
        "Posts of 100, beside one INSERT per reading",
        ("hundreds_inserts", "hundreds"),
        (
            Wanted(
                "rows/s, divided by those of one INSERT per reading",
                ratio("hundreds", "hundreds_inserts"),
                40,
            ),
        ),
    ),
    Case(
        "singles_peers",
        "Single readings, beside InfluxDB and VictoriaMetrics",
        _beside_peers("singles"),
        _of_influx("singles", 1.0, 1.0),
    ),
    Case(
        "hundreds_peers",
        "Posts of 100, beside InfluxDB and VictoriaMetrics",
        _beside_peers("hundreds"),
        _of_influx("hundreds", 0.8, 0.55),
    ),
    Case(
        "telegraf_peers",
        "Posts as Telegraf's (1,000 lines of 10 fields, gzip), beside InfluxDB and VictoriaMetrics",
        ("telegraf_influx", "telegraf_victoria", "telegraf_lines_durable"),
        (
            Wanted(
                "rows/s with ack=durable, divided by those of InfluxDB",
                ratio("telegraf_lines_durable", "telegraf_influx"),
                0.4,
            ),
        ),
    ),
    *(
        Case(
            f"{script}_durable",
            f"{kind}: what a journal and an fsync before the answer cost",
            (script, f"{script}_journal_buffered", f"{script}_journal_durable"),
            (
                Wanted(
                    "rows/s with ack=durable, divided by ack=buffered on the same journal",
                    ratio(f"{script}_journal_durable", f"{script}_journal_buffered"),
                    bound,
                ),
                Wanted(
                    "rows/s with ack=durable, divided by ack=buffered in memory",
                    ratio(f"{script}_journal_durable", script),
                    bound,
                ),
            ),
        )
        for script, kind, bound in (
            ("singles", "Single readings", 0.75),
            ("hundreds", "Posts of 100", 0.9),
        )
    ),
    Case(
        "library_singles",
        "As a library: single readings, in an app of aiohttp and to the service",
        ("bare", "singles_web", "singles_journal_durable"),
        (
            Wanted(
                "posts/s of the service's own protocol, divided by those of the app: below this "
                "the own protocol goes",
                ratio("singles_journal_durable", "singles_web", "posts_per_s"),
                1.25,
            ),
        ),
    ),
    Case(
        "library",
        "As a library: 100 readings, in an app of aiohttp, put without HTTP, and to the service",
        ("hundreds_web", "put_1", "put_64", "hundreds_journal_durable"),
        (
            Wanted(
                "rows/s that 64 tasks put, divided by those of the service",
                ratio("put_64", "hundreds_journal_durable"),
                0.8,
            ),
        ),
    ),
    Case(
        "fleet_singles",
        "A fleet: single readings of 100,000 devices, each on a new connection",
        ("fleet_singles_influx", "fleet_floor", wrk.NEW, "fleet_floor_tls", wrk.NEW_TLS),
        tuple(
            Wanted(
                f"CPU of the service a reading{title}, divided by that of the floor",
                cpu_of_floor(f"fleet_singles{end}", f"fleet_floor{end}"),
                bound,
                at_least=False,
            )
            for end, title, bound in (("", "", 2.8), ("_tls", ", with TLS", 1.75))
        ),
    ),
    Case(
        "fleet_lines",
        "A fleet of hosts, each with 20 keys of 8 fields, in posts of 1,000 lines",
        (f"{MANY}_influx", *HOSTS),
        tuple(
            Wanted(
                f"CPU of the service a reading with {title}, divided by that with 25",
                ratio(name, "fleet_lines_25", CPU_US),
                1.3,
                at_least=False,
            )
            for name, title in HOSTS.items()
            if name != "fleet_lines_25"
        ),
    ),
    *(
        Case(
            name,
            title,
            (name,),
            (Wanted(what, value, bound, at_least=False, unit=unit),),
        )
        for name, title, what, value, bound, unit in (
            (
                MIXED,
                "A fleet of 1,000,000 series: 1, 10 or 100 readings a post, 30 % on new "
                "connections, some repeated, some late",
                "p99 at the peak",
                figure(MIXED, "p99_ms"),
                50,
                "ms",
            ),
            (
                QUIET,
                "A quiet fleet: 60,000 devices, a reading a minute, open loop",
                "CPU of a post, the service and PostgreSQL",
                cpu_of_both,
                215,
                "us",
            ),
        )
    ),
    *(
        _columns(*each)
        for each in (
            ("telegraf", 25, 0.6),
            ("telegraf_mixed", 25, 0.85),
            ("values_10_100", 25),
            ("values_4_100", 45),
            ("values_10_1", 25),
            ("values_4_1", 45),
        )
    ),
    Case(
        "columns_hosts",
        "Tables with columns: posts as Telegraf's, of many hosts",
        (FEW_HOSTS, MANY_HOSTS),
        (
            Wanted(
                "CPU a reading of service and PostgreSQL with 100,000 hosts, by that with 500",
                lambda of: cpu_of_both(of, MANY_HOSTS) / cpu_of_both(of, FEW_HOSTS),
                1.7,
                at_least=False,
            ),
        ),
    ),
    Case(
        "slowed",
        "Database slowed to a quarter, then open loop at 2 and 4 times what it takes",
        ("slowed", "slowed_singles"),
        tuple(
            wanted
            for name, kind in (("slowed", "posts of 100"), ("slowed_singles", "single readings"))
            for wanted in (
                Wanted(
                    f"{kind}: committed rows/s, divided by what the database takes",
                    figure(name, "least_of_takes"),
                    0.95,
                ),
                Wanted(f"{kind}: readings lost", figure(name, "lost_rows"), 0, at_least=False),
                Wanted(
                    f"{kind}: RSS after the later floods, divided by RSS after the first",
                    figure(name, "rss_growth"),
                    1.1,
                    at_least=False,
                ),
            )
        ),
        shown=tuple(
            (f"{kind}: {label}", name, f"{key}_rows_per_s")
            for name, kind in (("slowed", "posts of 100"), ("slowed_singles", "singles"))
            for key, label in (
                ("takes", "what it takes"),
                ("twice", "offered twice that"),
                ("four_times", "offered four times that"),
            )
        ),
        unit="rows/s committed",
    ),
    Case(
        "half_peak",
        "Latency of single readings at half their peak, open loop",
        ("half_peak",),
        tuple(
            Wanted(
                f"p99, ack={ack}",
                figure("half_peak", f"{ack}_p99_ms"),
                bound,
                at_least=False,
                unit="ms",
            )
            for ack, bound in (("buffered", 5), ("committed", 40))
        ),
        shown=tuple(
            (f"ack={ack}, {label}", "half_peak", f"{ack}_{key}_ms")
            for ack in ("buffered", "durable", "committed")
            for key, label in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9"))
        ),
        unit="ms from the intended moment to the answer",
    ),
    Case(
        "idle",
        "Beside 5,000 idle keep-alive connections",
        ("idle",),
        (
            Wanted(
                "memory of one connection",
                figure("idle", "connection_kib"),
                40,
                at_least=False,
                unit="KiB",
            ),
            Wanted("peak, divided by the peak without them", figure("idle", "of_alone"), 0.95),
        ),
    ),
    Case(
        "start",
        "Service start to the first committed reading, warm",
        ("start",),
        (
            Wanted(
                "start to commit",
                figure("start", "start_to_committed_s"),
                1.5,
                at_least=False,
                unit="s",
            ),
        ),
    ),
)
BY_NAME = {case.name: case for case in CASES}


def judge(case: Case, runs: Runs) -> list[Verdict]:
    """Return a verdict for each bound of a case."""

    def median(contender: str, figure: str) -> float:
        return statistics.median(each[figure] for each in runs[contender])

    def value(wanted: Wanted) -> float | None:
        with suppress(KeyError, ZeroDivisionError, statistics.StatisticsError):
            return wanted.value(median)
        return None

    return [Verdict(wanted, value(wanted)) for wanted in case.wanted]
