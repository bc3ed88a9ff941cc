"""The figures in README.md, taken from results.ndjson: nobody copies them by hand.

Pure: takes figures, gives Markdown. They are between `<!-- measured: sizing -->` and `<!-- end
measured -->`; `python -m benchmarks.results` and every recorded run write them again, and a test
compares. A figure that was not measured is left out with its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.cases import ALL, CASES
from benchmarks.contenders import Figures
from benchmarks.document import cell, median_shown, table
from benchmarks.record import Line
from benchmarks.wrk import CONNECTIONS

RESULTS = "benchmarks/RESULTS.md"
OURS = "iot-ingest, "
DEFAULT = "iot-ingest, journal, ack=durable"
POSTS = {"singles": "Single readings", "hundreds": "Posts of 100"}
COLUMNS = (
    "rows/s",
    "p50 ms",
    "p99 ms",
    "CPU of the service, µs per reading",
    "CPU of PostgreSQL, µs per reading",
    "peak memory, MiB",
)
UNKNOWN = {
    "processor": "unknown processor",
    **dict.fromkeys(("cores", "memory", "system", "python"), "?"),
}
_REGION = re.compile(r"(<!-- measured: sizing -->\n).*?(<!-- end measured -->)", re.DOTALL)


def refreshed(text: str, newest: Mapping[str, Line]) -> str:
    """Return a Markdown text with its figures printed anew; `newest` is the line of each case."""
    return _REGION.sub(lambda match: f"{match[1]}\n{sizing(newest)}\n{match[2]}", text)


def sizing(newest: Mapping[str, Line]) -> str:
    """Return the table of peaks, other figures, and the conditions of both."""
    lines = {newest[case.name].at: newest[case.name] for case in CASES if case.name in newest}
    parts = [
        _machine(list(lines.values())),
        *filter(None, (_peaks(newest, posts) for posts in POSTS)),
    ]
    if others := list(_others(newest)):
        parts.append("\n".join(others) + "\n")
    measured = {name for line in lines.values() for name in line.runs} & ALL.keys()
    if not any("durable" in ALL[name].title for name in measured):
        parts.append(
            "`ack=durable`, the default, is not among the recorded figures yet: what is called\n"
            "`buffered` here ran with `--buffer memory`.\n"
        )
    return "\n".join(parts)


def _machine(lines: Sequence[Line]) -> str:
    """Say on what, when and how it was measured; each machine, if there were several."""
    machines = dict.fromkeys(
        "{processor}, {cores} cores, {memory}, {system}, Python {python}".format_map(
            {**UNKNOWN, **line.environment}
        )
        for line in lines
    )
    days = sorted({line.at[:10] for line in lines})
    return (
        f"Measured on {'; '.join(machines)}\n"
        f"({' and '.join(days)}). Driver, service and PostgreSQL share that machine. Figures are\n"
        f"medians of several runs. At the peak, {CONNECTIONS} connections post as fast as they\n"
        "get answers. With `ack=committed` each connection waits for the commit of its batch, so\n"
        "more connections give a higher rate. All measurements, and which targets we did not\n"
        f"reach: [RESULTS.md]({RESULTS}).\n"
    )


def _peaks(newest: Mapping[str, Line], posts: str) -> str:
    """Return the table of one kind of posts: the service first, then the other contenders.

    All of it was measured in one run, since figures of two runs have no ratio: the run that shows
    most of it in RESULTS.md, and of those the last one.
    """
    by_run: dict[str, dict[str, Sequence[Figures]]] = {}
    for case in CASES:
        if case.name in newest and case.name.startswith(posts) and case.chart:
            line = newest[case.name]
            for name in case.contenders:
                # A bare handler and a bare COPY are floors: no reader has to choose them.
                is_shown = ALL[name].title.startswith(OURS) or case.name != posts
                if line.runs.get(name) and is_shown:
                    by_run.setdefault(line.at, {}).setdefault(name, line.runs[name])
    measured = max((by_run[at] for at in sorted(by_run, reverse=True)), key=len, default={})
    if not measured:
        return ""
    head = (f"{POSTS[posts]}, at the peak", *COLUMNS)
    rows = [(ALL[name].title, _cells(runs)) for name, runs in measured.items()]
    rows.sort(key=lambda row: (row[0] != DEFAULT, not row[0].startswith(OURS)))
    return "\n".join(table(head, ((_way(title), *cells) for title, cells in rows))) + "\n"


def _cells(runs: Sequence[Figures]) -> list[str]:
    """Write one row; the CPU of a reading is that of a second over the readings of a second."""
    cells = [cell(runs, each) for each in ("rows_per_s", "p50_ms", "p99_ms")]
    for cores in ("server_cores", "postgres_cores"):
        costs = [each[cores] / each["rows_per_s"] * 1e6 for each in runs if cores in each]
        cells.append(median_shown(costs))
    return [*cells, cell(runs, "rss_peak_mib")]


def _way(title: str) -> str:
    way = re.sub(r"(ack=\w+)", r"`\1`", title)
    return f"**{way}** (as delivered)" if title == DEFAULT else way


def _others(newest: Mapping[str, Line]) -> Iterator[str]:
    """Yield the other figures that a buyer of a machine needs: latency, memory, start."""
    stories = (
        (
            "half_peak",
            "- We measured the latency also at half of the peak rate, with single readings that\n"
            "  arrive at random times. (The peak was measured just before.)\n"
            "  - `durable`, with the journal, at {durable_offered_posts_per_s} readings a second: "
            "p50 {durable_p50_ms} ms, p99 {durable_p99_ms} ms.\n"
            "    A high one is a wait for the disk. An fsync waits for what else is written\n"
            "    there: beside the fsync of 200 MB of another program some 80 ms.\n"
            "  - `buffered`, with a buffer in memory, at {buffered_offered_posts_per_s} readings "
            "a second: p50 {buffered_p50_ms} ms, p99 {buffered_p99_ms} ms.\n"
            "  - `committed`, with a buffer in memory, at the same rate as `buffered`, but on\n"
            "    more connections than in the table: "
            "p50 {committed_p50_ms} ms, p99 {committed_p99_ms} ms.",
        ),
        ("idle", "- An idle connection takes {connection_kib} KiB."),
        (
            "slowed",
            "- We slowed a database until it took about {takes_rows_per_s} rows/s, and sent four "
            "times as much.\n  The service stored {four_times_rows_per_s} rows/s. This is all "
            "that the database could take: its limit differs\n  a little between runs. The other "
            "posts got 503. Acknowledged readings that were lost: {lost_rows}.",
        ),
        (
            "start",
            "- From the start to the first reading in the table: {start_to_committed_s} s (warm).",
        ),
    )
    for name, text in stories:
        runs = newest[name].runs.get(name) if name in newest else None
        wanted = re.findall(r"{(\w+)}", text)
        if runs and all(each in runs[0] for each in wanted):
            cells = {each: cell(runs, each, spread=each.endswith("p99_ms")) for each in wanted}
            yield text.format_map(cells)
