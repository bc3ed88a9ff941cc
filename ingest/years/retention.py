"""How old readings leave the table: which may go, what a person must confirm, detach and drop.

Three jobs of housekeeping. `Retention`: each partition is detached while others write; if there is
an archive, its job writes and verifies it; then the table is dropped. How far it is, and what may
come next: partition_life.py. `HalfDetached` ends a detach that somebody else has begun. `Chunks`
drops what is old in a hypertable of TimescaleDB, which makes its chunks by itself.
Promises: only a table that we made or adopted is dropped, and it is the one that was detached. With
an archive it is dropped only if it was verified. What waits for a person's answer is not begun.
Killed at any moment, the next run goes on. What was detached to be archived is not dropped without
that, whatever the settings are by then. No chunk is dropped while there is an archive that does not
get it. Times are Unix microseconds of the database's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import Connection, Record
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.partitions import BEGINNING_US, Partition, TimeSpan, literal
from ingest.sinks.postgres.housekeeping.runs import Job, Step
from ingest.sinks.postgres.housekeeping.table_state import (
    HYPERTABLE,
    OTHER,
    PARTITIONED,
    PLAIN,
    View,
)
from ingest.sinks.postgres.schema import quoted
from ingest.system.clock import rfc3339_or_us
from ingest.years import partition_life
from ingest.years.partition_life import ARCHIVE, DETACH, DROP, PartitionEntry, State
from ingest.years.rollups import state as rollup_state
from ingest.years.rollups.tables import Key

FINISH, DROP_CHUNKS = "finish", "drop_chunks"  # kinds of steps
# More at once may be a wrong setting or a clock that has jumped.
MANY, MANY_SHARE = 3, 0.1
_HALF_DETACHED = (
    "its DETACH .. CONCURRENTLY was cut off: until it is completed, no reading of its time can be "
    "stored"
)
_NOT_BY_TIME = (
    "not possible: {} has no partitions by time, so nothing leaves it: "
    "deploy/partition-a-table.sql makes some"
)
_NO_ARCHIVE = (
    "{} was detached to be archived{}, and archive_dir is not set any more: set it again. "
    "Until then the table is not dropped"
)
_NOT_ARCHIVED = "a hypertable is not archived: without archive_dir its old chunks are dropped"
_CONCURRENTLY_FROM = 14  # PostgreSQL; before, a detach locks the table for a moment
_LOCK_MS = 300  # for that lock: all writers wait behind it

_ATTACHED = """
select c.oid::int8 as oid, format('%I.%I', n.nspname, c.relname) as name,
       coalesce((to_jsonb(i) ->> 'inhdetachpending')::bool, false) as pending
from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = relnamespace
where i.inhparent = $1::oid and c.relname = $2"""
_LEFT = """
select format('%I.%I', n.nspname, c.relname) as name,
       exists (select from pg_inherits where inhrelid = c.oid) as attached
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = $1::oid and c.relname = $2"""
# Before PostgreSQL 14 there is no such column, and no such detach.
_PENDING = """
select c.relname::text as name, c.oid::int8 as oid, format('%I.%I', n.nspname, c.relname) as table
from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = relnamespace
where i.inhparent = $1::oid and coalesce((to_jsonb(i) ->> 'inhdetachpending')::bool, false)"""
_FURTHER_COLUMNS = """
select attname::text as name from pg_attribute where attrelid = $1::oid and attnum > 0
and not attisdropped and attname <> all ($2::text[]) order by attnum"""
_CHUNKS = """
select k.chunk_name::text as name,
       (extract(epoch from k.range_start) * 1000000)::int8 as from_us,
       (extract(epoch from k.range_end) * 1000000)::int8 as to_us
from timescaledb_information.chunks k join pg_namespace n on n.nspname = k.hypertable_schema
join pg_class c on c.relnamespace = n.oid and c.relname = k.hypertable_name
where c.oid = $1::oid and k.range_end is not null order by k.range_end"""


class Policy(NamedTuple):
    """How long readings stay in the table (`keep_hot`), and where they go then.

    An empty `archive_dir`: they are dropped. `keep_hot` is the setting as it was written.
    `left_out` are the columns of the table that the archive does not have.
    """

    keep_us: int
    keep_hot: str
    archive_dir: str = ""
    left_out: tuple[str, ...] = ()

    def cutoff_us(self, now_us: int) -> int:
        """Return the time before which all readings may leave."""
        return now_us - self.keep_us

    def entry(self, now_us: int) -> dict[str, Any]:
        """Return what the registry has of a confirmation, under `answer/keep_hot`."""
        return {
            "keep_us": self.keep_us,
            "archive_dir": self.archive_dir,
            "left_out": list(self.left_out),
            "until_us": self.cutoff_us(now_us),
        }


def due(found: Sequence[Partition], pinned: Mapping[str, Any], cutoff_us: int) -> list[Partition]:
    """Return the partitions of ours that have only readings from before `cutoff_us`."""
    return [
        each for each in found if each.ours and each.to_us <= cutoff_us and each.name not in pinned
    ]


def is_confirmed(policy: Policy, answer: Mapping[str, Any] | None) -> bool:
    """Whether a person has said yes to this policy; `answer` is the last confirmation."""
    return (
        answer is not None
        and answer.get("keep_us") == policy.keep_us
        and answer.get("archive_dir") == policy.archive_dir
        and set(policy.left_out) <= set(answer.get("left_out", ()))
    )


def must_confirm(
    leaving: Sequence[Partition], count: int, policy: Policy, answer: Mapping[str, Any] | None
) -> str:
    """Return why a person must confirm that these leave a table of `count` partitions, or nothing.

    `answer` is the last confirmation. It is good for all partitions up to its `until_us`.
    """
    if not leaving:
        return ""
    what = "archived and dropped" if policy.archive_dir else "dropped"
    until = rfc3339_or_us(leaving[-1].to_us)
    said = (
        f"{len(leaving)} of {count} partitions, with all readings before {until}, would be {what}"
    )
    if policy.left_out:
        said += f", but what is in {', '.join(policy.left_out)} would be lost: the files lack it"
    if answer is None or not is_confirmed(policy, answer):
        return f"keep_hot = {policy.keep_hot} has not been confirmed: {said}"
    fresh = [each for each in leaving if each.to_us > answer.get("until_us", 0)]
    if len(fresh) > MANY and len(fresh) > MANY_SHARE * count:
        return f"so many at once: {said}"
    return ""


class Retention(Job):
    """The job of partitions. Without a policy nothing leaves, but for what was begun before.

    It plans the steps of kind `archive` for the job of the archive, which does them. With `rollups`
    nothing leaves before it is in them; `failed` are those that cannot be computed now, and with an
    archive they are given up. `archive_dir` is that of the policy; if there is none, it is for what
    was begun.
    """

    kinds = frozenset({DETACH, DROP})

    def __init__(
        self,
        policy: Policy | None,
        *,
        archive_dir: str = "",
        rollups: bool = False,
        failed: Mapping[Key, str] | None = None,
    ) -> None:
        self._policy = policy
        self._archive_dir = archive_dir if policy is None else policy.archive_dir
        self._rollups = rollups
        self._failed = failed

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return the steps of the partitions that are old enough, the oldest first."""
        if why := self._useless(view):
            return [Step(DROP, view.name, why)]  # it fails, and says so
        if view.kind != PARTITIONED:
            return []
        begun = await partition_life.on_the_way(connection, view)
        steps = self._to_end(begun, view)
        if self._policy is None:
            return steps
        policy = await _of_table(self._policy, connection, view)
        pinned = await registry.entries(connection, view.table, registry.PINNED)
        leaving = due(view.partitions, pinned, policy.cutoff_us(view.now_us))
        leaving = [each for each in leaving if each.name not in begun]
        answers = await registry.entries(connection, view.table, registry.KEEP_HOT)
        waits = must_confirm(leaving, len(view.partitions), policy, answers.get(""))
        for each in leaving:
            steps += self._steps(each.name, each.from_us, each.to_us, waits, begun=False)
        return steps

    def _useless(self, view: View) -> str:
        """Return why `keep_hot` does nothing to this table, if it is set."""
        if self._policy is None:
            return ""
        if view.kind in (PLAIN, OTHER):
            return _NOT_BY_TIME.format(view.table)
        return view.not_ours

    def _to_end(self, begun: dict[str, PartitionEntry], view: View) -> list[Step]:
        """Return the rest of what was begun. It was confirmed then, under the policy of then."""
        steps = []
        for name, entry in begun.items():
            if entry.state is State.DAMAGED:
                steps.append(Step(DROP, name, partition_life.damage(name)))  # it fails, and says so
                continue
            waits = (
                "" if entry.state in partition_life.DECIDED else self._question(name, entry, view)
            )
            found = self._steps(name, *entry.span, waits, begun=True)
            steps += [each for each in found if each.kind in partition_life.STEPS[entry.state]]
        return steps

    def _question(self, name: str, entry: PartitionEntry, view: View) -> str:
        """Return what a person must answer, if a detached table cannot go on as was confirmed."""
        confirmed = entry.archive_dir
        if entry.for_archive and not self._archive_dir:
            return ""  # no answer helps: the drop fails, and says so
        if confirmed != self._archive_dir:
            return (
                f"archive_dir was changed after {name} was detached: --yes archives it in "
                f"{self._archive_dir}, and then drops it"
            )
        policy = self._policy
        if confirmed or (policy and entry.to_us <= policy.cutoff_us(view.now_us)):
            return ""
        rollups = "; then turn rollups off and on, with a run after each" if self._rollups else ""
        bounds = f"from ({literal(entry.from_us)}) to ({literal(entry.to_us)})"
        return (
            f"{name} was detached to be dropped, but under today's keep_hot it would stay. --yes "
            f"drops it, without an archive. To keep it: alter table {view.table} attach "
            f"partition {quoted(view.schema)}.{quoted(name)} for values {bounds}{rollups}"
        )

    def _steps(self, name: str, from_us: int, to_us: int, waits: str, *, begun: bool) -> list[Step]:
        kept = f"keep_hot = {self._policy.keep_hot}" if self._policy else "begun before"
        why = f"all its readings are from before {rfc3339_or_us(to_us)} ({kept})"
        # The rest of a detach is done in any case: until then no query sees the partition.
        steps = [Step(DETACH, name, why, from_us, to_us, "" if begun else waits)]
        if self._archive_dir:
            steps.append(Step(ARCHIVE, name, why, from_us, to_us, waits))
        return [*steps, Step(DROP, name, why, from_us, to_us, waits)]

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """Detach or drop. A step that waited was confirmed: that is recorded first."""
        if why := self._useless(view):
            raise StartError(why)
        kept = await registry.make(connection, view.table, view.owner)
        if step.waits and self._policy is not None:
            policy = await _of_table(self._policy, connection, view)
            await registry.put(connection, kept, {registry.KEEP_HOT: policy.entry(view.now_us)})
        if step.kind == DETACH:
            await self._detach(connection, view, step, kept)
        else:
            await self._drop(connection, view, step, kept)

    async def facts(self, connection: Connection, view: View) -> dict[str, Any]:
        """Return what is detached and not dropped yet: no query sees the readings of it."""
        begun = (await partition_life.on_the_way(connection, view)).items()
        return {"detached": [name for name, entry in begun if entry.under_way]}

    async def _detach(self, connection: Connection, view: View, step: Step, kept: str) -> None:
        found = await connection.fetchrow(_ATTACHED, view.oid, step.partition)
        entry = await partition_life.entry_of(connection, view.table, step.partition)
        if entry is not None and not entry.under_way:
            entry = None
        if found is None:
            if entry is None:
                raise StartError(f"{step.partition} is not a partition of {view.table} any more")
        else:
            if not found["pending"]:
                span = TimeSpan(step.from_us, step.to_us)
                entry = partition_life.begin(found["oid"], span, self._archive_dir)
                await rollup_state.leave(
                    connection,
                    view,
                    step.to_us,
                    from_us=step.from_us,
                    wanted=self._rollups,
                    failed=self._failed if self._archive_dir else None,
                )
            elif entry is None or entry.oid != found["oid"]:
                raise StartError(f"{step.partition} was half detached by somebody else")
            await partition_life.store(connection, kept, step.partition, entry)
            detach = f"alter table {view.table} detach partition {found['name']}"
            if connection.get_server_version().major < _CONCURRENTLY_FROM:
                async with connection.transaction():
                    await connection.execute(f"set local lock_timeout = {_LOCK_MS}; {detach}")
            else:
                how = "finalize" if found["pending"] else "concurrently"
                await connection.execute(f"{detach} {how}")
        await partition_life.store(connection, kept, step.partition, entry.moved(State.DETACHED))

    async def _drop(self, connection: Connection, view: View, step: Step, kept: str) -> None:
        name = step.partition
        entry = await partition_life.entry_of(connection, view.table, name)
        if entry is None or not entry.under_way:
            raise StartError(f"{name} was not detached by us")
        found = await connection.fetchrow(_LEFT, entry.oid, name)
        verified = entry.state is State.VERIFIED
        for_archive = entry.for_archive or bool(self._archive_dir)
        lacks = for_archive and not verified
        ended = _what_ended_it(name, found, lacks=lacks)
        if lacks and not ended:
            if not self._archive_dir:
                where = entry.archive_dir and f" in {entry.archive_dir}"
                raise StartError(_NO_ARCHIVE.format(name, where))
            raise StartError(f"{name} is not in the archive yet: it is not dropped")
        if ended or (found is None and not for_archive):
            seen = State.GONE if found is None else State.ATTACHED
            after = entry._replace(state=seen).moved(State.NONE)
        else:
            after = entry.moved(State.DROPPED if for_archive else State.NONE)
        async with connection.transaction():
            if found is not None and not ended:
                await _drop_table(connection, found["name"], entry.oid, name)
            if found is not None or not await connection.fetchrow(_ATTACHED, view.oid, name):
                # else a new partition has this name
                await registry.remove(connection, kept, registry.PARTITION + name)
            await partition_life.store(connection, kept, name, after)
            if after.state is State.NONE and (found is None or not found["attached"]):
                await rollup_state.left(connection, view, entry.span)
        if ended:
            raise StartError(ended)


async def _drop_table(connection: Connection, table: str, oid: int, name: str) -> None:
    """Drop it in the caller's transaction. Who attaches it just now is waited for, and keeps it."""
    await connection.execute(f"lock table {table} in access exclusive mode")
    found = await connection.fetchrow(_LEFT, oid, name)
    if found is None or found["attached"]:
        raise StartError(f"somebody has just attached or renamed {name}: the next run looks again")
    await connection.execute(f"drop table {table}")


def _what_ended_it(name: str, found: Record | None, *, lacks: bool) -> str:
    """Return what somebody else has done to a table, so that its way out ends; or nothing.

    One that was attached again is theirs, until it is adopted. `lacks`: its readings should be in
    the archive, and are not.
    """
    if found is not None:
        return f"{name} was attached again by somebody: it stays" if found["attached"] else ""
    gone = f"{name} was dropped or renamed by somebody before it was in the archive"
    return f"{gone}: it is not archived, and nothing more is done for it" if lacks else ""


async def _of_table(policy: Policy, connection: Connection, view: View) -> Policy:
    """Return the policy with the columns of this table that the archive does not have."""
    if not policy.archive_dir:
        return policy
    rows = await connection.fetch(_FURTHER_COLUMNS, view.oid, list(view.target.columns))
    return policy._replace(left_out=tuple(row["name"] for row in rows))


class HalfDetached(Job):
    """The job that ends a DETACH .. CONCURRENTLY which somebody else did not end.

    If it is cut off while it waits, the server leaves the partition half detached: no query sees
    it, no reading can be written to it, and no other partition can be made in its place. It cannot
    be undone, so the only way is to complete it. After that the table is like each one that was
    detached by hand: it stays as it is, and readings of its time get a new partition. What
    retention has begun to detach is left alone, and so is a table that is not ours.
    """

    kinds = frozenset({FINISH})

    async def plan(self, connection: Connection, view: View) -> list[Step]:
        """Return a step for the partition that is half detached. The server allows one at most."""
        if view.kind != PARTITIONED or not view.ours:
            return []
        return [Step(FINISH, name, _HALF_DETACHED) for name in await _of_others(connection, view)]

    async def do(self, connection: Connection, view: View, step: Step) -> None:
        """End the detach, if it was not ended meanwhile. Waits for queries that use the table."""
        table = (await _of_others(connection, view)).get(step.partition)
        if table is None:
            return
        await connection.execute(f"alter table {view.table} detach partition {table} finalize")


async def _of_others(connection: Connection, view: View) -> dict[str, str]:
    """Return the half detached partitions that retention knows nothing of: name, and as in SQL."""
    rows = await connection.fetch(_PENDING, view.oid)
    if not rows:
        return {}
    begun = await partition_life.entries(connection, view.table)
    ours = {each.oid for each in begun.values() if each.state is State.DETACHING}
    damaged = {name for name, each in begun.items() if each.state is State.DAMAGED}
    return {
        row["name"]: row["table"]
        for row in rows
        if row["oid"] not in ours and row["name"] not in damaged
    }


class Chunks(Job):
    """The job of chunks. Without a policy nothing is dropped; with `rollups`, only what they have.

    TimescaleDB's `drop_chunks` knows which ones it may drop.
    """

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
