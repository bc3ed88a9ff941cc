"""`loadgen csv`: post a file of readings.

Exit codes: 0 all accepted, 1 not all, 2 wrong use or no such file or column, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loadgen.cli import values
from loadgen.cli.options import ACKS, Option, add_all
from loadgen.cli.parser import Parser
from loadgen.cli.service_options import CA, STATE_DIR, TOKEN, URL, local_of, targets_for
from loadgen.csv.client import Client, GaveUp, Reply
from loadgen.csv.file import Batch, CsvError, CsvFile, columns_of, zone_named
from loadgen.driver.trust import context_of
from loadgen.live import shown
from loadgen.proof.local_service import NoHome

ERRORS_SHOWN_MAX = 10


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command `csv` with its options."""
    csv = commands.add_parser(
        "csv",
        help="post a CSV",
        usage="loadgen csv FILE [options]",
        description="Post a CSV whose header names its columns: `timestamp` and `value`, or those\n"
        "of --columns. Lines that are no reading are reported and left out. Posting a file again\n"
        "stores nothing twice.",
        examples=(
            "loadgen csv machine.csv --device machine-1 --metric temperature",
            "loadgen csv door.csv --device door-3 --metric open --timezone Europe/Vienna",
            "loadgen csv old.csv --columns time=time,device=sensor,metric=kind,value=val",
            "loadgen csv wide.csv --columns time=at,device=id",
            "loadgen csv wide.csv --device boiler-7 --columns time=at,temperature=t1,flow=f",
        ),
        epilog="exit codes:\n"
        "  0    everything was accepted\n"
        "  1    something was not\n"
        "  2    wrong use, or the file cannot be read or lacks a column\n"
        "  130  ended by Ctrl-C",
    )
    csv.set_defaults(options=OPTIONS)
    csv.add_argument("file", type=Path, metavar="FILE")
    add_all(csv, OPTIONS)


OPTIONS = {
    "": (
        Option("--device", "device_id of every reading", str, shows="NAME"),
        Option("--metric", "metric of every reading", str, shows="NAME"),
        Option(
            "--columns",
            "the columns of time, device, metric, value; without value, of METRIC=COLUMN, or "
            "every column of numbers is a metric (time=timestamp,value=value)",
            values.readable(columns_of),
            {"value": "value"},
            "WORD=COLUMN,..",
        ),
        URL,
        CA,
        TOKEN,
        STATE_DIR,
        Option("--batch", "readings a post (%(default)s)", values.count(), 500, "N"),
        Option(
            "--ack",
            "wait until each post is so safe; default: what the service does by itself",
            ACKS,
        ),
        Option(
            "--timezone",
            "of timestamps without an offset: UTC (default), +02:00, Europe/Vienna",
            values.readable(zone_named),
            "UTC",
            "ZONE",
        ),
        Option("--connections", "posts at once (%(default)s)", values.count(), 2, "N"),
        Option("--give-up-s", "keep trying one post for so long (%(default)g)", float, 300.0, "S"),
    )
}


@dataclass
class _Tally:
    """The counts of the file so far."""

    accepted: int = 0
    dead_lettered: int = 0
    refused: int = 0
    fatal: str = ""
    trouble: list[tuple[int, str]] = field(default_factory=list)

    def take(self, batch: Batch, answer: Reply) -> None:
        """Count one answer, and note the lines of its errors."""
        for each in answer.errors:
            if each.item < len(batch.lines):
                self._note(batch.lines[each.item], f"{each.code}: {each.message}")
        if answer.ok:
            self.accepted += answer.accepted
            self.dead_lettered += answer.dead_lettered
        else:
            self.refused += len(batch.lines)
            why = f"{answer.status} {answer.code}: {answer.detail}"
            if answer.status != 422:  # not about these items: the next post would be refused too
                self.fatal = f"refused at line {batch.lines[0]}: {why}"
            elif not answer.errors:
                self._note(batch.lines[0], why)

    def _note(self, line: int, what: str) -> None:
        if len(self.trouble) < ERRORS_SHOWN_MAX:
            self.trouble.append((line, what))


def main(chosen: argparse.Namespace) -> int:
    """Post the file; return the exit code."""
    try:
        (target,) = targets_for(chosen, local_of(chosen))
        tls = context_of(target)
    except (NoHome, OSError, ValueError) as error:
        print(f"loadgen csv: {error}", file=sys.stderr)
        return 2
    file = CsvFile(chosen.file, chosen.device, chosen.metric, chosen.timezone, chosen.columns)
    tally = _Tally()
    client = Client(
        target.url,
        tls=tls,
        connections_max=chosen.connections,
        give_up_s=chosen.give_up_s,
        parameters={"ack": chosen.ack} if chosen.ack else None,
        token=target.token,
    )
    began_s, interrupted = time.monotonic(), False
    try:
        asyncio.run(_post_all(file, client, chosen.batch, chosen.connections, tally))
    except KeyboardInterrupt:
        interrupted = True
    if tally.fatal and not file.rows:
        print(f"loadgen csv: {tally.fatal}", file=sys.stderr)
        return 2
    _summarise(file, client, tally, time.monotonic() - began_s)
    if interrupted:
        print("interrupted: posting the file again stores nothing twice", file=sys.stderr)
        return 130
    left_out = file.bad_rows or (file.not_read and not file.rows)
    return 0 if tally.accepted == file.rows and not left_out and not tally.fatal else 1


async def _post_all(
    file: CsvFile, client: Client, batch_rows: int, connections: int, tally: _Tally
) -> None:
    batches = file.batches(batch_rows)
    async with client:
        with shown(lambda: _line(file, client, tally), stays=True):
            async with asyncio.TaskGroup() as workers:
                for _ in range(connections):
                    workers.create_task(_work(batches, client, tally))


async def _work(batches: Iterator[Batch], client: Client, tally: _Tally) -> None:
    """Post batches one after another, until none is left or a refusal concerns all."""
    while not tally.fatal:
        try:
            batch = next(batches, None)
        except CsvError as error:
            tally.fatal = str(error)
            return
        if batch is None:
            return
        try:
            tally.take(batch, await client.post(batch.body))
        except GaveUp as error:
            tally.fatal = f"gave up at line {batch.lines[0]}: {error}"
            if not client.reached:
                tally.fatal = f"{error}. Where is the service? Say its --url or its --state-dir"


def _line(file: CsvFile, client: Client, tally: _Tally) -> str:
    trouble = f"; trying again: {client.trouble}" if client.trouble else ""
    return f"{tally.accepted} of {file.rows} rows accepted{trouble}"


def _summarise(file: CsvFile, client: Client, tally: _Tally, took_s: float) -> None:
    refused = tally.dead_lettered + tally.refused
    for listed, count, what in (
        (file.bad, file.bad_rows, "lines left out"),
        (tally.trouble, refused, "rows refused"),
    ):
        for line, why in listed:
            print(f"{file.path}, line {line}: {why}", file=sys.stderr)
        if count > len(listed):
            print(f".. and {count - len(listed)} more {what}", file=sys.stderr)
    if tally.fatal:
        print(tally.fatal, file=sys.stderr)
    if file.not_read:
        print(f"not read (no number in the first line): {', '.join(file.not_read)}")
    print(
        f"rows={file.rows} accepted={tally.accepted} dead_lettered={tally.dead_lettered} "
        f"refused={tally.refused} left_out={file.bad_rows} retries={client.retries} "
        f"seconds={took_s:.2f} rows_per_s={tally.accepted / max(took_s, 1e-9):.0f}"
    )
