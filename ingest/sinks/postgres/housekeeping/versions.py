"""The version of what we keep in the database beside the readings, and the steps to the next one.

It is one number, in the registry. The readings table has none: each writer compares it with what
is needed, and one that fits is written to by older and newer programs alike. What the number
guards is the registry: an older program that misread it could drop what a newer one keeps.
Promises: a step is made whole or not at all, and never twice. Only `upgrade` makes one.
Does not: change or need the readings table. The driver's errors pass through.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from asyncpg import Connection

from ingest.model.errors import StartError
from ingest.sinks.postgres.housekeeping import registry
from ingest.sinks.postgres.housekeeping.plan import alone
from ingest.sinks.postgres.housekeeping.registry import SCHEMA_VERSION


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
