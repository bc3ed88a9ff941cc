"""`ingest archive`: what is in the archive, whether it is whole, the way back into the table."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ingest.app.database import make_target, timeouts
from ingest.cli.context import owners_database
from ingest.cli.parser import JSON, Command, Ending, flag
from ingest.config.loading import Loaded
from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import opened
from ingest.sinks.postgres.housekeeping.registry import alone
from ingest.sinks.postgres.housekeeping.table_state import look_at
from ingest.system.clock import rfc3339_or_us
from ingest.system.words import counted
from ingest.years.annex import parquet_archiver
from ingest.years.archive import job
from ingest.years.archive.job import ALONE_S_MAX, Contents

if TYPE_CHECKING:
    from ingest.years.archive.archiver import ParquetArchiver


async def _run(args: argparse.Namespace, loaded: Loaded) -> Ending:
    """Do one of the commands; the exit code is 1 if `verify` has found a fault."""
    settings, target = loaded.settings, make_target(loaded.settings)
    async with (
        owners_database(settings) as url,
        opened(url, timeouts(settings)) as connection,
    ):
        span = settings.partition_span
        view = await look_at(connection, target.name, span, target=target, sizes=False)
        contents = await job.contents(connection, view.table)
        pinned = await job.pinned(connection, view.table)
        if args.command_of_group == "list":
            return _list(contents, pinned)
        if args.command_of_group == "release":
            was = await job.release(connection, view.table, args.name)
            said = "released" if was else "it was not restored, so there is nothing to release"
            return Ending({"released": was}, f"{args.name}: {said}", 0 if was else 1)
        archiver = parquet_archiver(settings)
        if args.command_of_group == "verify":
            wanted = _named(contents, args.names)
            faults = await _faults(archiver, wanted, connection, view.table)
            good = len(wanted) - len(faults)
            text = "\n".join([*faults.values(), f"as recorded: {counted(good, 'partition')}"])
            return Ending({"good": good, "faults": faults}, text, 1 if faults else 0)
        async with alone(connection, view.oid, within_s=ALONE_S_MAX):
            view = await look_at(connection, target.name, span, target=target, sizes=False)
            (one,) = _named(await job.contents(connection, view.table), [args.name])
            await job.restore(connection, view, one, archiver.rows(one))
    said = f"{args.name}: {counted(one.rows, 'reading')} are in the table until it is released"
    return Ending(_entry(one, {args.name}), said)


def _named(contents: list[Contents], names: list[str]) -> list[Contents]:
    """Return those of these names; all if there is no name. Raises StartError."""
    known = {each.name: each for each in contents}
    for name in names:
        if name not in known:
            raise StartError(f"there is no {name} in the archive (see `ingest archive list`)")
    return [known[name] for name in names] or contents


def _entry(found: Contents, pinned: set[str]) -> dict[str, Any]:
    return {
        "name": found.name,
        "from": rfc3339_or_us(found.from_us),
        "to": rfc3339_or_us(found.to_us),
        "readings": found.rows,
        "bytes": found.bytes,
        "checksum": str(found.sum),
        "files": found.file_names,
        "restored": found.name in pinned,
    }


def _list(contents: list[Contents], pinned: set[str]) -> Ending:
    lines = []
    for each in contents:
        a_reading = f", {each.bytes / each.rows:.2f} bytes each" if each.rows else ""
        restored = ", restored" if each.name in pinned else ""
        lines.append(
            f"{each.name}  {rfc3339_or_us(each.from_us)} to {rfc3339_or_us(each.to_us)}  "
            f"{counted(each.rows, 'reading')}{a_reading}{restored}"
        )
    text = "\n".join(lines) or "the archive is empty"
    return Ending([_entry(each, pinned) for each in contents], text)


async def _faults(
    archiver: ParquetArchiver, contents: list[Contents], connection: Any, table: str
) -> dict[str, str]:
    """Read all files; return what is wrong, by partition."""
    faults = {}
    for each in contents:
        try:
            archiver.verify(each)
        except StartError as error:  # or a run has just replaced the files
            try:
                await archiver.verify_alone(connection, table, each.name)
            except StartError as again:
                faults[each.name] = str(again)
            except OSError:
                faults[each.name] = str(error)
    return faults


NAMES = {"metavar": "NAME", "help": "as `ingest archive list` shows"}
COMMAND = Command(
    examples=("ingest archive list", "ingest archive verify"),
    usage="COMMAND [options]",
    epilog="It needs archive_dir, and the extra `archive` (pyarrow).",
    commands={
        "list": Command(
            "one line for each partition in the archive, the oldest first",
            ("ingest archive list", "ingest archive list --json"),
            _run,
            flags=(JSON,),
        ),
        "verify": Command(
            "read the files again, and compare number and checksum with the record",
            ("ingest archive verify", "ingest archive verify readings_p20261126 --json"),
            _run,
            "[options] [NAME ..]",
            (flag("names", nargs="*", **NAMES), JSON),
        ),
        "restore": Command(
            "put a partition of the archive back into the table; it stays until it is released",
            ("ingest archive restore readings_p20261126",),
            _run,
            "[options] NAME",
            (flag("name", **NAMES), JSON),
        ),
        "release": Command(
            "let the housekeeping remove a restored partition again; its files are still there",
            ("ingest archive release readings_p20261126",),
            _run,
            "[options] NAME",
            (flag("name", **NAMES), JSON),
        ),
    },
)
