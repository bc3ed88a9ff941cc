"""`ingest schema partition` and `adopt`: partitions for a table that has none, or has others' ones.

Both print what they would do, and do it only with --yes.
"""

from __future__ import annotations

import argparse

from ingest.cli.terminal import say
from ingest.config.settings import Settings
from ingest.model.errors import StartError

US_PER_S = 1_000_000


def partition_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `partition`."""
    parser.add_argument("--yes", action="store_true", help="do it, not only print what would be")
    parser.add_argument(
        "--undo", action="store_true", help="take back what a run that did not end has left"
    )


def adopt_flags(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adopt`."""
    parser.add_argument(
        "names", nargs="*", metavar="PARTITION", help="a partition; without one: all of the table"
    )
    parser.add_argument("--yes", action="store_true", help="do it, not only print what would be")


async def partition(args: argparse.Namespace, settings: Settings, url: str) -> int:
    """Turn the plain table into a partitioned one; return 1 if it was only printed."""
    from ingest.app.database import partitions_ahead, timeouts  # noqa: PLC0415
    from ingest.app.target import make_target  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping import conversion, runs  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping.opening import opened  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping.view import PARTITIONED, look_at  # noqa: PLC0415

    span, target = settings.partition_span, make_target(settings)
    async with opened(url, timeouts(settings)) as connection:
        if args.undo:
            undone = await conversion.take_back(connection, target.name, column=target.ts)
            say("taken back: the table is as before" if undone else "there is nothing to undo")
            return 0
        if span == "none":
            raise StartError("set partition_span to day or month: --partition-span day")
        ahead_us = int(settings.ts_ahead_s_max * US_PER_S)
        view = await look_at(connection, target.name, span, target=target, sizes=False)
        if view.kind == PARTITIONED and view.ours:  # a killed run may have come so far
            say(f"{view.table} is partitioned already")
        elif not args.yes:
            plan = await conversion.planned(
                connection, target.name, span, ahead_us, column=target.ts
            )
            say("\n".join(conversion.in_words(plan)))
            say("To do it, repeat it with --yes; the service may run meanwhile.")
            return 1
        else:
            await conversion.convert(
                connection, target.name, span, ahead_us, say=say, column=target.ts
            )
    report = await runs.run(
        url, timeouts(settings), span, [partitions_ahead(settings)], target=target
    )
    failed = [each.error for each in report.did if each.error]
    say(f"partitions made for the time after it: {len(report.did) - len(failed)}")
    for error in failed:
        say(f"not made: {error}; `ingest housekeeping run` tries again")
    return 1 if failed or report.other_run else 0


async def adopt(args: argparse.Namespace, settings: Settings, url: str) -> int:
    """Make partitions of somebody else ours; return 1 if it was only printed."""
    from ingest.app.database import timeouts  # noqa: PLC0415
    from ingest.app.target import make_target  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping import adopting  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping.opening import opened  # noqa: PLC0415
    from ingest.sinks.postgres.housekeeping.view import look_at  # noqa: PLC0415

    target = make_target(settings)
    async with opened(url, timeouts(settings)) as connection:
        view = await look_at(connection, target.name, settings.partition_span, target=target)
        chosen = adopting.adoptable(view, args.names)
        names = [each.name for each in chosen]
        if args.yes:
            await adopting.adopt(connection, view, chosen, settings.partition_span)
    listed = ", ".join(names) or "none: the housekeeping has all of these already"
    say(f"{'adopted' if args.yes else 'would be adopted'}: {listed}")
    if settings.partition_span != "none":
        say(f"New partitions of the table have one {settings.partition_span} each.")
    if args.yes:
        return 0
    say("If keep_hot is set, they may then be dropped or archived. To do it, repeat it with --yes.")
    return 1
