"""The record: one line a run in results.ndjson, and RESULTS.md made from it.

RESULTS.md shows each case from the newest line that measured it. The text between the markers `by
hand` and `end` is the author's and stays. `python -m benchmarks.results` only writes RESULTS.md and
the figures of README.md again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import document, readme_numbers
from benchmarks.cases import ALL, Case, Runs, judge
from benchmarks.contenders import Figures
from benchmarks.record import LINES, Line, newest_of, read

FOLDER = Path(__file__).resolve().parent
DOCUMENT = "RESULTS.md"
README = FOLDER.parent / "README.md"
BY_HAND = re.compile(r"<!-- by hand -->\n(.*?)<!-- end -->", re.DOTALL)


def record(line: Line, folder: Path) -> None:
    """Append a line, and write RESULTS.md again."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LINES).open("a") as file:
        file.write(json.dumps(line._asdict()) + "\n")
    write(folder)


def write(folder: Path) -> None:
    """Write RESULTS.md from results.ndjson, and keep the text by hand."""
    lines, path = read(folder), folder / DOCUMENT
    by_hand = BY_HAND.search(path.read_text()) if path.exists() else None
    path.write_text(document.whole(newest_of(lines), by_hand[1] if by_hand else None))
    if folder.resolve() == FOLDER:
        README.write_text(readme_numbers.refreshed(README.read_text(), lines))


def brief(figures: Figures) -> str:
    """Return the figures of one run on one line."""
    return ", ".join(f"{name}={document.shown(value)}" for name, value in figures.items())


def plain(case: Case, runs: Runs) -> str:
    """Return a case for a terminal: medians of all figures, and the bounds."""
    lines = [case.title]
    for name in case.contenders:
        measured = runs.get(name, [])
        told = ", ".join(
            f"{figure} {document.cell(measured, document.first_of(figure))}"
            for figure in (measured[0] if measured else ())
        )
        lines.append(f"  {ALL[name].title}: {told or 'left out'}")
    lines += [f"  => {document.verdict_line(each)}" for each in judge(case, runs)]
    return "\n".join(lines)


if __name__ == "__main__":
    write(FOLDER)
