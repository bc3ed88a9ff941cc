"""The job of housekeeping that drops old chunks of a hypertable, by TimescaleDB's `drop_chunks`.

TimescaleDB makes the chunks by itself, and knows which ones it may drop: nothing more is done here.
Promises: no chunk is dropped that a person has not confirmed, or while there is an archive that
does not get it.
"""

from __future__ import annotations

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import registry, rollup_state
from ingest.sinks.postgres.housekeeping.keeping import Policy, due, must_confirm
from ingest.sinks.postgres.housekeeping.partitions import Partition
from ingest.sinks.postgres.housekeeping.plan import Job, Step
from ingest.sinks.postgres.housekeeping.spans import BEGINNING_US, TimeSpan, literal
from ingest.sinks.postgres.housekeeping.view import HYPERTABLE, View
from ingest.system.clock import rfc3339_or_us

DROP_CHUNKS = "drop_chunks"
_NOT_ARCHIVED = "a hypertable is not archived: without archive_dir its old chunks are dropped"

_CHUNKS = """
select k.chunk_name::text as name,
       (extract(epoch from k.range_start) * 1000000)::int8 as from_us,
       (extract(epoch from k.range_end) * 1000000)::int8 as to_us
from timescaledb_information.chunks k join pg_namespace n on n.nspname = k.hypertable_schema
join pg_class c on c.relnamespace = n.oid and c.relname = k.hypertable_name
where c.oid = $1::oid and k.range_end is not null order by k.range_end"""


class Chunks(Job):
    """A Job. Without a policy nothing is dropped; with `rollups`, only what is in them."""

    kinds = frozenset({DROP_CHUNKS})

    def __init__(self, policy: Policy | None, *, rollups: bool = False) -> None:
        self._policy = policy
        self._rollups = rollups

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return one step for all chunks that are old enough."""
        policy = self._policy
        if view.kind != HYPERTABLE or policy is None:
            return []
        found = [
            Partition(row["name"], row["from_us"], row["to_us"], 0, ours=True)
            for row in await connection.fetch(_CHUNKS, view.oid)
        ]
        leaving = due(found, {}, policy.cutoff_us(view.now_us))
        if not leaving:
            return []
        if policy.archive_dir:
            return [Step(DROP_CHUNKS, view.table, _NOT_ARCHIVED)]  # it fails, and says so
        answers = await registry.entries(connection, view.table, registry.KEEP_HOT)
        waits = must_confirm(leaving, len(found), policy, answers.get(""))
        until_us = leaving[-1].to_us
        why = (
            f"{len(leaving)} chunks have only readings from before {rfc3339_or_us(until_us)} "
            f"(keep_hot = {policy.keep_hot})"
        )
        return [Step(DROP_CHUNKS, view.table, why, leaving[0].from_us, until_us, waits)]

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """Drop the chunks. A step that waited was confirmed: that is recorded first."""
        policy = self._policy
        if policy is None or policy.archive_dir:
            raise StartError(_NOT_ARCHIVED)
        if step.waits:
            kept = await registry.make(connection, view.table, view.owner)
            await registry.put(connection, kept, {registry.KEEP_HOT: policy.entry(view.now_us)})
        await rollup_state.leave(connection, view, step.to_us, wanted=self._rollups)
        async with connection.transaction():
            await connection.execute(
                f"select drop_chunks({view.oid}::oid::regclass, "
                f"older_than => timestamptz {literal(step.to_us)})"
            )
            await rollup_state.left(connection, view, TimeSpan(BEGINNING_US, step.to_us))
