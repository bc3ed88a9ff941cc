"""`ingest schema`: creates the table if it is missing, or compares it with what is needed."""

from __future__ import annotations

import argparse

from ingest.config.settings import Loaded


def add_arguments(parser: argparse.ArgumentParser, settings_flags: argparse.ArgumentParser) -> None:
    """Add the two commands."""
    commands = parser.add_subparsers(dest="schema_command", metavar="apply | show", required=True)
    apply = commands.add_parser(
        "apply",
        parents=[settings_flags],
        help="create the table and its key; an existing table is not changed",
    )
    apply.add_argument(
        "--device-index",
        action="store_true",
        help="also create an index per device: faster queries for one device, slower writing",
    )
    apply.add_argument(
        "--role", metavar="NAME", help="allow this role to read and write the table, nothing else"
    )
    commands.add_parser(
        "show",
        parents=[settings_flags],
        help="print the table, and how it differs from what is needed",
    )


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Apply or show; return 0, or 1 if `show` found a table that cannot be used."""
    import asyncio  # noqa: PLC0415

    return asyncio.run(_run(args, loaded))


async def _run(args: argparse.Namespace, loaded: Loaded) -> int:
    from ingest.cli.find_database import connect_limits, database  # noqa: PLC0415
    from ingest.sinks.postgres import schema  # noqa: PLC0415
    from ingest.sinks.postgres.session import as_start_error, connected  # noqa: PLC0415

    settings = loaded.settings
    applies = args.schema_command == "apply"
    async with (
        database(settings, may_make=applies) as url,
        connected(url, **connect_limits(settings)) as opened,
    ):
        with as_start_error(url):
            if applies:
                done = await schema.apply(opened, device_index=args.device_index, role=args.role)
                print("\n".join(done))
                return 0
            print(await schema.show(opened))
            return 0 if await schema.difference(opened) is None else 1
