"""`ingest schema`: makes the table, its partitions or a view of it, compares it, or upgrades."""

from __future__ import annotations

import argparse
import csv
from typing import TYPE_CHECKING, Any

from ingest.cli.parser import Command, Parser, SettingsFlags, add_group, add_json_flag
from ingest.cli.terminal import print_answer, say
from ingest.config.loading import Loaded
from ingest.model.errors import StartError

if TYPE_CHECKING:
    from ingest.config.settings import Settings
    from ingest.sinks.postgres.housekeeping.versions import SchemaState
    from ingest.sinks.postgres.target import TargetTable

NOT_OWNER = (
    "the role {role} cannot make further partitions: run `ingest housekeeping run` each day with "
    "this URL, or set housekeeping_url for the service"
)
TAKES = "COMMAND [options]"
EXAMPLES = ("ingest schema show", "ingest schema apply --role ingest")
EPILOG = None


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
    adopt = Command(
        "adopt",
        "let the housekeeping drop or archive partitions that it has not made",
        ("ingest schema adopt", "ingest schema adopt readings_2026_01 --yes"),
        _adopt_flags,
        "[PARTITION ..]",
    )
    show = Command(
        "show",
        "print the table, how it differs from what is needed, and the SQL that ends this",
        ("ingest schema show", "ingest schema show --json"),
        add_json_flag,
    )
    view = Command(
        "view",
        "print the SQL of a view with a column for each metric; with --yes make it",
        ("ingest schema view --wide climate --metrics temperature,humidity --yes",),
        _view_flags,
    )
    upgrade = Command(
        "upgrade",
        "bring what is kept beside the table to the version of this program",
        ("ingest schema upgrade", "ingest schema upgrade --yes"),
        _upgrade_flags,
    )
    add_group(parser, "schema_command", (apply, adopt, show, view, upgrade), settings)


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


def _view_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wide", metavar="NAME", required=True, help="the view's name, without quotes"
    )
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        type=_names,
        required=True,
        help="the metrics, with commas; one that has a comma itself in quotes: '\"a,b\",c'",
    )
    parser.add_argument("--yes", action="store_true", help="make the view")
    add_json_flag(parser)


def _adopt_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="PARTITION", help="a partition; without one: all of the table"
    )
    parser.add_argument("--yes", action="store_true", help="do it, not only print what would be")


def _upgrade_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do it, not only print what would be")
    add_json_flag(parser)


def _names(text: str) -> list[str]:
    """Read `a,b` or `"a,b",c`."""
    try:
        (found,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names with commas") from None
    return found


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Return 0, or 1 if `show` found a table that cannot be used, or a yes is needed."""
    import asyncio  # noqa: PLC0415

    return asyncio.run(_run(args, loaded))


async def _run(args: argparse.Namespace, loaded: Loaded) -> int:
    from ingest.app.target import make_target  # noqa: PLC0415
    from ingest.cli.find_database import (  # noqa: PLC0415
        connect_limits,
        database,
        owners_database,
    )
    from ingest.sinks.postgres.session import as_start_error, connected  # noqa: PLC0415

    settings, target = loaded.settings, make_target(loaded.settings)
    of_the_owner = {"adopt": _adopt, "upgrade": _upgrade}
    if args.schema_command in of_the_owner:
        async with owners_database(settings) as url:
            return await of_the_owner[args.schema_command](args, settings, url)
    commands = {"apply": _apply, "show": _show, "view": _view}
    async with (
        database(settings, may_make=args.schema_command == "apply") as url,
        connected(url, **connect_limits(settings)) as opened,
    ):
        with as_start_error(url):
            return await commands[args.schema_command](opened, target, args, settings)


async def _apply(
    opened: Any, target: TargetTable, args: argparse.Namespace, settings: Settings
) -> int:
    from ingest.app.database import partitions_ahead  # noqa: PLC0415
    from ingest.sinks.postgres import schema  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping.view import look_at  # noqa: PLC0415
    from ingest.sinks.postgres.make_table import first_partitions  # noqa: PLC0415

    span, ahead = settings.partition_span, partitions_ahead(settings)
    done = await schema.apply(
        opened,
        target,
        device_index=args.device_index,
        role=args.role,
        partitions=await first_partitions(opened, span, ahead, target),
    )
    view = await look_at(opened, target.name, span, target=target, sizes=False)
    if args.role and view.ours and args.role != view.owner:
        done.append(NOT_OWNER.format(role=args.role))
    print_answer({"done": done}, "\n".join(done), as_json=args.json)
    return 0


async def _show(opened: Any, target: TargetTable, args: argparse.Namespace, _: Settings) -> int:
    from ingest.sinks.postgres import schema  # noqa: PLC0415

    text = await schema.show(opened, target)
    seen = await schema.look(opened, target)
    fits = seen.difference is None
    found = {"fits": fits, "difference": seen.difference, "sql": seen.sql, "table": text}
    print_answer(found, text, as_json=args.json)
    return 0 if fits else 1


async def _view(opened: Any, target: TargetTable, args: argparse.Namespace, _: Settings) -> int:
    from ingest.sinks.postgres import wide_view  # noqa: PLC0415

    view, sql = await wide_view.wide_view(opened, target, args.wide, args.metrics)
    if args.yes:
        await wide_view.make_wide_view(opened, view, sql)
    said = [f"made the view {view}"] if args.yes else [sql]
    said += [f"-- {each}" for each in wide_view.COST]
    if not args.yes:
        said.append("-- Nothing was made: --yes makes it.")
    print_answer({"view": view, "sql": sql, "made": args.yes}, "\n".join(said), as_json=args.json)
    return 0


async def _adopt(args: argparse.Namespace, settings: Settings, url: str) -> int:
    """Make partitions of somebody else ours; return 1 if it was only printed."""
    from ingest.app.database import timeouts  # noqa: PLC0415
    from ingest.app.target import make_target  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping import making  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping.opening import opened  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping.view import look_at  # noqa: PLC0415

    target = make_target(settings)
    async with opened(url, timeouts(settings)) as connection:
        view = await look_at(connection, target.name, settings.partition_span, target=target)
        chosen = making.adoptable(view, args.names)
        names = [each.name for each in chosen]
        if args.yes:
            await making.adopt(connection, view, chosen, settings.partition_span)
    listed = ", ".join(names) or "none: the housekeeping has all of these already"
    say(f"{'adopted' if args.yes else 'would be adopted'}: {listed}")
    if settings.partition_span != "none":
        say(f"New partitions of the table have one {settings.partition_span} each.")
    if args.yes:
        return 0
    say("If keep_hot is set, they may then be dropped or archived. To do it, repeat it with --yes.")
    return 1


async def _upgrade(args: argparse.Namespace, settings: Settings, url: str) -> int:
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
    print_answer(
        answer, "\n".join(_upgrade_words(look.target.name, found, due, done)), as_json=args.json
    )
    return 1 if due and not args.yes else 0


def _upgrade_words(table: str, found: SchemaState, due: list[str], done: list[str]) -> list[str]:
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
