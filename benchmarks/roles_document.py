"""The figures in docs/grow/scaling.md, taken from roles.ndjson: nobody copies them by hand.

They are between `<!-- measured: NAME -->` and `<!-- end measured -->`, with one function a NAME.
`python -m benchmarks.roles_document` and every recorded run write them again; a test compares.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping

from benchmarks.document import shown, table
from benchmarks.ratios import interval_of
from benchmarks.roles_record import FOLDER, Case, Newest, newest, read

DOCUMENT = FOLDER.parent / "docs" / "grow" / "scaling.md"
TITLES = {
    "up_singles": "`up`, 1 gateway",
    "up_2_singles": "`up`, 2 gateways",
    "three_singles": "3 brokers, 1 gateway",
    "up_hundreds": "`up`, 1 gateway, posts of 100",
    "three_hundreds": "3 brokers, 1 gateway, posts of 100",
}
ROLES = ("service", "gateway", "nats-server", "writer", "supervisor", "PostgreSQL")
SHOWN = ("nats-server", "writer", "PostgreSQL")
NOT_YET = "Nothing is measured yet."
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


def cost_table(found: Newest) -> str:
    """Return what each way makes of two cores: rate, ratio to `serve`, CPU of a reading by role."""
    rows = []
    for name, title in TITLES.items():
        if name in found.cases:
            case, _ = found.cases[name]
            if name in ("up_singles", "up_hundreds"):
                of_serve = title.replace("`up`, 1 gateway", "`serve`")
                rows.append((of_serve, *_costs(case, "serve", "1")))
            ratio = interval_of(case.ratios())
            between = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            rows.append((title, *_costs(case, "other", between)))
    takes = "CPU, µs a reading: takes posts"
    head = ("", "readings/s", "beside `serve`", takes, *SHOWN, "all")
    return "\n".join(table(head, rows)) if rows else NOT_YET


def _costs(case: Case, arm: str, between: str) -> list[str]:
    runs = [each["cpu_us"] for each in case.runs[arm]]
    middle = {role: statistics.median(each[role] for each in runs) for role in runs[0]}
    takes = middle.get("service", middle.get("gateway", 0.0))
    return [
        shown(statistics.median(each["stored_per_s"] for each in case.runs[arm])),
        between,
        shown(takes),
        *(shown(middle[role]) if role in middle else "" for role in SHOWN),
        shown(statistics.median(sum(each.values()) for each in runs)),
    ]


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
    memory: dict[str, list[float]] = {}
    for case, _ in found.cases.values():
        for role, mib in case.peaks_mib["other"].items():
            memory.setdefault(role, []).append(mib)
    if memory:
        most = ", ".join(f"{role} {max(each):.0f}" for role, each in memory.items())
        told.append(f"- Most memory of a process, MiB: {most}.")
    if found.start is not None and found.start.idle:
        told.append(f"- An idle `ingest up` takes {sum(found.start.idle.values()):.1%} of a core.")
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


PARTS: Mapping[str, Callable[[Newest], str]] = {"costs": cost_table, "conditions": conditions}

if __name__ == "__main__":
    write()
