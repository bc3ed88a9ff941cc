"""The text of RESULTS.md: the conditions, and a table a case, with the columns that have figures.

Pure: takes figures, gives Markdown.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.cases import ALL, CASES, Case, Verdict, judge
from benchmarks.contenders import CPU_US, Figures
from benchmarks.record import Line

HEAD = """# Results

`./run bench` writes this page from `results.ndjson`, which has each single run. Of each case the
newest record is here.

```text
./run bench                                everything, some 40 minutes; needs `wrk`
./run bench --only singles_peers --runs 3  some cases
./run bench --quick                        does all of it work? records nothing
./run bench --against COMMIT               did a change make it slower? records nothing
```

Driver, service, PostgreSQL and peers (Debian's packages) share one machine. Each run measures each
of them in turn, on fresh data, and counts what is stored. Figures are medians; in brackets the
lowest and the highest. Usually 64 connections post as fast as they get answers, of 200 devices with
one metric. The last columns: CPU of the service or peer, and of PostgreSQL; bytes a reading on the
disk. PostgreSQL and InfluxDB 1.x answer when it is on the disk, `ack=buffered` and VictoriaMetrics
from memory. A rate of the service counts until all is in the table. It counts only until the last
answer for peers, fleets of hosts, of series and quiet ones, and tables with columns.
"""
LAST = """## What helped, what lost, and why

<!-- by hand -->
{by_hand}<!-- end -->
"""
NOT_YET = "Nothing is written here yet.\n"
Value = Callable[[Figures], float | None]


def first_of(*names: str) -> Value:
    """Return a function that gives the first figure of these that was measured."""
    return lambda run: next((run[name] for name in names if name in run), None)


rate = first_of("rows_per_s", "readings_per_s", "posts_per_s")


def cpu_us(name: str, cores: str) -> Value:
    """Return a function that gives the CPU of a reading: measured, or from the cores."""

    def value(run: Figures) -> float | None:
        per_s = rate(run)
        return run.get(name) or (run[cores] / per_s * 1e6 if per_s and cores in run else None)

    return value


COLUMNS: Mapping[str, Value] = {
    "readings/s": rate,
    "p50 ms": first_of("p50_ms"),
    "p99 ms": first_of("p99_ms"),
    "MiB": first_of("rss_peak_mib"),
    "CPU µs a reading": cpu_us(CPU_US, "server_cores"),
    "PostgreSQL": cpu_us("postgres_us_per_reading", "postgres_cores"),
    "bytes": first_of("table_bytes_per_reading"),
}


def shown(value: float) -> str:
    """Write a number for a reader: four digits that say something, thousands apart."""
    if value == 0 or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def cell(runs: Iterable[Figures], value: Value, *, spread: bool = False) -> str:
    """Return the median of a figure, with lowest and highest if asked for; empty without any."""
    values = [found for run in runs if (found := value(run)) is not None]
    if not values:
        return ""
    median = shown(statistics.median(values))
    if not spread or len(values) == 1:
        return median
    return f"{median} ({shown(min(values))} to {shown(max(values))})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; all columns but the first are numbers."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(each)} |" for each in (head, ruler, *rows)]


def machine_of(line: Line) -> str:
    """Return what the cases of a line were measured on."""
    told = "{processor}, {cores} cores, {memory}, {system}, Python {python}".format_map(
        defaultdict(lambda: "?", line.environment)
    )
    return re.sub(r"(, Linux [\d.]+)-[^,]+", r"\1", told)  # the suffix names a build of the kernel


def when(line: Line) -> str:
    """Return when and how often it was measured."""
    commit = line.commit or "unknown"
    return f"{line.at[:10]}, commit {commit}, {line.runs_wanted} runs of {line.seconds:g} s"


def whole(newest: Mapping[str, Line], by_hand: str | None) -> str:
    """Return RESULTS.md: `newest` is the line to show for each case."""
    cases = [case for case in CASES if case.name in newest]
    runs = {newest[case.name].at: newest[case.name] for case in cases}
    verdicts = [each for case in cases for each in judge(case, newest[case.name].runs)]
    missed = [each for each in verdicts if each.value is not None and not each.met]
    sections = [
        HEAD,
        f"{len(verdicts)} bounds, of which {len(missed)} were missed. The records:\n\n"
        + _told([runs[at] for at in sorted(runs)])
        + "\n",
        *(_case(case, newest[case.name], sorted(runs)) for case in cases),
        LAST.format(by_hand=NOT_YET if by_hand is None else by_hand),
    ]
    return "\n".join(sections)


def verdict_line(verdict: Verdict) -> str:
    """Return the value, the bound and the judgement on one line."""
    wanted, value = verdict
    side = "at least" if wanted.at_least else "at most"
    bound = f"{side} {wanted.bound:g} {wanted.unit}".strip()
    if value is None:
        return f"{wanted.what}: - (wanted: {bound}) left out"
    text = shown(value)
    if not verdict.met and text == shown(wanted.bound):
        text = f"{value:.4g}"  # missed by so little that it would read as met
    text = f"{text} {wanted.unit}".strip()
    return f"{wanted.what}: {text} ({bound})" + ("" if verdict.met else " **MISSED**")


def anchor(title: str) -> str:
    """Return the anchor that Markdown viewers give a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _told(lines: Sequence[Line]) -> str:
    """Return a line for each record; the machine is named where it is another one."""
    told, before = [], ""
    for number, line in enumerate(lines, 1):
        machine = machine_of(line)
        told.append(f"{number}. {when(line)}" + (f"; {machine}" if machine != before else ""))
        before = machine
    return "\n".join(told)


def _case(case: Case, line: Line, runs: Sequence[str]) -> str:
    parts = ["\n".join(f"- {verdict_line(each)}" for each in judge(case, line.runs))]
    measured = [name for name in case.contenders if any(cells_of(line.runs.get(name, ())))]
    columns = {
        column: value
        for column, value in COLUMNS.items()
        if any(cell(line.runs[name], value) for name in measured)
    }
    rows = [(ALL[name].title, *cells_of(line.runs[name], columns)) for name in measured]
    rows += [
        (label, cell(line.runs.get(name, ()), first_of(figure), spread=True))
        for label, name, figure in case.shown
    ]
    if rows:
        head = ("", *columns) if measured else ("", case.unit)
        parts.append("\n".join(table(head, rows)))
    parts += [
        f"{ALL[name].title}: {line.left_out[name]}."
        for name in case.contenders
        if name in line.left_out
    ]
    return "\n\n".join([f"## {case.title}", *parts, f"Record {runs.index(line.at) + 1}.\n"])


def cells_of(runs: Sequence[Figures], columns: Mapping[str, Value] = COLUMNS) -> list[str]:
    """Return the cells of a contender, the rate with its spread."""
    return [cell(runs, value, spread=value is rate) for value in columns.values()]
