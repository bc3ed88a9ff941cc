"""`ingest schema`: creates the table, compares it with what is needed, gives it partitions."""

from __future__ import annotations

import argparse

from ingest.cli import schema_partition
from ingest.cli.parser import Command, Parser, SettingsFlags, add_group, add_json_flag
from ingest.cli.terminal import print_answer
from ingest.config.loading import Loaded

NOT_OWNER = (
    "the role {role} cannot make further partitions: run `ingest housekeeping run` each day with "
    "this URL, or set housekeeping_url for the service"
)
TAKES = "COMMAND [options]"
EXAMPLES = ("ingest schema show", "ingest schema apply --role ingest")
EPILOG = None
_OF_PARTITIONS = {"partition": schema_partition.partition, "adopt": schema_partition.adopt}


def add_arguments(parser: Parser, settings: SettingsFlags) -> None:
    """Add the commands."""
    apply = Command(
        "apply",
        "create the table and its key; an existing table is not changed",
        (
            "ingest schema apply --device-index",
            "ingest schema apply --role ingest --database-url postgresql://admin@db.example/metrics",
        ),
        _apply_flags,
    )
    partition = Command(
        "partition",
        "turn a plain table into one with a partition for each day or month, while others write",
        (
            "ingest schema partition --partition-span day",
            "ingest schema partition --partition-span day --yes",
            "ingest schema partition --undo",
        ),
        schema_partition.partition_flags,
    )
    adopt = Command(
        "adopt",
        "let the housekeeping drop or archive partitions that it has not made",
        ("ingest schema adopt", "ingest schema adopt readings_2026_01 --yes"),
        schema_partition.adopt_flags,
        "[PARTITION ..]",
    )
    show = Command(
        "show",
        "print the table, and how it differs from what is needed",
        ("ingest schema show", "ingest schema show --json"),
        add_json_flag,
    )
    add_group(parser, "schema_command", (apply, partition, adopt, show), settings)


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
    """Return 0, or 1 if `show` found a table that cannot be used, or a yes is needed."""
    import asyncio  # noqa: PLC0415

    return asyncio.run(_run(args, loaded))


async def _run(args: argparse.Namespace, loaded: Loaded) -> int:
    from ingest.app.database import housekeeping_url, partitions_ahead  # noqa: PLC0415
    from ingest.cli.find_database import connect_limits, database  # noqa: PLC0415
    from ingest.sinks.postgres import schema  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping.view import look_at  # noqa: PLC0415
    from ingest.sinks.postgres.make_table import first_partitions  # noqa: PLC0415
    from ingest.sinks.postgres.session import as_start_error, connected  # noqa: PLC0415

    settings = loaded.settings
    if args.schema_command in _OF_PARTITIONS:
        async with database(settings) as found:
            url = housekeeping_url(settings, lambda: found)()
            return await _OF_PARTITIONS[args.schema_command](args, settings, url)
    applies = args.schema_command == "apply"
    async with (
        database(settings, may_make=applies) as url,
        connected(url, **connect_limits(settings)) as opened,
    ):
        with as_start_error(url):
            if applies:
                ahead = partitions_ahead(settings)
                done = await schema.apply(
                    opened,
                    device_index=args.device_index,
                    role=args.role,
                    partitions=await first_partitions(opened, settings.partition_span, ahead),
                )
                view = await look_at(opened, schema.TABLE, settings.partition_span, sizes=False)
                if args.role and view.ours and args.role != view.owner:
                    done.append(NOT_OWNER.format(role=args.role))
                print_answer({"done": done}, "\n".join(done), as_json=args.json)
                return 0
            text, difference = await schema.show(opened), await schema.difference(opened)
            answer = {"fits": difference is None, "difference": difference, "table": text}
            print_answer(answer, text, as_json=args.json)
            return 0 if difference is None else 1
