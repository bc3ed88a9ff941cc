"""What `ingest doctor` finds about the partitions of the table: whether they last."""

from __future__ import annotations

from ingest.app.database import housekeeping_jobs, housekeeping_url, timeouts
from ingest.app.housekeeping import ends_soon
from ingest.app.target import make_target
from ingest.cli.doctor_database import FAIL, OK, WARN, Check
from ingest.config.settings import Settings
from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import runs
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View
from ingest.system.words import counted

_NAME = "partitions"


async def partition_checks(settings: Settings, url: str) -> list[Check]:
    """Look with the role that makes partitions; return nothing for a table that has none."""
    own_url = housekeeping_url(settings, lambda: url)()
    try:
        report = await runs.look(
            own_url,
            timeouts(settings),
            settings.partition_span,
            housekeeping_jobs(settings),
            target=make_target(settings),
        )
    except StartError as error:
        return [Check(_NAME, FAIL if settings.housekeeping_url else WARN, str(error))]
    leaves = bool(settings.keep_hot)
    found = [_check(report.view, leaves=leaves)] if report.view.kind == PARTITIONED else []
    if report.schema.needs:
        found.append(Check("schema", FAIL if report.schema.refuses else WARN, report.schema.needs))
    return found


def _check(view: View, *, leaves: bool) -> Check:
    """Return whether they last. `leaves`: old ones are to leave the table."""
    left = f"{counted(view.spans_ahead, view.span)} after the present one have a partition"
    if view.has_default:
        return Check(_NAME, OK, "there is a default partition, so the service makes none")
    if view.cannot_make:
        fix = "set housekeeping_url to the role that owns the table"
        said = f"{left}, and no more can be made: {view.cannot_make}; {fix}"
        return Check(_NAME, FAIL if not view.spans_ahead else WARN, said)
    if leaves and view.not_ours:
        return Check(_NAME, FAIL if not view.spans_ahead else WARN, f"{left}; {view.not_ours}")
    if ends_soon(view):
        who = "" if view.ours else "; another tool made them: see `ingest schema adopt`"
        return Check(_NAME, FAIL if not view.spans_ahead else WARN, f"only {left}{who}")
    return Check(_NAME, OK, left)
