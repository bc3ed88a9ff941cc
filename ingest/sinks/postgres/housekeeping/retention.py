"""The job of housekeeping that lets old partitions leave the table: detach, archive, drop.

For each partition: it is detached while others write; if there is an archive, that job writes and
verifies it; then the table is dropped. The registry has under `archive/NAME` how far it is:
`detaching`, `detached`; the archive adds `written` and `verified`, and after the drop there is
`dropped`. Without an archive nothing is left.
Promises: only a table that we made or adopted is dropped, and it is the one that was detached: its
oid is in the registry. With an archive it is dropped only if it was verified. What waits for a
person's answer is not begun. Killed at any moment, the next run goes on.
"""

from __future__ import annotations

from typing import Any

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import registry, rollup_state
from ingest.sinks.postgres.housekeeping.keeping import Policy, due, must_confirm
from ingest.sinks.postgres.housekeeping.plan import Step
from ingest.sinks.postgres.housekeeping.view import OTHER, PARTITIONED, PLAIN, View
from ingest.system.clock import rfc3339_or_us

DETACH, ARCHIVE, DROP = "detach", "archive", "drop"
DETACHING, DETACHED, WRITTEN, VERIFIED, DROPPED = (
    *("detaching", "detached", "written", "verified", "dropped"),
)
ATTACHED = "attached"
# Steps that are not done in a state; `drop` says of an attached one that it stays.
_LEFT_OUT: dict[str, set[str]] = {DETACHING: set(), ATTACHED: {DETACH, ARCHIVE}}
KEEP_HOT = registry.ANSWER + "keep_hot"
_UNDER_WAY = {DETACHING, DETACHED, WRITTEN, VERIFIED}
_NOT_BY_TIME = "{} has no partitions by time that could be dropped: see `ingest schema partition`"
_CONCURRENTLY_FROM = 14  # PostgreSQL; before, a detach locks the table for a moment
_LOCK_MS = 300  # for that lock: all writers wait behind it

_ATTACHED = """
select c.oid::int8 as oid, format('%I.%I', n.nspname, c.relname) as name,
       coalesce((to_jsonb(i) ->> 'inhdetachpending')::bool, false) as pending
from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = relnamespace
where i.inhparent = $1::oid and c.relname = $2"""
_STILL_THERE = """
select c.relname::text as name from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = $1::oid and c.relname = any ($2::text[])
  and not coalesce((to_jsonb(i) ->> 'inhdetachpending')::bool, false)"""
_LEFT = """
select format('%I.%I', n.nspname, c.relname) as name,
       exists (select from pg_inherits where inhrelid = c.oid) as attached
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = $1::oid and c.relname = $2"""
_FURTHER_COLUMNS = """
select attname::text as name from pg_attribute where attrelid = $1::oid and attnum > 0
and not attisdropped and attname <> all ($2::text[]) order by attnum"""


class Retention:
    """A Job. Without a policy nothing leaves; what was begun before waits for an answer.

    It plans the steps of kind `archive` for the job of the archive, which does them. With `rollups`
    nothing leaves before it is in them.
    """

    kinds = frozenset({DETACH, DROP})

    def __init__(self, policy: Policy | None, *, rollups: bool = False) -> None:
        self._policy = policy
        self._rollups = rollups

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return the steps of the partitions that are old enough, the oldest first."""
        if view.kind != PARTITIONED:
            return self._without_partitions(view)
        begun = await _begun(connection, view)
        steps = self._to_end(begun, view)
        if self._policy is None:
            return steps
        policy = await _of_table(self._policy, connection, view)
        pinned = await registry.entries(connection, view.table, registry.PINNED)
        leaving = due(view.partitions, pinned, policy.cutoff_us(view.now_us))
        leaving = [each for each in leaving if each.name not in begun]
        answers = await registry.entries(connection, view.table, registry.ANSWER)
        waits = must_confirm(leaving, len(view.partitions), policy, answers.get("keep_hot"))
        for each in leaving:
            steps += self._steps(each.name, each.from_us, each.to_us, waits, begun=False)
        return steps

    def _without_partitions(self, view: View) -> list[Step]:
        """Return a step that says why `keep_hot` does nothing to this table."""
        if self._policy is None or view.kind not in (PLAIN, OTHER):
            return []
        why = f"keep_hot = {self._policy.keep_hot}"
        return [Step(DROP, view.name, why, waits=_NOT_BY_TIME.format(view.table))]

    def _to_end(self, begun: dict[str, Any], view: View) -> list[Step]:
        """Return the rest of what was begun. It was confirmed then, under the policy of then."""
        steps = []
        for name, entry in begun.items():
            waits = ""
            if self._policy is None:
                waits = f"{name} was detached, but keep_hot is not set any more: --yes drops it"
            elif entry.get("archive_dir", "") != self._policy.archive_dir:
                waits = f"archive_dir was changed after {name} was detached"
            found = self._steps(name, entry["from_us"], entry["to_us"], waits, begun=True)
            left_out = _LEFT_OUT.get(entry["state"], {DETACH})
            steps += [each for each in found if each.kind not in left_out]
        return steps

    def _steps(self, name: str, from_us: int, to_us: int, waits: str, *, begun: bool) -> list[Step]:
        archives = self._policy is not None and self._policy.archive_dir
        kept = f"keep_hot = {self._policy.keep_hot}" if self._policy else "begun before"
        why = f"all its readings are from before {rfc3339_or_us(to_us)} ({kept})"
        # The rest of a detach is done in any case: until then no query sees the partition.
        steps = [Step(DETACH, name, why, from_us, to_us, "" if begun else waits)]
        if archives:
            steps.append(Step(ARCHIVE, name, why, from_us, to_us, waits))
        return [*steps, Step(DROP, name, why, from_us, to_us, waits)]

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """Detach or drop. A step that waited was confirmed: that is recorded first."""
        if view.kind != PARTITIONED:
            raise StartError(_NOT_BY_TIME.format(view.table))
        kept = await registry.make(connection, view.table, view.owner)
        if step.waits and self._policy is not None:
            policy = await _of_table(self._policy, connection, view)
            await registry.put(connection, kept, KEEP_HOT, policy.entry(view.now_us))
        if step.kind == DETACH:
            await self._detach(connection, view, step, kept)
        else:
            await self._drop(connection, view, step, kept)

    async def _detach(self, connection: Connection, view: View, step: Step, kept: str) -> None:
        found = await connection.fetchrow(_ATTACHED, view.oid, step.partition)
        key = registry.ARCHIVE + step.partition
        entries = await registry.entries(connection, view.table, key)
        entry: dict[str, Any] | None = entries.get("")
        begun = entry is not None and entry.get("state") in _UNDER_WAY
        if found is None and not begun:
            raise StartError(f"{step.partition} is not a partition of {view.table} any more")
        if found is not None:
            if not found["pending"]:
                entry = {
                    "state": DETACHING,
                    "oid": found["oid"],
                    "from_us": step.from_us,
                    "to_us": step.to_us,
                    "archive_dir": self._policy.archive_dir if self._policy else "",
                }
                await rollup_state.leave(
                    connection,
                    view,
                    step.to_us,
                    from_us=step.from_us,
                    wanted=self._rollups,
                    archived=bool(entry["archive_dir"]),
                )
            elif entry is None or not begun or entry["oid"] != found["oid"]:
                raise StartError(f"{step.partition} was half detached by somebody else")
            await registry.put(connection, kept, key, entry)
            detach = f"alter table {view.table} detach partition {found['name']}"
            if connection.get_server_version().major < _CONCURRENTLY_FROM:
                async with connection.transaction():
                    await connection.execute(f"set local lock_timeout = {_LOCK_MS}; {detach}")
            else:
                how = "finalize" if found["pending"] else "concurrently"
                await connection.execute(f"{detach} {how}")
        await registry.put(connection, kept, key, {**(entry or {}), "state": DETACHED})

    async def _drop(self, connection: Connection, view: View, step: Step, kept: str) -> None:
        key = registry.ARCHIVE + step.partition
        entry = (await registry.entries(connection, view.table, key)).get("")
        archived = self._policy is not None and bool(self._policy.archive_dir)
        if entry is None or entry.get("state") not in _UNDER_WAY:
            raise StartError(f"{step.partition} was not detached by us")
        found = await connection.fetchrow(_LEFT, entry["oid"], step.partition)
        if found is not None and found["attached"]:
            # Somebody wants to keep it: then it is theirs, until it is adopted.
            await registry.remove(connection, kept, key)
            await registry.remove(connection, kept, registry.PARTITION + step.partition)
            raise StartError(f"{step.partition} was attached again by somebody: it stays")
        if archived and entry["state"] != VERIFIED:
            raise StartError(f"{step.partition} is not in the archive yet: it is not dropped")
        async with connection.transaction():
            if found is not None:
                await connection.execute(f"drop table {found['name']}")
            await registry.remove(connection, kept, registry.PARTITION + step.partition)
            if archived:
                await registry.put(connection, kept, key, {**entry, "state": DROPPED})
            else:
                await registry.remove(connection, kept, key)
                await rollup_state.removed(connection, view, entry["to_us"])


async def _begun(connection: Connection, view: View) -> dict[str, Any]:
    """Return the entries of the partitions that are on their way out.

    A detach that got no lock has not begun: the partition is judged anew, by the policy of now.
    One that was attached again by somebody has the state `attached`.
    """
    entries = (await registry.entries(connection, view.table, registry.ARCHIVE)).items()
    begun = {name: entry for name, entry in entries if entry.get("state") in _UNDER_WAY}
    for row in await connection.fetch(_STILL_THERE, view.oid, list(begun)) if begun else []:
        name = row["name"]
        if begun[name]["state"] == DETACHING:
            del begun[name]
        else:
            begun[name] = {**begun[name], "state": ATTACHED}
    return begun


async def _of_table(policy: Policy, connection: Connection, view: View) -> Policy:
    """Return the policy with the columns of this table that the archive does not have."""
    if not policy.archive_dir:
        return policy
    rows = await connection.fetch(_FURTHER_COLUMNS, view.oid, list(view.target.columns))
    return policy._replace(left_out=tuple(row["name"] for row in rows))
