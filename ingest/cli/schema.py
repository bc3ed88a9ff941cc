"""`ingest schema`: creates the table if it is missing, or compares it with what is needed."""

from __future__ import annotations

import argparse

from ingest.cli.parser import Command, Parser, SettingsFlags, add_group, add_json_flag
from ingest.cli.terminal import print_answer
from ingest.config.loading import Loaded

TAKES = "COMMAND [options]"
EXAMPLES = ("ingest schema show", "ingest schema apply --role ingest")
EPILOG = None


def add_arguments(parser: Parser, settings: SettingsFlags) -> None:
    """Add the two commands."""
    apply = Command(
        "apply",
        "create the table and its key; an existing table is not changed",
        (
            "ingest schema apply --device-index",
            "ingest schema apply --role ingest --database-url postgresql://admin@db.example/metrics",
        ),
        _apply_flags,
    )
    show = Command(
        "show",
        "print the table, and how it differs from what is needed",
        ("ingest schema show", "ingest schema show --json"),
        add_json_flag,
    )
    add_group(parser, "schema_command", (apply, show), settings)


def _apply_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device-index",
        action="store_true",
        help="also create an index per device: faster queries for one device, slower writing",
    )
    parser.add_argument(
        "--role", metavar="NAME", help="allow this role to read and write the table, nothing else"
    )
    add_json_flag(parser)


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Apply or show; return 0, or 1 if `show` found a table that cannot be used."""
    import asyncio  # noqa: PLC0415

    return asyncio.run(_run(args, loaded))


async def _run(args: argparse.Namespace, loaded: Loaded) -> int:
    from ingest.app.target import make_target  # noqa: PLC0415
    from ingest.cli.find_database import connect_limits, database  # noqa: PLC0415
    from ingest.sinks.postgres import schema  # noqa: PLC0415
    from ingest.sinks.postgres.session import as_start_error, connected  # noqa: PLC0415

    settings, target = loaded.settings, make_target(loaded.settings)
    applies = args.schema_command == "apply"
    async with (
        database(settings, may_make=applies) as url,
        connected(url, **connect_limits(settings)) as opened,
    ):
        with as_start_error(url):
            if applies:
                done = await schema.apply(
                    opened, target, device_index=args.device_index, role=args.role
                )
                print_answer({"done": done}, "\n".join(done), as_json=args.json)
                return 0
            text = await schema.show(opened, target)
            difference = await schema.difference(opened, target)
            found = {"fits": difference is None, "difference": difference, "table": text}
            print_answer(found, text, as_json=args.json)
            return 0 if difference is None else 1
