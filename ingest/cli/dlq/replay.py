"""`ingest dlq replay`: replays dead letters, or the lines of a copy.

It keeps other replays away all the time. Letters are marked as done after each batch. For a copy,
the live letters with the ids that were stored are marked at the end, also if it ends by an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ingest.app.post_rules import make_rules
from ingest.cli.dlq import show
from ingest.cli.parser import Ending
from ingest.config.settings import Settings
from ingest.dead_letters.format import LINE_BYTES_MAX, BadLine, parse
from ingest.dead_letters.manual_replay import (
    Item,
    ManualReplay,
    Summary,
    item_of_fields,
    item_of_letter,
)
from ingest.dead_letters.store import LetterStore, Selection, Tally
from ingest.model.codes import NOT_ALLOWED
from ingest.model.errors import IngestError, ReplayStopped
from ingest.model.ports import Sink
from ingest.system.words import counted

EXIT_SOME_LEFT = 1
BAD_LINES_PRINTED_MAX = 20
LEFT = (
    "{} left: not_allowed, so their token may not speak for the device. If the device is right: "
    "--where code=not_allowed, or in a copy take `code` and `devices` out of the lines"
)


async def replay(
    args: argparse.Namespace, settings: Settings, store: LetterStore, where: Selection
) -> Ending:
    """Replay the selected letters; the exit code is 1 if some of them are left."""
    from ingest.app.database import declared_fault, make_replay_sink  # noqa: PLC0415
    from ingest.cli.context import database  # noqa: PLC0415

    if args.edited and args.file is None:
        raise IngestError("--edited needs --file COPY")
    if args.file is not None and args.where:
        raise IngestError("--where does not work with --file: all lines of the copy are replayed")
    if args.file is None and (await store.extent()).empty:
        print("no dead letters", file=sys.stderr)
        return Ending(show.replayed_json(Summary(), Tally(), dry_run=args.dry_run), "")
    async with store.held():
        if args.dry_run:
            return await _replay(args, settings, store, where, None)
        async with database(settings) as url:
            if fault := await declared_fault(url, settings):
                raise IngestError(fault)
            sink = make_replay_sink(lambda: url, settings, name="iot-ingest dlq replay")
            try:
                return await _replay(args, settings, store, where, sink)
            finally:
                await sink.close()


async def _replay(
    args: argparse.Namespace,
    settings: Settings,
    store: LetterStore,
    where: Selection,
    sink: Sink | None,
) -> Ending:
    tally, where = Tally(), where.for_replay()
    bad_lines: list[str] = []
    ids: set[bytes] = set()

    async def done(items: Sequence[Item]) -> None:
        if sink is None:
            return
        await store.mark_done([each.source for each in items if each.source], "replayed")
        ids.update(each.id.encode() for each in items if each.source is None)

    by_hand = ManualReplay(
        sink=sink,
        rules=make_rules(settings),
        done=done,
        rows_per_s=args.rate,
        ignore_unknown=args.ignore_unknown,
        any_device=where.not_allowed,
    )
    stopped: ReplayStopped | None = None
    try:
        if args.file is not None:
            await by_hand.run(_copied(args.file, tally, edited=args.edited, bad_lines=bad_lines))
        else:
            async for some in store.oldest(where, tally):
                await by_hand.run(map(item_of_letter, some))
    except ReplayStopped as error:
        stopped = error
    finally:
        if ids:
            async for some in store.oldest(Selection(ids=frozenset(ids)), Tally()):
                await store.mark_done(some, "edited")
    _print_left(tally, bad_lines, stopped)
    summary = by_hand.summary
    left = stopped is not None or bad_lines or summary.refused or tally.not_allowed
    document = show.replayed_json(summary, tally, dry_run=args.dry_run)
    text = show.replayed(summary, dry_run=args.dry_run)
    return Ending(document, text, EXIT_SOME_LEFT if left else 0)


def _print_left(tally: Tally, bad_lines: Sequence[str], stopped: ReplayStopped | None) -> None:
    """Say on stderr what was not replayed."""
    if tally.not_allowed:
        print(LEFT.format(counted(tally.not_allowed, "dead letter")), file=sys.stderr)
    for line in bad_lines[:BAD_LINES_PRINTED_MAX]:
        print(f"not replayed: {line}", file=sys.stderr)
    if len(bad_lines) > BAD_LINES_PRINTED_MAX:
        print(f"not replayed: {len(bad_lines)} lines in all", file=sys.stderr)
    if tally.damaged:
        print(f"skipped: {show.damaged(tally)}", file=sys.stderr)
    if stopped is not None:
        print(f"stopped: {stopped}; run it again to continue", file=sys.stderr)


def _copied(path: Path, tally: Tally, *, edited: bool, bad_lines: list[str]) -> Iterator[Item]:
    """Yield the items of the lines of a copy; add lines that have none to `bad_lines`.

    Letters `not_allowed` are left out, as in Selection.for_replay.
    """
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, LINE_BYTES_MAX), b""), 1):
            if not line.strip():
                continue
            try:
                item = item_of_fields(parse(line, check_sum=not edited), f"line {number}")
            except BadLine as error:
                bad_lines.append(f"{path.name} line {number}: {error}")
            else:
                if item.letter.code != NOT_ALLOWED:
                    yield item
                tally.not_allowed += item.letter.code == NOT_ALLOWED
