"""The record: one line a run in results.ndjson, and RESULTS.md made from it.

RESULTS.md shows each case from the newest line that measured it. The text between the markers `by
hand` and `end` is the author's and stays. `python -m benchmarks.results` only writes RESULTS.md,
its charts and the figures of README.md again.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

from benchmarks import document, readme_numbers
from benchmarks.cases import ALL, CASES, Case, Runs, judge
from benchmarks.charts import Bar, bars, shown
from benchmarks.contenders import Figures
from benchmarks.record import LINES, Line, newest_of, read

FOLDER = Path(__file__).resolve().parent
DOCUMENT, CHARTS = "RESULTS.md", "charts"
README = FOLDER.parent / "README.md"
BY_HAND = re.compile(r"<!-- by hand -->\n(.*?)<!-- end -->", re.DOTALL)


def record(line: Line, folder: Path) -> None:
    """Append a line, and write RESULTS.md and its charts again."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LINES).open("a") as file:
        file.write(json.dumps(line._asdict()) + "\n")
    write(folder)


def write(folder: Path) -> None:
    """Write RESULTS.md and its charts from results.ndjson, and keep the text by hand."""
    lines = read(folder)
    path = folder / DOCUMENT
    old = path.read_text() if path.exists() else ""
    by_hand = BY_HAND.search(old)
    newest = newest_of(lines)
    charts = folder / CHARTS
    charts.mkdir(exist_ok=True)
    drawn = set()
    for case in CASES:
        if case.name in newest and (picture := chart(case, newest[case.name].runs)):
            (charts / f"{case.name}.svg").write_text(picture)
            drawn.add(case.name)
    path.write_text(document.whole(newest, lines, drawn, by_hand[1] if by_hand else None))
    if folder.resolve() == FOLDER:
        README.write_text(readme_numbers.refreshed(README.read_text(), newest))


def chart(case: Case, runs: Runs) -> str:
    """Return the picture of a case as SVG; empty if it has none, or nothing was measured."""
    charted = [(ALL[name].title, name, case.chart) for name in case.contenders]
    drawn = [
        Bar(label, values, ours=label.startswith("iot-ingest") or not case.chart)
        for label, name, figure in (charted if case.chart else case.bars)
        if (values := [each[figure] for each in runs.get(name, []) if figure in each])
    ]
    return bars(case.title, case.unit or document.title_of(case.chart), drawn) if drawn else ""


def brief(figures: Figures) -> str:
    """Return the figures of one run on one line."""
    return ", ".join(f"{name}={shown(value)}" for name, value in figures.items())


def plain(case: Case, runs: Runs) -> str:
    """Return a case for a terminal: medians, spreads of the main figures, and the bounds."""
    lines = [case.title]
    for name in case.contenders:
        measured = runs.get(name, [])
        texts = {
            figure: f"{document.title_of(figure)} {document.cell(measured, figure, spread=main)}"
            for figure in (measured[0] if measured else ())
            for main in [case.chart in ("", figure)]
        }
        first = texts.pop(case.chart, "" if measured else "left out")
        lines.append(f"  {ALL[name].title}" + (f": {first}" if first else ""))
        lines += textwrap.wrap(
            ", ".join(texts.values()), 96, initial_indent="    ", subsequent_indent="    "
        )
    lines += [f"  => {document.verdict_line(each)}" for each in judge(case, runs)]
    return "\n".join(lines)


if __name__ == "__main__":
    write(FOLDER)
