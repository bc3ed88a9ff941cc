"""`ingest schema upgrade`: brings what we keep beside the readings to the version of this program.

It prints what it would do, and does it only with --yes. A second time there is nothing to do.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ingest.cli.parser import add_json_flag
from ingest.cli.terminal import print_answer
from ingest.config.settings import Settings
from ingest.model.errors import StartError

if TYPE_CHECKING:
    from ingest.sinks.postgres.housekeeping.versions import SchemaState


def upgrade_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `upgrade`."""
    parser.add_argument("--yes", action="store_true", help="do it, not only print what would be")
    add_json_flag(parser)


async def upgrade(args: argparse.Namespace, settings: Settings, url: str) -> int:
    """Upgrade, or print what would be done; return 1 if it was only printed."""
    from ingest.app.database import timeouts  # noqa: PLC0415
    from ingest.app.target import make_target  # noqa: PLC0415
    from ingest.sinks.postgres import schema  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping import registry, versions  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping.opening import opened  # noqa: PLC0415

    target = make_target(settings)
    async with opened(url, timeouts(settings)) as connection:
        look = await schema.look(connection, target)
        if look.difference:
            raise StartError(look.difference)
        found = await versions.state_of(connection, look.target.name)
        if found.refuses:
            raise StartError(found.needs)
        steps = versions.steps_from(found.version)
        due = [f"version {each.to}: {each.words}" for each in steps]
        done: list[str] = []
        if args.yes and due:
            done = await versions.upgrade(connection, look.target.name, look.oid)
    answer = {
        "table": look.target.name,
        "version": found.version,
        "version_of_program": registry.SCHEMA_VERSION,
        "due": [] if args.yes else due,
        "done": done,
    }
    print_answer(answer, "\n".join(_words(look.target.name, found, due, done)), as_json=args.json)
    return 1 if due and not args.yes else 0


def _words(table: str, found: SchemaState, due: list[str], done: list[str]) -> list[str]:
    lines = [f"the table {table} fits"]
    if done:
        return [*lines, *(f"done: {each}" for each in done)]
    if due:
        return [*lines, *(f"due: {each}" for each in due), "To do it, repeat it with --yes."]
    if found.version is None:
        why = f"this role sees no table {found.registry} beside it"
    else:
        why = f"the schema has version {found.version}, which is that of this program"
    return [*lines, f"nothing to upgrade: {why}"]
