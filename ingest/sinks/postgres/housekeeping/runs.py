"""One run of housekeeping, with a connection of its own: look, plan, do, and look again.

A run with many steps ends early, after RUN_S, and the next one plans anew. So partitions are made
ahead, and rollups computed, also while hundreds of partitions are archived.
Promises: each failure of the whole run is a StartError; of a step, it is in the report.

The version of what we keep in the database beside the readings, and the steps to the next one.

It is one number, in the registry. The readings table has none: each writer compares it with what
is needed, and one that fits is written to by older and newer programs alike. What the number
guards is the registry: an older program that misread it could drop what a newer one keeps.
Promises: a step is made whole or not at all, and never twice. Only `upgrade` makes one.
Does not: change or need the readings table. The driver's errors pass through.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import Connection, Timeouts, opened
from ingest.sinks.postgres.housekeeping import plan, registry
from ingest.sinks.postgres.housekeeping.plan import Did, Job, OtherRun, Step, alone
from ingest.sinks.postgres.housekeeping.registry import SCHEMA_VERSION
from ingest.sinks.postgres.housekeeping.table_state import View, look_at, oldest_us
from ingest.sinks.postgres.schema import READINGS, TargetTable
from ingest.system.clock import monotonic_s
from ingest.system.words import counted


class Upgrade(NamedTuple):
    """A step to version `to`; `do` gets the connection and the name of the registry."""

    to: int
    words: str
    do: Callable[[Connection, str], Awaitable[None]]


class SchemaState(NamedTuple):
    """The version found: None without a registry, -1 if it is no number. `registry` is its name.

    `needs` is a sentence if somebody must act. `refuses`: until then nothing may be changed.
    """

    version: int | None
    registry: str = registry.NAME
    needs: str = ""
    refuses: bool = False


async def _only_the_number(connection: Connection, name: str) -> None:
    """Version 1 is what was kept before there were numbers."""


STEPS = (Upgrade(1, "write down the version", _only_the_number),)


async def state_of(connection: Connection, table: str) -> SchemaState:
    """Read the version beside a table. What this role may not read is not there for it."""
    name, readable = await registry.name_beside(connection, table)
    if not readable:
        return SchemaState(None, name)
    version = await registry.version_in(connection, name)
    if why := registry.refusal(version):
        return SchemaState(version, name, why, refuses=True)
    needs = ""
    if version < SCHEMA_VERSION:
        needs = (
            f"the schema has version {version}, and this program has {SCHEMA_VERSION}: it works "
            "with both; run `ingest schema upgrade` when all processes are of the new version"
        )
    return SchemaState(version, name, needs)


def steps_from(version: int | None) -> list[Upgrade]:
    """Return the steps that are missing, in order."""
    return [each for each in STEPS if version is not None and version < each.to]


async def upgrade(connection: Connection, table: str, oid: int) -> list[str]:
    """Do the missing steps; return them in words. Raises StartError if it may not, or is too old.

    No run of housekeeping is under way meanwhile: else it raises OtherRun.
    """
    done: list[str] = []
    async with alone(connection, oid):
        found = await state_of(connection, table)
        if found.refuses:
            raise StartError(found.needs)
        for step in steps_from(found.version):
            async with connection.transaction():
                await step.do(connection, found.registry)
                entry = {"version": step.to}
                await registry.put(connection, found.registry, {registry.SCHEMA: entry})
            done.append(f"version {step.to}: {step.words}")
    return done


HIDDEN_SHOWN_MAX = 5
RUN_S = 900.0  # after it a run begins no further step


class Report(NamedTuple):
    """The table at the end, the time of its oldest reading, what is due, and what was done.

    `facts` are those of the jobs. `other_run`: nothing was done, because another run is
    under way. `schema` is the version of what was found; if it refuses, nothing was done either.
    `has_more`: the run has ended early, and no step has failed: the next one may begin at once.
    """

    view: View
    oldest_us: int | None
    due: list[Step]
    did: list[Did]
    facts: Mapping[str, Any] = MappingProxyType({})
    other_run: bool = False
    schema: SchemaState = SchemaState(None)
    has_more: bool = False

    @property
    def hidden(self) -> Sequence[str]:
        """The partitions that are detached on their way out of the table."""
        found: Sequence[str] = self.facts.get("detached", ())
        return found

    @property
    def hidden_words(self) -> str:
        """What is to be said of `hidden`, if there are any."""
        return (
            f"{counted(len(self.hidden), 'partition')} detached on the way out, and no query sees "
            f"the readings: {', '.join(self.hidden[:HIDDEN_SHOWN_MAX])}. If no run is at work: "
            "`ingest housekeeping run`"
        )


async def look(
    url: str, timeouts: Timeouts, span: str, jobs: Sequence[Job], *, target: TargetTable = READINGS
) -> Report:
    """Look at the table, and plan; change nothing."""
    async with opened(url, timeouts) as connection:
        view = await look_at(connection, target.name, span, target=target)
        found = await state_of(connection, view.table)
        return (await _report(connection, view, jobs))._replace(schema=found)


async def run(
    url: str,
    timeouts: Timeouts,
    span: str,
    jobs: Sequence[Job],
    *,
    target: TargetTable = READINGS,
    yes: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Report:
    """Look, do what is due, and look again. With `yes` also the steps that wait for a person."""
    began_s = monotonic_s()
    async with opened(url, timeouts) as connection:
        view = await look_at(connection, target.name, span, target=target)
        found = await state_of(connection, view.table)
        did, other_run = list[Did](), False
        try:
            if not found.refuses:
                did = await plan.run(
                    connection, view, jobs, yes=yes, stopped=stopped, within_s=RUN_S
                )
        except OtherRun:
            other_run = True
        if connection.is_closed() and did and did[-1].error:
            raise StartError(did[-1].error)  # of more use than that the connection is closed
        if did:
            view = await look_at(connection, target.name, span, target=target)
        report = await _report(connection, view, jobs)
        is_over = bool(did) and monotonic_s() - began_s >= RUN_S
        has_more = is_over and not any(each.error for each in did)
        return report._replace(did=did, other_run=other_run, schema=found, has_more=has_more)


async def run_all(
    url: str,
    timeouts: Timeouts,
    span: str,
    jobs: Sequence[Job],
    *,
    target: TargetTable = READINGS,
    yes: bool = False,
) -> Report:
    """Run until a run has done all that was due, or a step has failed; report on all of them."""
    did: list[Did] = []
    while True:
        report = await run(url, timeouts, span, jobs, target=target, yes=yes)
        did += report.did
        if not report.has_more:
            return report._replace(did=did, other_run=report.other_run and not did)


async def _report(connection: Connection, view: View, jobs: Sequence[Job]) -> Report:
    """Return what is due, and how the table is."""
    due = await plan.plan(connection, view, jobs)
    facts: dict[str, Any] = {}
    for job in jobs:
        facts |= await job.facts(connection, view)
    return Report(view, await oldest_us(connection, view), due, [], facts)
