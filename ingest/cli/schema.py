"""`ingest schema`: makes the table, its partitions or a view of it, compares it, or upgrades."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from ingest.app.database import make_target, partitions_ahead, timeouts
from ingest.cli.context import database, owners_database
from ingest.cli.parser import JSON, Command, Ending, flag
from ingest.config.declared_tables import make_tables
from ingest.config.loading import Loaded
from ingest.config.settings import Settings
from ingest.model.errors import StartError
from ingest.model.moments import form_of_table
from ingest.sinks.postgres import column_tables, schema, wide_view
from ingest.sinks.postgres.connection import as_start_error, connected, opened
from ingest.sinks.postgres.housekeeping import making, registry
from ingest.sinks.postgres.housekeeping.table_state import look_at

Do = Callable[[Any, schema.TargetTable, argparse.Namespace, Settings], Awaitable[Ending]]

NOT_OWNER = (
    "the role {role} cannot make further partitions: run `ingest housekeeping run` each day with "
    "this URL, or set housekeeping_url for the service"
)


def _names(text: str) -> list[str]:
    """Read `a,b` or `"a,b",c`."""
    try:
        (found,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names with commas") from None
    return found


async def _on_connection(do: Do, args: argparse.Namespace, loaded: Loaded) -> Ending:
    settings = loaded.settings
    async with (
        database(settings, may_make=do is _apply) as url,
        connected(url, timeouts(settings)) as opened,
    ):
        with as_start_error(url):
            return await do(opened, make_target(settings), args, settings)


async def _as_owner(do: Do, args: argparse.Namespace, loaded: Loaded) -> Ending:
    settings = loaded.settings
    async with owners_database(settings) as url, opened(url, timeouts(settings)) as connection:
        return await do(connection, make_target(settings), args, settings)


async def _apply(
    opened: Any, target: schema.TargetTable, args: argparse.Namespace, settings: Settings
) -> Ending:
    span, ahead = settings.partition_span, partitions_ahead(settings)
    done = await schema.apply(
        opened,
        target,
        device_index=args.device_index,
        role=args.role,
        partitions=await making.first_partitions(opened, span, ahead, target),
    )
    tables = make_tables(settings).all
    partitions = partial(making.partitions_like, opened, target, span, ahead)
    done += await column_tables.apply(
        opened,
        target,
        tables,
        device_index=args.device_index,
        role=args.role,
        partitions=partitions,
    )
    view = await look_at(opened, target.name, span, target=target, sizes=False)
    if args.role and view.ours and args.role != view.owner:
        done.append(NOT_OWNER.format(role=args.role))
    return Ending({"done": done}, "\n".join(done))


async def _show(
    opened: Any, target: schema.TargetTable, _: argparse.Namespace, settings: Settings
) -> Ending:
    """Return the tables; the exit code is 1 if one of them cannot be used."""
    seen = [await schema.look(opened, target)]
    texts = [await schema.show(opened, target)]
    readings = target._replace(schema=seen[0].target.schema)
    tables = make_tables(settings).all
    for table in tables:
        declared = schema.ColumnTarget(readings.schema, form_of_table(table))
        seen.append(await schema.look(opened, declared))
        texts.append(await schema.show(opened, declared))
    differences = [each.difference for each in seen if each.difference is not None]
    if fault := await column_tables.fault(opened, readings, tables):
        differences.append(fault)
        texts.append(fault)
    found = {
        "fits": not differences,
        "difference": "; ".join(differences) or None,
        "sql": [sql for each in seen for sql in each.sql],
        "table": "\n\n".join(texts),
    }
    return Ending(found, "\n\n".join(texts), 1 if differences else 0)


async def _view(
    opened: Any, target: schema.TargetTable, args: argparse.Namespace, _: Settings
) -> Ending:
    view, sql = await wide_view.wide_view(opened, target, args.wide, args.metrics)
    if args.yes:
        await wide_view.make_wide_view(opened, view, sql)
    said = [f"made the view {view}"] if args.yes else [sql]
    said += [f"-- {each}" for each in wide_view.COST]
    if not args.yes:
        said.append("-- Nothing was made: --yes makes it.")
    return Ending({"view": view, "sql": sql, "made": args.yes}, "\n".join(said))


async def _adopt(
    connection: Any, target: schema.TargetTable, args: argparse.Namespace, settings: Settings
) -> Ending:
    """Make partitions of somebody else ours; the exit code is 1 if it was only printed."""
    view = await look_at(connection, target.name, settings.partition_span, target=target)
    chosen = making.adoptable(view, args.names)
    names = [each.name for each in chosen]
    if args.yes:
        await making.adopt(connection, view, chosen, settings.partition_span)
    listed = ", ".join(names) or "none: the housekeeping has all of these already"
    said = [f"{'adopted' if args.yes else 'would be adopted'}: {listed}"]
    if settings.partition_span != "none":
        said.append(f"New partitions of the table have one {settings.partition_span} each.")
    if not args.yes:
        said.append(
            "If keep_hot is set, they may then be dropped or archived. To do it, repeat it with "
            "--yes."
        )
    return Ending(names, "\n".join(said), 0 if args.yes else 1)


async def _upgrade(
    connection: Any, target: schema.TargetTable, args: argparse.Namespace, _: Settings
) -> Ending:
    """Upgrade, or say what would be done; the exit code is 1 if something is left to do."""
    look = await schema.look(connection, target)
    if look.difference:
        raise StartError(look.difference)
    found = await registry.state_of(connection, look.target.name)
    if found.refuses:
        raise StartError(found.needs)
    steps = registry.steps_from(found.version)
    due = [f"version {each.to}: {each.words}" for each in steps]
    done: list[str] = []
    if args.yes and due:
        done = await registry.upgrade(connection, look.target.name, look.oid)
    answer = {
        "table": look.target.name,
        "version": found.version,
        "version_of_program": registry.SCHEMA_VERSION,
        "due": [] if args.yes else due,
        "done": done,
    }
    text = "\n".join(_upgrade_words(look.target.name, found, due, done))
    return Ending(answer, text, 1 if due and not args.yes else 0)


def _upgrade_words(
    table: str, found: registry.SchemaState, due: list[str], done: list[str]
) -> list[str]:
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


YES = flag("--yes", action="store_true", help="do it, not only print what would be")
COMMAND = Command(
    examples=("ingest schema show", "ingest schema apply --role ingest"),
    usage="COMMAND [options]",
    commands={
        "apply": Command(
            "create the table and its key; an existing table is not changed",
            (
                "ingest schema apply --device-index",
                "ingest schema apply --role ingest --database-url "
                "postgresql://admin@db.example/metrics",
            ),
            partial(_on_connection, _apply),
            flags=(
                flag(
                    "--device-index",
                    action="store_true",
                    help="also create an index per device: faster queries for one device, slower "
                    "writing",
                ),
                flag(
                    "--role",
                    metavar="NAME",
                    help="allow this role to read and write the table, nothing else",
                ),
                JSON,
            ),
        ),
        "adopt": Command(
            "let the housekeeping drop or archive partitions that it has not made",
            ("ingest schema adopt", "ingest schema adopt readings_2026_01 --yes"),
            partial(_as_owner, _adopt),
            "[options] [PARTITION ..]",
            (
                flag(
                    "names",
                    nargs="*",
                    metavar="PARTITION",
                    help="a partition; without one: all of the table",
                ),
                YES,
            ),
        ),
        "show": Command(
            "print the table, how it differs from what is needed, and the SQL that ends this",
            ("ingest schema show", "ingest schema show --json"),
            partial(_on_connection, _show),
            flags=(JSON,),
        ),
        "view": Command(
            "print the SQL of a view with a column for each metric; with --yes make it",
            ("ingest schema view --wide climate --metrics temperature,humidity --yes",),
            partial(_on_connection, _view),
            flags=(
                flag(
                    "--wide", metavar="NAME", required=True, help="the view's name, without quotes"
                ),
                flag(
                    "--metrics",
                    metavar="NAMES",
                    type=_names,
                    required=True,
                    help="the metrics, with commas; one that has a comma itself in quotes: "
                    "'\"a,b\",c'",
                ),
                flag("--yes", action="store_true", help="make the view"),
                JSON,
            ),
        ),
        "upgrade": Command(
            "bring what is kept beside the table to the version of this program",
            ("ingest schema upgrade", "ingest schema upgrade --yes"),
            partial(_as_owner, _upgrade),
            flags=(YES, JSON),
        ),
    },
)
