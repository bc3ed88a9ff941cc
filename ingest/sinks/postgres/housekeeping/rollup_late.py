"""Computes the series of hours that late readings have changed, and their days.

The trigger has left a record of each late reading. First they are gathered, each series of an hour
once; then these are computed from all their readings. Those of archived days are left to
rollup_archived.py.
Promises: a record is removed only in a transaction that computes its series, or moves it. The
driver's errors pass through.
"""

from __future__ import annotations

import asyncpg
from asyncpg import Connection

from ingest.model.verdict import Verdict
from ingest.sinks.postgres.connection import text_of
from ingest.sinks.postgres.housekeeping import rollup_sql
from ingest.sinks.postgres.housekeeping.rollup_run import US, Run
from ingest.sinks.postgres.housekeeping.spans import TimeSpan, literal
from ingest.sinks.postgres.sqlstate import verdict_for
from ingest.sinks.postgres.target import TargetTable

KEYS_MAX = 1_000  # series of hours in one transaction
KEYS_OF_HOUR_MAX = 50_000  # the same without the index for devices
LATE_ROWS = 50_000  # records of late readings in one statement
FAILED_MAX = 2_000  # a run tries no more after so many: the oldest, whose days leave first

_HAS_DEVICE_INDEX = """
select exists (select from pg_index i where i.indrelid = $1::oid and i.indisvalid
  and i.indpred is null and (
      select array_agg(a.attname::text order by n) from generate_series(0, 2) n
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[n]) = $2::text[])"""


async def is_due(run: Run) -> bool:
    """Whether there is any record that is to be gathered, or computed here."""
    found: bool = await run.connection.fetchval(
        f"select exists (select from {run.names.late}) or exists ("  # noqa: S608
        f"select from {run.names.due} where not {run.left.condition})"
    )
    return found


async def gather(run: Run, here: str = "true") -> None:
    """Move the records to what is due, each once. `here` is what SQL asks of `hour`.

    Hours that are not computed yet need none: their computation sees these readings. But it does
    not see those of a detached table.
    """
    late, due = run.names.late, run.names.due
    some = f"select ctid from {late} where {here} limit {LATE_ROWS}"  # noqa: S608
    until = "'-infinity'" if run.at.until_us is None else literal(run.at.until_us)
    statement = f"""with gone as (
    delete from {late} where ctid = any (array({some}))
    returning hour, device_id, metric), kept as (
    insert into {due} (hour, device_id, metric)
    select distinct hour, device_id, metric from gone
    where (hour < {until} or {run.left.hidden_days}) and isfinite(hour)
    order by 1, 2, 3 on conflict do nothing)
select count(*) from gone"""  # noqa: S608
    while not run.ended() and await run.connection.fetchval(statement) == LATE_ROWS:
        await run.rest()


async def store(run: Run, statement: str, source: str, span: TimeSpan, start: str = "ts") -> str:
    """Execute the statement for an hour or a day; return what the server says of it.

    If the server refuses it for some series, all those of `source` in this time become due: then
    `compute` finds out which. `start` is the time in `source`.
    """
    try:
        async with run.connection.transaction():
            return str(await run.connection.execute(statement))
    except asyncpg.PostgresError as error:
        if not _is_of_some(error):
            raise
        await put_off(run, source, span, start)
        return ""


def _is_of_some(error: asyncpg.PostgresError) -> bool:
    """Whether the server refuses some rows, and may take the others."""
    return verdict_for(error.sqlstate) is Verdict.ISOLATE


async def put_off(run: Run, source: str, span: TimeSpan, start: str = "ts") -> None:
    """Note all series of an hour or a day as due, in place of computing it."""
    await run.connection.execute(
        f"""insert into {run.names.due} (hour, device_id, metric)
        select distinct {literal(span.from_us)}::timestamptz, device_id, metric from {source} r
        where {start} >= {literal(span.from_us)} and {start} < {literal(span.to_us)}
        order by 1, 2, 3 on conflict do nothing"""  # noqa: S608
    )


async def compute(run: Run) -> None:
    """Compute what is due, until the run ends.

    With the index for devices each series is looked up. Without it, all series of an hour that are
    due share one reading of that hour. If the server refuses some, half of them are tried, down to
    one. This one stays due, and is in `run.failed`; the others go on.
    """
    by_index = await has_device_index(run.connection, run.oid, run.target)
    here = f"not {run.left.condition}"
    most = count = KEYS_MAX if by_index else KEYS_OF_HOUR_MAX
    some = True
    while some and not run.ended() and len(run.failed) < FAILED_MAX:
        try:
            some = await compute_some(run, here, by_index=by_index, count=count)
            count = min(most, 2 * count)
        except asyncpg.PostgresError as error:
            if not _is_of_some(error):
                raise
            if len(run.taken) == 1:
                run.failed[run.taken[0]] = text_of(error)
            count = max(1, len(run.taken) // 2)
        await run.rest()


async def has_device_index(connection: Connection, table_oid: int, target: TargetTable) -> bool:
    """Whether a table with the columns of the target has the index for devices."""
    columns = (target.device_id, target.metric, target.ts)
    found: bool = await connection.fetchval(_HAS_DEVICE_INDEX, table_oid, columns)
    return found


async def compute_some(
    run: Run, here: str, *, by_index: bool, count: int = KEYS_MAX, source: str = ""
) -> bool:
    """Compute `count` series, without the index those of one hour; return whether any was due.

    `here` is what SQL asks of `hour`. Those in `run.failed` are left out. They are removed from
    what is due in the same transaction, before they are computed: so each reading whose record is
    removed is seen. `source` is read in place of the table.
    """
    due, connection = run.names.due, run.connection
    here = f"{here} and not {rollup_sql.IS_OF_KEYS}"
    if not by_index:
        here += f" and hour = (select min(hour) from {due} where {here})"  # noqa: S608
    some = f"where {here} order by hour, device_id, metric limit {count}"
    async with connection.transaction():
        rows = await connection.fetch(
            f"delete from {due} where ctid = any (array(select ctid from {due} {some})) "  # noqa: S608
            f"returning hour::text as hour, device_id, metric, {US.format('hour')} as hour_us",
            *rollup_sql.columns(run.failed),
        )
        run.taken = [(row["hour"], row["device_id"], row["metric"]) for row in rows]
        kept = [row for row in rows if run.at.gone_until(row["hour_us"]) is None]
        if not kept:
            return bool(rows)
        keys = [[row[name] for row in kept] for name in ("hour", "device_id", "metric")]
        if by_index:
            statement = rollup_sql.of_keys(run.target, run.spans, source)
        else:
            statement = rollup_sql.of_keys_of_hour(
                run.target, run.spans, kept[0]["hour_us"], source
            )
        await connection.execute(statement, *keys)
        if (days_us := run.at.days_until_us) is not None:
            days = rollup_sql.days_of_keys(run.target, run.spans, days_us)
            await connection.execute(days, *keys)
    return True
