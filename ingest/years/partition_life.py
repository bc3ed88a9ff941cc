"""The life of a partition on its way out of the table: its states, and the moves between them.

The registry has it under `archive/NAME`: first `detaching`, then `detached`, with an archive
`verified`, and after the drop `dropped`. Without an archive nothing is left. What somebody else has
done meanwhile is seen in the catalog, and not stored: `attached` again, or `gone`. An entry that
cannot be read is `damaged`: nothing is done for its partition.
Promises: an entry changes only as MOVES says. So nothing is dropped that was to be archived, before
that is verified. A table is known by its oid: one that only has the same name is never meant.
Does not: detach, archive or drop. The driver's errors pass through.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import Connection
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.partitions import TimeSpan
from ingest.sinks.postgres.housekeeping.table_state import View

DETACH, ARCHIVE, DROP = "detach", "archive", "drop"  # the kinds of steps


class State(StrEnum):
    """How far a partition is. `NONE`: there is no entry."""

    NONE = ""
    DETACHING = "detaching"
    DETACHED = "detached"
    WRITTEN = "written"  # of older versions: not yet verified
    VERIFIED = "verified"
    DROPPED = "dropped"  # it was archived
    ATTACHED = "attached"
    GONE = "gone"
    DAMAGED = "damaged"


# From each state. ATTACHED and GONE end it; that a detach is begun again changes nothing.
MOVES: dict[State, set[State]] = {
    State.NONE: {State.DETACHING},
    State.DETACHING: {State.DETACHING, State.DETACHED},
    State.DETACHED: {State.DETACHED, State.VERIFIED, State.NONE},
    State.WRITTEN: {State.VERIFIED},
    State.VERIFIED: {State.VERIFIED, State.DROPPED},
    State.DROPPED: {State.DETACHING},  # a later partition of this name
    State.ATTACHED: {State.NONE},
    State.GONE: {State.NONE},
    State.DAMAGED: set(),
}
# The steps that are due in each state. For the last three `drop` says what has become of it.
STEPS: dict[State, tuple[str, ...]] = {
    State.DETACHING: (DETACH, ARCHIVE, DROP),
    State.DETACHED: (ARCHIVE, DROP),
    State.WRITTEN: (ARCHIVE, DROP),
    State.VERIFIED: (ARCHIVE, DROP),
    State.ATTACHED: (DROP,),
    State.GONE: (DROP,),
    State.DAMAGED: (DROP,),
}
UNDER_WAY = {State.DETACHING, State.DETACHED, State.WRITTEN, State.VERIFIED}
DECIDED = {State.ATTACHED, State.GONE, State.VERIFIED}  # what comes next loses nothing

_THERE = """
select c.oid::int8 as oid, c.relname::text as name, i.inhparent::int8 as parent
from pg_class c left join pg_inherits i on i.inhrelid = c.oid
  and not coalesce((to_jsonb(i) ->> 'inhdetachpending')::bool, false)
where c.oid = any ($1::oid[])"""


class PartitionEntry(NamedTuple):
    """What is known of a partition: its table's oid, and its bounds in Unix microseconds.

    `archive_dir` is where it was to be archived when it was detached; empty: it was to be dropped.
    `more` is what else the registry has.
    """

    state: State
    oid: int
    from_us: int
    to_us: int
    archive_dir: str
    more: dict[str, Any]

    @property
    def span(self) -> TimeSpan:
        """Its bounds."""
        return TimeSpan(self.from_us, self.to_us)

    @property
    def under_way(self) -> bool:
        """Whether it is detached, or about to be, and neither dropped nor taken by somebody."""
        return self.state in UNDER_WAY

    @property
    def for_archive(self) -> bool:
        """Whether it was to be archived. Older versions have not noted where."""
        return self.state in (State.WRITTEN, State.VERIFIED) or bool(self.archive_dir)

    def moved(self, to: State) -> PartitionEntry:
        """Return it in another state. Raises StartError if MOVES does not have that."""
        if to not in MOVES[self.state]:
            raise StartError(f"a partition that is {self.state.value} cannot be {to.value} next")
        return self._replace(state=to)

    def written(self) -> dict[str, Any]:
        """Return what the registry gets."""
        known = self._asdict()
        del known["more"]
        return self.more | known


def begin(oid: int, span: TimeSpan, archive_dir: str) -> PartitionEntry:
    """Return the first entry of a partition."""
    return PartitionEntry(State.NONE, oid, *span, archive_dir, {}).moved(State.DETACHING)


async def entries(connection: Connection, table: str) -> dict[str, PartitionEntry]:
    """Return the entries by the names of the partitions."""
    found = await registry.entries(connection, table, registry.ARCHIVE)
    return {name: read(entry) for name, entry in found.items()}


async def entry_of(connection: Connection, table: str, name: str) -> PartitionEntry | None:
    """Return the entry of a partition, if there is one. Raises StartError if it is damaged."""
    found = (await registry.entries(connection, table, registry.ARCHIVE + name)).get("")
    if found is None:
        return None
    if (entry := read(found)).state is State.DAMAGED:
        raise StartError(damage(name))
    return entry


def damage(name: str) -> str:
    """Return what is to be said of a partition whose entry cannot be read."""
    return f"the entry archive/{name} of {registry.NAME} is damaged: nothing is done for {name}"


def read(found: dict[str, Any]) -> PartitionEntry:
    """Return the entry of a partition; one that cannot be understood is DAMAGED."""
    try:
        state = State(found["state"])
        known = {"oid": 0, "from_us": 0, "to_us": 0} | found if state is State.DROPPED else found
        oid, from_us, to_us = (int(known[each]) for each in ("oid", "from_us", "to_us"))
        return PartitionEntry(state, oid, from_us, to_us, str(found.get("archive_dir", "")), found)
    except (KeyError, TypeError, ValueError):
        return PartitionEntry(State.DAMAGED, 0, 0, 0, "", found)


async def store(connection: Connection, kept: str, name: str, entry: PartitionEntry) -> None:
    """Store the entry of a partition in the registry `kept`; without a state it is removed."""
    if entry.state is State.NONE:
        await registry.remove(connection, kept, registry.ARCHIVE + name)
    else:
        await registry.put(connection, kept, {registry.ARCHIVE + name: entry.written()})


async def on_the_way(connection: Connection, view: View) -> dict[str, PartitionEntry]:
    """Return the entries of the partitions that are on their way out, as they are now.

    A detach that got no lock has not begun: the partition is judged anew, by the policy of now.
    One that was attached again by somebody has the state ATTACHED, one that was dropped or renamed
    GONE. Those that are DAMAGED are among them.
    """
    found = await entries(connection, view.table)
    begun = {name: entry for name, entry in found.items() if entry.under_way}
    parents = await _parents(connection, begun)
    damaged = {name: entry for name, entry in found.items() if entry.state is State.DAMAGED}
    for name, entry in list(begun.items()):
        at = (entry.oid, name)
        if at not in parents:
            begun[name] = entry._replace(state=State.GONE)
        elif entry.state is State.DETACHING and parents[at] == view.oid:
            del begun[name]
        elif parents[at] is not None:
            begun[name] = entry._replace(state=State.ATTACHED)
    return begun | damaged


async def _parents(
    connection: Connection, begun: dict[str, PartitionEntry]
) -> dict[tuple[int, str], Any]:
    """Return of which table each one is a partition, or None, by its oid and its name."""
    oids = [entry.oid for entry in begun.values()]
    rows = await connection.fetch(_THERE, oids) if oids else []
    return {(row["oid"], row["name"]): row["parent"] for row in rows}


async def left(connection: Connection, table: str) -> list[TimeSpan]:
    """Return the times that are not in the table any more: detached, or dropped.

    Raises StartError if an entry is damaged: its time may be one of them.
    """
    found = await entries(connection, table)
    for name, entry in found.items():
        if entry.state is State.DAMAGED:
            raise StartError(damage(name))
    parents = await _parents(connection, {n: e for n, e in found.items() if e.under_way})
    return [
        entry.span
        for name, entry in found.items()
        if entry.state is State.DROPPED or parents.get((entry.oid, name)) is None
    ]
