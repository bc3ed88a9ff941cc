"""The text of RESULTS.md: what is wanted and what came, the conditions, a table a case.

Pure: takes figures, gives Markdown.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence

from benchmarks.attack import ORDINARY_PER_S
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
    "rss_peak_mib": "peak RSS MiB",
    "table_rows_before": "rows in the table before",
}

HEAD = """# Results

Written by `./run bench` from `results.ndjson`, which has the figures of every single run. Only the
last section is written by hand. How to measure it yourself: `./run bench` (some 30 minutes, needs
`wrk` and 8 GB of disk; the peers come from Debian's packages by themselves), `./run bench --quick`
to see that it works, `./run bench --only singles,hundreds --runs 3` for some of it. Whether a
change made it slower: `./run bench --against COMMIT`, which writes nothing here.
"""

CONDITIONS = """## Conditions

- Driver, service, PostgreSQL and peers share one machine, so the driver's CPU is a cost to all;
  it is given with each figure (cores: CPU seconds a second). Peaks are closed loop, by wrk: one
  thread, {connections} connections. Latencies are open loop, by loadgen's driver: posts come at
  random moments (Poisson), and their time counts from the moment at which they were due.
- Contenders take turns: each run measures every one of them once, on fresh data, after a second of
  warming up. Figures are medians of all runs; in brackets the lowest and the highest.
- The same readings everywhere (200 devices, one metric), as JSON or as line protocol; every
  timestamp is new. After each run the rows in the table (or the peer's own count) are compared with
  what was answered; a difference fails the run.
- `rows/s` of iot-ingest are committed rows, from the first post until the last row is in the table.
- Durability. PostgreSQL: `fsync`, `full_page_writes` and `synchronous_commit` on; a committed row
  survives a power cut. iot-ingest runs with `--buffer memory`, not with its default, the journal,
  unless a journal is named: `ack=buffered`, which is meant where no other is named, answers when
  the reading is in its memory; `ack=durable` when it is in the journal and fsynced; `ack=committed`
  after the commit. InfluxDB 1.x answers after an fsync of its WAL
  (`wal-fsync-delay` 0, its default). VictoriaMetrics answers from memory and writes within 5 s
  (`inmemoryDataFlushInterval`, its default); a crash loses those. It keeps only milliseconds.
- The slowed database: the service has one writer, on a line that takes a quarter of the bytes a
  second that the same load reached just before, and a buffer that holds a second of that. What is
  taken then is measured with a full buffer; offered are 2 and 4 times as much over {many:,}
  connections. Committed rates are counted from the first commit seen to the last.
  A reading with a 2xx is looked for by its timestamp. What wrk was told to be kept can only be
  counted: it does not say which readings those were.
- Idle connections: memory counts from a service that has had no post. The peaks beside and without
  them take turns (beside, alone, alone, beside), each into a fresh table.
- The attack: {ordinary:,} single readings a second, open loop, alone and beside each attack, on one
  service; then all of that again. Attackers are processes of their own, on the same cores.
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


def whole(
    newest: Mapping[str, Line], lines: Sequence[Line], drawn: Collection[str], by_hand: str | None
) -> str:
    """Return RESULTS.md: `newest` is the line to show for each case, `drawn` has a picture."""
    cases = [case for case in CASES if case.name in newest]
    with_parts = [line for line in lines if line.parts]
    sections = [
        HEAD,
        _in_short(cases, newest),
        CONDITIONS.format(connections=CONNECTIONS, many=MANY_CONNECTIONS, ordinary=ORDINARY_PER_S)
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
    """Return what is wanted and what came on one line."""
    wanted = verdict.wanted
    return f"{wanted.what}: {_value(verdict)} (wanted: {_bound(verdict)}) {_word(verdict)}"


def _word(verdict: Verdict) -> str:
    if verdict.value is None:
        return "left out"
    return "met" if verdict.met else "MISSED"


def _value(verdict: Verdict) -> str:
    if verdict.value is None:
        return "-"
    value = shown(verdict.value)
    if not verdict.met and value == shown(verdict.wanted.bound):
        value = f"{verdict.value:.4g}"  # missed by so little that it would read as met
    return f"{value} {verdict.wanted.unit}".strip()


def _bound(verdict: Verdict) -> str:
    wanted = verdict.wanted
    side = "at least" if wanted.at_least else "at most"
    return f"{side} {wanted.bound:g} {wanted.unit}".strip()


def _in_short(cases: Sequence[Case], newest: Mapping[str, Line]) -> str:
    rows = ["| case | | measured | wanted | |", "| --- | --- | --- | --- | --- |"]
    for case in cases:
        for verdict in judge(case, newest[case.name].runs):
            rows.append(
                f"| [{case.title}](#{anchor(case.title)}) | {verdict.wanted.what} "
                f"| {_value(verdict)} | {_bound(verdict)} | {_word(verdict)} |"
            )
    return "## In short\n\n" + "\n".join(rows) + "\n"


def anchor(title: str) -> str:
    """Return the anchor that Markdown viewers give a heading."""
    kept = "".join(each for each in title.lower() if each.isalnum() or each in " -_")
    return kept.replace(" ", "-")


def _machines(cases: Sequence[Case], newest: Mapping[str, Line]) -> str:
    """Name the machine; each one, if the cases come from several."""
    found: list[dict[str, str]] = []
    for case in cases:
        environment = {
            name: value for name, value in newest[case.name].environment.items() if name != "fsync"
        }
        if environment not in found:
            found.append(environment)
    tables = []
    for environment in found:
        rows = [f"| {name} | {value} |" for name, value in environment.items()]
        tables.append("\n".join(["| machine | |", "| --- | --- |", *rows]))
    return "\n\n".join(tables) + "\n"


def _case(case: Case, line: Line, has_chart: bool) -> str:
    lines = [
        f"## {case.title}",
        "",
        *[f"- {verdict_line(each)}" for each in judge(case, line.runs)],
    ]
    if has_chart:
        lines += ["", f"![{case.title}](charts/{case.name}.svg)"]
    measured = {name: line.runs[name] for name in case.contenders if line.runs.get(name)}
    if measured:
        lines += ["", *(_compared if case.chart else _told)(case, measured)]
    for name in case.contenders:
        if name in line.left_out:
            lines += ["", f"{ALL[name].title}: {line.left_out[name]}."]
    fsync = line.environment.get("fsync", "not measured")
    lines += [
        "",
        f"{line.at}, commit {line.commit or 'unknown'}, {line.runs_wanted} runs of "
        f"{line.seconds:g} s, fdatasync {fsync}.",
    ]
    return "\n".join(lines) + "\n"


def _compared(case: Case, measured: Mapping[str, Sequence[Figures]]) -> list[str]:
    """A row a contender, a column a figure; the spread only of the one that counts."""
    figures = [each for each in TITLES if any(each in runs[0] for runs in measured.values())]
    lines = [
        "| | " + " | ".join(title_of(each) for each in figures) + " |",
        "| --- |" + " ---: |" * len(figures),
    ]
    for name, runs in measured.items():
        cells = [cell(runs, each, spread=each == case.chart) for each in figures]
        lines.append(f"| {ALL[name].title} | " + " | ".join(cells) + " |")
    return lines


def _told(_case: Case, measured: Mapping[str, Sequence[Figures]]) -> list[str]:
    """A row a figure, a column a story."""
    figures = list(dict.fromkeys(each for runs in measured.values() for each in runs[0]))
    lines = [
        "| | " + " | ".join(ALL[name].title for name in measured) + " |",
        "| --- |" + " ---: |" * len(measured),
    ]
    for figure in figures:
        cells = [cell(runs, figure, spread=True) for runs in measured.values()]
        lines.append(f"| {title_of(figure)} | " + " | ".join(cells) + " |")
    return lines


def cell(runs: Sequence[Figures], figure: str, *, spread: bool) -> str:
    """Return a median, with lowest and highest if there was more than one run."""
    values = sorted(each[figure] for each in runs if figure in each)
    if not values:
        return ""
    median = shown(statistics.median(values))
    if not spread or len(values) == 1:
        return median
    return f"{median} ({shown(values[0])} to {shown(values[-1])})"


def _parts(line: Line) -> str:
    rows = [f"| `{name}` | {seconds_shown(each)} |" for name, each in line.parts.items()]
    return "\n".join(
        [
            "## The parts, each alone",
            "",
            f"Medians of pytest-benchmark, {line.at}, commit {line.commit or 'unknown'}.",
            "",
            "| benchmark | median |",
            "| --- | ---: |",
            *rows,
            "",
        ]
    )


def seconds_shown(seconds: float) -> str:
    """Write a duration in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:,.2f} {unit}"
    return f"{seconds * 1e9:,.0f} ns"
