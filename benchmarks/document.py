"""The text of RESULTS.md: bounds and values, the conditions, a table a case.

Pure: takes figures, gives Markdown.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence

from benchmarks.cases import ALL, CASES, Case, Verdict, judge
from benchmarks.charts import shown
from benchmarks.contenders import Figures
from benchmarks.overload import MANY_CONNECTIONS
from benchmarks.record import Line
from benchmarks.wrk import CONNECTIONS

TITLES = {
    "posts_per_s": "posts/s",
    "rows_per_s": "rows/s",
    "refused_posts": "refused posts",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "server_cores": "server cores",
    "postgres_cores": "PostgreSQL cores",
    "driver_cores": "driver cores",
    "cpu_us_per_reading": "CPU us a reading",
    "postgres_us_per_reading": "CPU us a reading of PostgreSQL",
    "readings_per_s": "readings/s",
    "rss_peak_mib": "peak RSS MiB",
    "table_rows_before": "rows in the table before",
}

HEAD = """# Results

`./run bench` writes this file from `results.ndjson`, which has the figures of every single run.
Only the last section is written by hand. To measure yourself, run `./run bench`. It takes some 30
minutes, needs `wrk` and some GB of disk, and fetches Debian's packages of other tools ("peers").
`./run bench --quick` shows that everything works. `./run bench --only singles,hundreds --runs 3`
measures some cases. `./run bench --against COMMIT` shows whether a change made the service slower,
and writes nothing here.
"""

CONDITIONS = """## Conditions

- Driver, service, PostgreSQL and peers share one machine, so the CPU that the driver uses is not
  there for the others. The CPU of the driver is given with each figure (in cores: seconds of CPU
  for each second).
- Peaks are measured by wrk in a closed loop, with one thread and {connections} connections.
  Latencies are measured by loadgen's driver in an open loop: posts are sent at random moments
  (Poisson), and the latency of a post begins at the moment when it was due.
- Contenders alternate: each run measures every one of them once, on fresh data, after a second of
  warming up. Figures are medians of all runs; in brackets the lowest and the highest.
- All contenders get the same readings (200 devices, one metric; a fleet has more), as JSON or as
  line protocol. No timestamp is used twice. After each run the rows in the table (or the peer's own
  count) are compared with what was answered; a difference fails the run.
- `rows/s` of iot-ingest are committed rows, from the first post until the last row is in the table.
- Durability. PostgreSQL has `fsync`, `full_page_writes` and `synchronous_commit` on, so a committed
  row survives a power cut. iot-ingest runs with `--buffer memory`, except where a table says
  "journal" (which is the default of the service). It runs with `ack=buffered`, except where a table
  says another `ack`. With `ack=buffered` it answers when the reading is in its memory, with
  `ack=durable` when the reading is in the journal and fsynced, and with `ack=committed` after the
  commit. InfluxDB 1.x answers after an fsync of its WAL (`wal-fsync-delay` 0, its default).
  VictoriaMetrics answers from memory and writes within 5 s (`inmemoryDataFlushInterval`, its
  default); a crash loses those readings. It keeps only milliseconds.
- The slowed database: the service has one writer. First the load runs at full speed. Then the
  connection of the writer is limited to a quarter of the bytes a second that were just measured,
  and the buffer is made large enough for one second at this rate. The rate that the database can
  take is measured while the buffer is full. Then 2 and 4 times that rate is sent over {many:,}
  connections. Committed rates are counted from the first commit seen to the last. Each reading with
  a 2xx is searched by its timestamp. Readings that wrk has sent can only be counted, because wrk
  does not say which readings got a 2xx.
- Idle connections: their memory is what the service takes in addition to the memory of a service
  that has had no post. The peaks with and without them alternate (with, without, without, with),
  each into a fresh table.
- "One INSERT per request" is what people write first: aiohttp, `json.loads`, an asyncpg pool with
  its defaults, one INSERT and one transaction a reading, into the same table.
"""

NOT_YET = "Nothing is written here yet.\n"


def title_of(figure: str) -> str:
    """Return what a reader calls a figure."""
    if figure in TITLES:
        return TITLES[figure]
    for name, unit in (
        ("_rows_per_s", " rows/s"),
        ("_posts_per_s", " posts/s"),
        ("_ms", " ms"),
        ("_mib", " MiB"),
        ("_kib", " KiB"),
        ("_us", " us"),
        ("_s", " s"),
    ):
        if figure.endswith(name):
            return figure.removesuffix(name).replace("_", " ") + unit
    return figure.replace("_", " ")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> list[str]:
    """Return the lines of a table; all columns but the first are `numbers`, or texts."""
    ruler = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return [f"| {' | '.join(each)} |" for each in (head, ruler, *rows)]


def whole(
    newest: Mapping[str, Line], lines: Sequence[Line], drawn: Collection[str], by_hand: str | None
) -> str:
    """Return RESULTS.md: `newest` is the line to show for each case, `drawn` has a picture."""
    cases = [case for case in CASES if case.name in newest]
    with_parts = [line for line in lines if line.parts]
    sections = [
        HEAD,
        _in_short(cases, newest),
        CONDITIONS.format(connections=CONNECTIONS, many=MANY_CONNECTIONS)
        + "\n"
        + _machines(cases, newest),
        *(_case(case, newest[case.name], case.name in drawn) for case in cases),
        *([_parts(with_parts[-1])] if with_parts else []),
        "## What helped, what lost, and why\n\n<!-- by hand -->\n"
        + (NOT_YET if by_hand is None else by_hand)
        + "<!-- end -->\n",
    ]
    return "\n".join(sections)


def verdict_line(verdict: Verdict) -> str:
    """Return the value, the bound and the judgement on one line."""
    value, bound, judgement = _texts(verdict)
    return f"{verdict.wanted.what}: {value} (wanted: {bound}) {judgement}"


def _texts(verdict: Verdict) -> tuple[str, str, str]:
    """Return the value, the bound and the judgement."""
    wanted, value = verdict
    side = "at least" if wanted.at_least else "at most"
    bound = f"{side} {wanted.bound:g} {wanted.unit}".strip()
    if value is None:
        return "-", bound, "left out"
    text = shown(value)
    if not verdict.met and text == shown(wanted.bound):
        text = f"{value:.4g}"  # missed by so little that it would read as met
    return f"{text} {wanted.unit}".strip(), bound, "met" if verdict.met else "MISSED"


def _in_short(cases: Sequence[Case], newest: Mapping[str, Line]) -> str:
    rows = [
        (f"[{case.title}](#{anchor(case.title)})", verdict.wanted.what, *_texts(verdict))
        for case in cases
        for verdict in judge(case, newest[case.name].runs)
    ]
    lines = table(("case", "", "measured", "wanted", ""), rows, numbers=False)
    return "## In short\n\n" + "\n".join(lines) + "\n"


def anchor(title: str) -> str:
    """Return the anchor that Markdown viewers give a heading."""
    kept = "".join(each for each in title.lower() if each.isalnum() or each in " -_")
    return kept.replace(" ", "-")


def _machines(cases: Sequence[Case], newest: Mapping[str, Line]) -> str:
    """Name the machine; each one, if the cases come from several."""
    found: list[dict[str, str]] = []
    for case in cases:
        environment = {**newest[case.name].environment}
        environment.pop("fsync", None)
        if environment not in found:
            found.append(environment)
    tables = (table(("machine", ""), each.items(), numbers=False) for each in found)
    return "\n\n".join(map("\n".join, tables)) + "\n"


def _case(case: Case, line: Line, has_chart: bool) -> str:
    lines = [
        f"## {case.title}",
        "",
        *[f"- {verdict_line(each)}" for each in judge(case, line.runs)],
    ]
    if has_chart:
        lines += ["", f"![{case.title}](charts/{case.name}.svg)"]
    if measured := {name: line.runs[name] for name in case.contenders if line.runs.get(name)}:
        lines += ["", *_figures(case, measured)]
    for name in case.contenders:
        if name in line.left_out:
            lines += ["", f"{ALL[name].title}: {line.left_out[name]}."]
    fsync = line.environment.get("fsync", "not measured")
    lines += [
        "",
        f"{_when(line)}, {line.runs_wanted} runs of {line.seconds:g} s, fdatasync {fsync}.",
    ]
    return "\n".join(lines) + "\n"


def _when(line: Line) -> str:
    return f"{line.at}, commit {line.commit or 'unknown'}"


def _figures(case: Case, measured: Mapping[str, Sequence[Figures]]) -> list[str]:
    """Return a table.

    With a chart: a row a contender, a column a figure, the spread only of the charted figure. Else
    a row a figure, a column a contender.
    """
    figures = dict.fromkeys(each for runs in measured.values() for each in runs[0])
    titles = {name: ALL[name].title for name in measured}
    if not case.chart:
        return table(
            ("", *titles.values()),
            (
                (title_of(each), *(cell(runs, each, spread=True) for runs in measured.values()))
                for each in figures
            ),
        )
    columns = [each for each in TITLES if each in figures]
    return table(
        ("", *map(title_of, columns)),
        (
            (titles[name], *(cell(runs, each, spread=each == case.chart) for each in columns))
            for name, runs in measured.items()
        ),
    )


def cell(runs: Sequence[Figures], figure: str, *, spread: bool = False) -> str:
    """Return the median of one figure of all runs."""
    return median_shown([each[figure] for each in runs if figure in each], spread=spread)


def median_shown(values: Sequence[float], *, spread: bool = False) -> str:
    """Return a median, with lowest and highest if there are several values; empty without any."""
    if not values:
        return ""
    median = shown(statistics.median(values))
    if not spread or len(values) == 1:
        return median
    return f"{median} ({shown(min(values))} to {shown(max(values))})"


def _parts(line: Line) -> str:
    rows = [(f"`{name}`", seconds_shown(each)) for name, each in line.parts.items()]
    return "\n".join(
        [
            "## The parts, each alone",
            "",
            f"Medians of pytest-benchmark, {_when(line)}.",
            "",
            *table(("benchmark", "median"), rows),
            "",
        ]
    )


def seconds_shown(seconds: float) -> str:
    """Write a duration in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:,.2f} {unit}"
    return f"{seconds * 1e9:,.0f} ns"
