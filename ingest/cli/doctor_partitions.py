"""What `ingest doctor` finds about the partitions of the table: whether they last."""

from __future__ import annotations

from ingest.app.database import housekeeping_jobs, housekeeping_url, timeouts
from ingest.app.housekeeping import ends_soon
from ingest.app.target import make_target
from ingest.cli.doctor_database import FAIL, OK, WARN, Check, judged
from ingest.config.settings import Settings
from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import runs
from ingest.sinks.postgres.housekeeping.view import PARTITIONED, View
from ingest.system.words import counted

_NAME = "partitions"
_OLDER = (
    "readings of older days wait as dead letters until `ingest housekeeping run --from DAY` was "
    "run with that role"
)


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
    job, leaves, view = not settings.housekeeping, bool(settings.keep_hot), report.view
    found = [_check(view, by_job=job, leaves=leaves)] if view.kind == PARTITIONED else []
    if report.hidden:
        found.append(Check(_NAME, WARN, report.hidden_words))
    if report.schema.needs:
        found.append(Check("schema", FAIL if report.schema.refuses else WARN, report.schema.needs))
    return found


def _check(view: View, *, by_job: bool, leaves: bool) -> Check:
    """Judge how long the partitions last. `by_job`: the setting `housekeeping` is false.

    `leaves`: old ones are to leave the table.
    """
    left = f"{counted(view.spans_ahead, view.span)} after the present one have a partition"
    if view.has_default:
        return Check(_NAME, OK, "there is a default partition, so the service makes none")
    ends, level = ends_soon(view), WARN if view.spans_ahead else FAIL
    if view.cannot_make and by_job and view.spans_ahead:
        more = f"{left}; a job with the owner's role must make more; {_OLDER}"
        no_job = f"only {left}: does the job run `ingest housekeeping run`?"
        return judged(_NAME, more, (ends, WARN, no_job))
    who = "" if view.ours else "; another tool made them: see `ingest schema adopt`"
    no_more = f"{left}, and no more can be made: {view.cannot_make}; {_OLDER}"
    return judged(
        _NAME,
        left,
        (view.cannot_make, level, no_more),
        (leaves and view.not_ours, level, f"{left}; {view.not_ours}"),
        (ends, level, f"only {left}{who}"),
    )
