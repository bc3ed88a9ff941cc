"""The table of speed in README.md, taken from results.ndjson: nobody copies it by hand.

Pure: takes lines, gives Markdown. It is between `<!-- measured: sizing -->` and `<!-- end measured
-->`; `python -m benchmarks.results` and every recorded run write it again, and a test compares. All
rows are of one run, since figures of two runs have no ratio: the newest of those with most rows.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from benchmarks.document import COLUMNS, cell, machine_of, rate, table, when
from benchmarks.fleets import MANY
from benchmarks.record import Line

ROWS = (  # what is sent, our contender, the peer with the same readings
    ("single readings", "singles_journal_durable", "singles_influx"),
    ("posts of 100", "hundreds_journal_durable", "hundreds_influx"),
    ("100,000 devices, each reading on a new connection", "fleet_singles", "fleet_singles_influx"),
    (
        "acknowledged: 1,000 hosts, posts of 1,000 lines of 8 fields",
        MANY,
        f"{MANY}_influx",
    ),
)
SHOWN = ("readings/s", "p50 ms", "p99 ms", "CPU µs a reading", "PostgreSQL")  # of COLUMNS
OTHERS = ("PostgreSQL's CPU µs", "InfluxDB 1.x, readings/s", "its CPU µs")
NOT_YET = "Nothing is measured yet.\n"
_REGION = re.compile(r"(<!-- measured: sizing -->\n).*?(<!-- end measured -->)", re.DOTALL)


def refreshed(text: str, lines: Sequence[Line]) -> str:
    """Return a Markdown text with its figures printed anew; `lines` are all, oldest first."""
    return _REGION.sub(lambda match: f"{match[1]}\n{speed(lines)}\n{match[2]}", text)


def speed(lines: Sequence[Line]) -> str:
    """Return the table, and in one sentence how it was measured."""
    line = max(reversed(lines), key=lambda each: len(_rows(each)), default=None)
    if line is None or not (rows := _rows(line)):
        return NOT_YET
    head = ("`ack=durable`", "readings/s stored", *SHOWN[1:-1], *OTHERS)
    how = (
        f"Measured on {machine_of(line)}: {when(line)}; medians. Driver, service and databases "
        "share this machine; all connections post as fast as they get answers. Rates end when all "
        "is in the table; in the last row, and for InfluxDB, at the last answer."
    )
    wrapped = textwrap.wrap(how, 120, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*table(head, rows), "", *wrapped, ""])


def _rows(line: Line) -> list[list[str]]:
    return [
        [
            title,
            *(cell(line.runs[mine], COLUMNS[name]) for name in SHOWN),
            cell(line.runs.get(peer, ()), rate),
            cell(line.runs.get(peer, ()), COLUMNS["CPU µs a reading"]),
        ]
        for title, mine, peer in ROWS
        if line.runs.get(mine)
    ]
