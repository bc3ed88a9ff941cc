"""A view of the readings with one column for each of some metrics (wide): its SQL, and making it.

Promises: a view of another maker, or a table, of that name is never touched. Grants on our view
stay if it gets more columns. Errors of the driver pass through.
Does not: store anything. Each question reads the readings and groups them.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from ingest.model.errors import StartError
from ingest.sinks.postgres.schema import NAME_BYTES_MAX, TargetTable, literal, look, quoted

COST = (
    "It stores nothing: each question groups the readings that it needs.",
    "Conditions on time and device use the indexes of the table. One on a metric's column does",
    "not: the whole time range is grouped first. So always give a time range.",
    "Of two values of a metric at one time it shows the lesser.",
)
_MARK = "a wide view, made by iot-ingest"
_EXISTING = """
select c.relkind::text as kind, coalesce(obj_description(c.oid, 'pg_class'), '') as comment
from pg_class c where c.oid = to_regclass($1)"""


async def wide_view(
    connection: asyncpg.Connection, target: TargetTable, name: str, metrics: Sequence[str]
) -> tuple[str, str]:
    """Return the view's name in SQL, beside the table, and the statements that make it.

    Raises StartError if there is no table, if a name cannot be that of a column, or if something
    else has the name of the view.
    """
    seen = await look(connection, target)
    if not seen.oid:
        raise StartError(str(seen.difference))
    _check(target, name, metrics)
    target = target._replace(schema=seen.target.schema)
    view = target._replace(table=name).name
    found = await connection.fetchrow(_EXISTING, view)
    if found is not None and not (found["kind"] == "v" and found["comment"] == _MARK):
        raise StartError(f"{view} is there, and no view of ours: choose another name")
    return view, _statements(view, target, metrics)


async def make_wide_view(connection: asyncpg.Connection, view: str, statements: str) -> None:
    """Make the view, or add columns to it, in one transaction. Raises StartError."""
    try:
        async with connection.transaction():
            await connection.execute(statements)
    except (asyncpg.InvalidTableDefinitionError, asyncpg.WrongObjectTypeError) as error:
        raise StartError(
            f"{error}: a view that is there can only get more metrics, behind the others; to "
            f"change it otherwise, drop it first (drop view {view})"
        ) from error


def _check(target: TargetTable, name: str, metrics: Sequence[str]) -> None:
    for what, each in (("view", name), *(("metric", metric) for metric in metrics)):
        size = len(each.encode())
        if not 0 < size <= NAME_BYTES_MAX:
            raise StartError(
                f"the {what} {each!r} has {size} bytes: a name in PostgreSQL has 1 to "
                f"{NAME_BYTES_MAX}"
            )
    taken = {target.ts, target.device_id}
    for each in metrics:
        if each in taken:
            raise StartError(f"there would be two columns {quoted(each)}")
        taken.add(each)


def _statements(view: str, target: TargetTable, metrics: Sequence[str]) -> str:
    ts, device_id, metric, value = map(quoted, target.columns)
    columns = "".join(
        f",\n       min({value}) filter (where {metric} = {literal(each)}) as {quoted(each)}"
        for each in metrics
    )
    wanted = ", ".join(map(literal, metrics))
    return f"""create or replace view {view} as
select {ts}, {device_id}{columns}
from {target.name}
where {metric} in ({wanted})
group by {ts}, {device_id};
comment on view {view} is {literal(_MARK)};"""  # noqa: S608  names are quoted
