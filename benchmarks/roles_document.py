"""The figures in docs/grow/scaling.md, taken from roles.ndjson: nobody copies them by hand.

They are between `<!-- measured: NAME -->` and `<!-- end measured -->`, with one function a NAME.
`python -m benchmarks.roles_document` and every recorded run write them again; a test compares.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.charts import shown
from benchmarks.document import table
from benchmarks.ratios import interval_of
from benchmarks.roles_record import FOLDER, Case, Newest, newest, read

DOCUMENT = FOLDER.parent / "docs" / "grow" / "scaling.md"
TITLES = {
    "up_singles": "`up`, 1 gateway, single readings",
    "up_hundreds": "`up`, 1 gateway, posts of 100",
    "up_2_singles": "`up`, 2 gateways, single readings",
    "up_2_hundreds": "`up`, 2 gateways, posts of 100",
    "three_singles": "three brokers, 1 gateway, single readings",
    "three_hundreds": "three brokers, 1 gateway, posts of 100",
}
ROLES = ("service", "gateway", "nats-server", "writer", "supervisor", "PostgreSQL")
TARGETS = (
    ("up_singles", "single readings", 100_000),
    ("up_hundreds", "posts of 100", 1_000_000),
    ("up_hundreds", "posts of 100", 10_000_000),
)
NOT_YET = "Nothing is measured yet."
DAY_S = 86_400
_REGION = re.compile(
    r"(<!-- measured: (?P<name>[a-z]+) -->\n).*?(<!-- end measured -->)", re.DOTALL
)


def write() -> None:
    """Write docs/grow/scaling.md again."""
    DOCUMENT.write_text(refreshed(DOCUMENT.read_text(), newest(read())))


def refreshed(text: str, found: Newest) -> str:
    """Return a text with its figures printed anew. Raises KeyError for an unknown name."""
    return _REGION.sub(
        lambda match: f"{match[1]}\n{PARTS[match['name']](found)}\n\n{match[3]}", text
    )


def ratio_table(found: Newest) -> str:
    """Return the rates beside `serve`."""
    rows = []
    for name, title in TITLES.items():
        if name not in found.cases:
            continue
        case, _ = found.cases[name]
        ratio = interval_of(case.ratios())
        wanted = "" if case.wanted is None else f"{case.wanted:g}"
        rows.append(
            (
                title,
                f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
                wanted,
                *(shown(_median(case, arm, "stored_per_s")) for arm in ("other", "serve")),
                *(shown(_median(case, arm, "p99_ms")) for arm in ("other", "serve")),
            )
        )
    head = ("", "ratio", "wanted", "readings/s", "`serve`", "p99 ms", "`serve`")
    return "\n".join(table(head, rows)) if rows else NOT_YET


def cpu_table(found: Newest) -> str:
    """Return the CPU of every role, in us for each reading, with its spread."""
    rows = []
    for name, title in TITLES.items():
        if name in found.cases:
            case, _ = found.cases[name]
            rows.append((title, *_cpus(case, "other")))
            if name.startswith("up") and case.gateways == 1:
                rows.append((f"`serve`, {title.partition(', ')[2][11:]}", *_cpus(case, "serve")))
    return "\n".join(table(("CPU, µs a reading", *ROLES, "all"), rows)) if rows else NOT_YET


def _cpus(case: Case, arm: str) -> list[str]:
    runs = [each["cpu_us"] for each in case.runs[arm]]
    sums = [sum(each.values()) for each in runs]
    return [
        *(_spread([each[role] for each in runs if role in each]) for role in ROLES),
        _spread(sums),
    ]


def memory_table(found: Newest) -> str:
    """Return the most memory of each role, its start time, and its idle CPU."""
    parts = []
    rows = [
        (TITLES[name], *(shown(peaks[role]) if role in peaks else "" for role in ROLES[:-1]))
        for name in TITLES
        if name in found.cases
        for peaks in [{**found.cases[name][0].peaks_mib["other"]}]
    ]
    if rows:
        parts.append("\n".join(table(("peak of memory, MiB", *ROLES[:-1]), rows)))
    if (line := found.start) is not None:
        starts = ", ".join(
            f"`{name}` {statistics.median(each):.2f} s (longest {max(each):.2f})"
            for name, each in line.starts_s.items()
        )
        idle = ", ".join(f"{role} {each:.2%}" for role, each in line.idle.items())
        parts.append(
            f"From an empty folder to the first 202: {starts}; {_count(line.starts_s)} starts "
            f"each.\n\nAn idle `ingest up` takes {sum(line.idle.values()):.1%} of a core:\n{idle}."
        )
    return "\n\n".join(parts) or NOT_YET


def _count(starts_s: Mapping[str, list[float]]) -> int:
    return min(len(each) for each in starts_s.values())


def paper_table(found: Newest) -> str:
    """Return cores and bytes a second for large rates: rate times the measured medians.

    Not: the disk of PostgreSQL. In a short run most of what it writes are new files for its WAL.
    """
    roles = [role for role in ROLES if role != "service"]
    rows = []
    for name, posts, rate in TARGETS:
        if name not in found.cases:
            continue
        case, _ = found.cases[name]
        runs = case.runs["other"]
        cores = {role: _middle(runs, "cpu_us", role) * rate / 1e6 for role in roles}
        disk = _middle(runs, "disk_bytes", "nats-server") * rate / 1e6
        messages = rate / statistics.median(each["rows_per_message"] for each in runs)
        rows.append(
            (
                f"{rate:,}, {posts}",
                *(shown(cores[role]) for role in roles),
                shown(sum(cores.values())),
                shown(disk),
                shown(messages),
            )
        )
    head = (
        "readings/s",
        *(f"{role}, cores" for role in roles),
        "all, cores",
        "broker's disk, MB/s",
        "messages/s at this grouping",
    )
    return "\n".join(table(head, rows)) if rows else NOT_YET


def conditions(found: Newest) -> str:
    """Return when and on what it was measured."""
    lines = {line.at: line for _, line in found.cases.values()}
    if found.start is not None:
        lines[found.start.at] = found.start
    told = [
        f"- {line.at}, commit {line.commit or 'unknown'}: {len(line.cases)} cases, runs of "
        f"{line.seconds:g} s,\n  {line.environment['processor']}, "
        f"{line.environment['cores']} cores, fdatasync {line.environment['fsync']}."
        for line in lines.values()
    ]
    return "\n".join(told) or NOT_YET


def cpu_words(case: Case, arm: str) -> str:
    """Return the medians of one arm on one line."""
    runs = [each["cpu_us"] for each in case.runs[arm]]
    return ", ".join(
        f"{role} {_spread([each[role] for each in runs])}" for role in ROLES if role in runs[0]
    )


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{shown(statistics.median(values))} ({shown(min(values))} to {shown(max(values))})"


def _median(case: Case, arm: str, figure: str) -> float:
    return float(statistics.median(each[figure] for each in case.runs[arm]))


def _middle(runs: list[dict[str, Any]], figure: str, role: str) -> float:
    return float(statistics.median(each[figure][role] for each in runs))


PARTS: Mapping[str, Callable[[Newest], str]] = {
    "ratios": ratio_table,
    "cpu": cpu_table,
    "memory": memory_table,
    "paper": paper_table,
    "conditions": conditions,
}

if __name__ == "__main__":
    write()
