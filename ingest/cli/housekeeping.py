"""`ingest housekeeping`: what is due for each table, doing it, and how the table is.

It connects with `housekeeping_url`, the role that owns the table. It works while the service runs
and while it does not; a timer may run it in place of the service.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import date
from itertools import groupby
from typing import Any

from ingest.app.database import declared_fault, timeouts
from ingest.app.housekeeping import TableJobs
from ingest.cli.context import owners_database
from ingest.cli.parser import JSON, Command, Ending, flag
from ingest.config.loading import Loaded
from ingest.sinks.postgres.housekeeping import runs
from ingest.sinks.postgres.housekeeping.partitions import BEGINNING_US, DAY_US, END_US
from ingest.sinks.postgres.housekeeping.runs import Did, Step
from ingest.system.clock import rfc3339_or_us
from ingest.system.words import counted

PLAN_SHOWN_MAX = 50
SAME_SHOWN_MAX = 3  # steps that failed for the same reason
DONE = "done"
CONFIRM = "if what waits is right: `ingest housekeeping run --yes`, with the same settings"


def _day_us(text: str) -> int:
    try:
        return (date.fromisoformat(text) - date(1970, 1, 1)).days * DAY_US
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day such as 2026-10-01") from None


async def _plan(args: argparse.Namespace, loaded: Loaded) -> Ending:
    reports, fault = await _reports(args, loaded)
    due = [step for report in reports for step in _steps(report.due)]
    return Ending(due, _text(plan_text, reports, fault))


async def _status(args: argparse.Namespace, loaded: Loaded) -> Ending:
    reports, fault = await _reports(args, loaded)
    readings, *declared = reports
    document = status_of(readings)
    if declared:
        document["declared"] = list(map(status_of, declared))
    return Ending(document, _text(status_text, reports, fault))


async def _run(args: argparse.Namespace, loaded: Loaded) -> Ending:
    reports, fault = await _reports(args, loaded)
    all_did = [did for report in reports for did in report.did]
    refused = next(filter(None, map(_refused, reports)), fault)
    document = {
        "did": [
            {**step, "error": did.error, "left": did.left}
            for did in all_did
            for step in _steps([did.step])
        ],
        "other_run": any(each.other_run for each in reports),
        "refused": refused,
    }
    failed = any(each.error for each in all_did)
    return Ending(document, _text(run_text, reports, fault), 1 if failed or refused else 0)


async def _reports(args: argparse.Namespace, loaded: Loaded) -> tuple[list[runs.Report], str]:
    """Return the report on `readings`, and on each declared table; and what is not declared."""
    settings, reports = loaded.settings, list[runs.Report]()
    async with owners_database(settings) as url:
        tables = TableJobs(settings, from_us=getattr(args, "from_us", None))
        for target, jobs in tables:
            where = (url, timeouts(settings), settings.partition_span, jobs)
            if args.command_of_group == "run":
                reports.append(await runs.run_all(*where, target=target, yes=args.yes))
            else:
                reports.append(await runs.look(*where, target=target))
            tables.found(reports[-1].view)
        fault = await declared_fault(url, settings)
    return reports, fault


def _refused(report: runs.Report) -> str:
    """Return why a run can do nothing for this table, or an empty string."""
    view, schema = report.view, report.schema
    if schema.refuses or view.registry or report.did or view.kind != "partitioned":
        return schema.needs if schema.refuses else ""
    return (
        f"{view.cannot_make or _kind_words(report)}. Give the URL of the table's owner: "
        "--housekeeping-url-file FILE"
    )


def _text(words: Callable[[runs.Report], str], reports: Sequence[runs.Report], fault: str) -> str:
    return "\n\n".join([*map(words, reports), *filter(None, [fault])])


def _steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [
        {
            "kind": each.kind,
            "partition": each.partition,
            "from": _moment(each.from_us),
            "to": _moment(each.to_us),
            "why": each.why,
            "waits": each.waits,
        }
        for each in steps
    ]


def plan_text(report: runs.Report) -> str:
    """Return the steps as lines for a person: one for each partition, and why some wait once."""
    lines = [
        f"{', '.join(each.kind for each in steps)} {partition}{waits and ' (waits)'}: {why}"
        for (partition, waits, why), steps in groupby(
            report.due, lambda each: (each.partition, each.waits, each.why)
        )
    ] or [f"nothing is due: {_kind_words(report)}"]
    if (more := len(lines) - PLAN_SHOWN_MAX) > 0:
        lines[PLAN_SHOWN_MAX:] = [f"and {more} more; --json has all"]
    lines += [f"waits: {why}" for why in dict.fromkeys(each.waits for each in report.due) if why]
    if report.due and report.view.cannot_make:
        lines.append(f"not possible now: {report.view.cannot_make}")
    if report.schema.refuses:
        lines.append(f"not possible now: {report.schema.needs}")
    return "\n".join([*lines, *_confirm(report)])


def _confirm(report: runs.Report) -> list[str]:
    """Return the line with the next step, if a step waits."""
    return [CONFIRM] if any(each.waits for each in report.due) else []


def run_text(report: runs.Report) -> str:
    """Return what was done as lines for a person."""
    if refused := _refused(report):
        return f"nothing was done: {refused}"
    if report.other_run:
        return "nothing was done: another run is under way; try again when it has ended"
    if not report.did:
        return f"nothing was due: {_kind_words(report)}"
    lines = list[str]()
    for became, did in groupby(report.did, _became):
        steps = [each.step for each in did]
        shown_max = SAME_SHOWN_MAX if became.startswith("failed") else PLAN_SHOWN_MAX
        lines += [f"{each.kind} {each.partition}: {became}" for each in steps[:shown_max]]
        if (more := len(steps) - shown_max) > 0:
            lines.append(f"and {more} more {became}; --json has all")
    return "\n".join([*lines, *_confirm(report)])


def _became(did: Did) -> str:
    if did.error:
        return f"failed: {did.error}"
    return f"waits: {did.left}" if did.left else DONE


def _kind_words(report: runs.Report) -> str:
    view = report.view
    return {
        "missing": f"there is no table {view.table} yet",
        "plain": f"{view.table} has no partitions, and works without them "
        "(deploy/partition-a-table.sql makes them)",
        "hypertable": f"{view.table} is a hypertable; TimescaleDB makes its chunks",
        "other": f"{view.table} is not partitioned by the range of its time",
        "partitioned": f"{view.table} has partitions until {_until(report)}"
        if view.ours
        else view.not_ours
        or f"the role {view.role} may not read who made the partitions of {view.table}",
    }[view.kind]


def _moment(ts_us: int) -> str | int | None:
    """Return a time as text; None for a bound that is open."""
    return rfc3339_or_us(ts_us - ts_us % 1_000_000) if BEGINNING_US < ts_us < END_US else None


def _until(report: runs.Report) -> str | int | None:
    until_us = report.view.covered_to_us
    return "for ever" if until_us == END_US else _moment(until_us)


def status_of(report: runs.Report) -> dict[str, Any]:
    """Return the state of the table for programs."""
    view = report.view
    partitioned = view.kind == "partitioned"
    found: dict[str, Any] = {
        "table": view.table,
        "kind": view.kind,
        "span": view.span if partitioned else None,
        "ours": view.ours,
        "partitions": len(view.partitions),
        "partitions_ours": sum(each.ours for each in view.partitions),
        "bytes": sum(each.bytes for each in view.partitions),
        "oldest": None if report.oldest_us is None else _moment(report.oldest_us),
        "rollups_until": None,  # of all hours
        "rollups_lack_late": 0,
        "until": _until(report) if partitioned else None,
        "spans_ahead": view.spans_ahead if partitioned else None,
        "detached": [],
        "due": len(report.due),
        "cannot_make": view.cannot_make,
        "schema_version": report.schema.version,
    }
    return {**found, **report.facts}


def status_text(report: runs.Report) -> str:
    """Return the same as lines for a person."""
    found = status_of(report)
    lines = {"table": _kind_words(report), "oldest reading": found["oldest"] or "none"}
    if "rollups_until" in report.facts:
        until = found["rollups_until"]
        lines["rollups"] = f"of all hours until {until}" if until else "not computed yet"
    if found["rollups_lack_late"]:
        late = counted(found["rollups_lack_late"], "late reading")
        lines["rollups lack"] = f"{late} of times that had left the table"
    if found["kind"] == "partitioned":
        lines |= {
            "partitions": f"{counted(found['partitions'], 'partition')}, "
            f"{found['partitions_ours']} of them made or adopted by the housekeeping, "
            f"{found['bytes'] / 1e6:,.0f} MB",
            "ahead": f"{counted(found['spans_ahead'], found['span'])} after the present one, "
            f"until {found['until']}",
            "due": counted(found["due"], "step")
            + (" (see `ingest housekeeping plan`)" if found["due"] else ""),
        }
        if found["cannot_make"]:
            lines["not possible"] = found["cannot_make"]
    if report.hidden:
        lines["detached"] = report.hidden_words
    if report.schema.needs:
        lines["schema"] = report.schema.needs
    width = max(map(len, lines)) + 1
    return "\n".join(f"{name + ':':<{width}} {text}" for name, text in lines.items())


FROM = flag(
    "--from",
    dest="from_us",
    metavar="DAY",
    type=_day_us,
    help="also make the partitions from this day on (UTC), for readings that you bring in",
)
COMMAND = Command(
    examples=("ingest housekeeping status", "ingest housekeeping plan", "ingest housekeeping run"),
    usage="COMMAND [options]",
    commands={
        "plan": Command(
            "print what is due, and change nothing",
            ("ingest housekeeping plan", "ingest housekeeping plan --json"),
            _plan,
            flags=(FROM, JSON),
        ),
        "run": Command(
            "do what is due, once",
            ("ingest housekeeping run --yes", "ingest housekeeping run --from 2026-10-01"),
            _run,
            flags=(
                flag(
                    "--yes",
                    action="store_true",
                    help="also do the steps that a person must confirm",
                ),
                FROM,
                JSON,
            ),
        ),
        "status": Command(
            "print how the table is partitioned, and how long the partitions last",
            ("ingest housekeeping status", "ingest housekeeping status --json"),
            _status,
            flags=(JSON,),
        ),
    },
)
