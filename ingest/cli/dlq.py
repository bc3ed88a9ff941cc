"""`ingest dlq`: shows the dead letters, replays them, discards them.

It works beside a running service and without one. Only `replay` needs the database. `replay` and
`discard` take the replay lock, so that no other replay changes the same letters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from ingest.cli import dlq_show as show
from ingest.cli.dlq_replay import add_replay_arguments, replay
from ingest.config.settings import Loaded, state_dir
from ingest.dead_letters.files import folder_bytes, segments
from ingest.dead_letters.manual_replay import hold_replay_lock
from ingest.dead_letters.marks import mark_done
from ingest.dead_letters.reader import LiveLetter, Selection, Tally, live_letters
from ingest.formats.timestamp import text_us
from ingest.model.errors import IngestError
from ingest.model.letter import REASONS
from ingest.system.state_folder import StateFolder, existing
from ingest.system.words import counted

IDS_COUNTED_MAX = 1_000_000  # beyond that, an id that is in two files is shown twice
MARKS_AT_ONCE = 1_000
PREFIX_MIN = 6
WHERE_HELP = "only these: reason=, code=, device=, since=RFC3339; all must match"


def add_arguments(parser: argparse.ArgumentParser, settings_flags: argparse.ArgumentParser) -> None:
    """Add the commands and their arguments."""
    metavar = "list | show | stats | replay | discard"
    commands = parser.add_subparsers(dest="dlq_command", metavar=metavar, required=True)

    def add(name: str, purpose: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[settings_flags], help=purpose)
        if name != "stats":
            added.add_argument("--where", action="append", metavar="K=V", help=WHERE_HELP)
        return added

    for each in (
        add("list", "one line for each dead letter"),
        add("show", "dead letters in full"),
    ):
        each.add_argument("ids", nargs="*", metavar="ID", help="an id, or its first characters")
        each.add_argument("--json", action="store_true", help="the lines of the files, unchanged")
        each.add_argument("--limit", type=int, metavar="N", help="only the oldest N")
    stats = add("stats", "number, reasons, age and size")
    stats.add_argument("--json", action="store_true", help="print as JSON")
    add_replay_arguments(add("replay", "validate dead letters again and write them to the table"))
    discard = add("discard", "mark dead letters as discarded; their readings are lost")
    discard.add_argument("ids", nargs="*", metavar="ID", help="an id, or its first characters")
    discard.add_argument("--all", action="store_true", help="all dead letters")
    discard.add_argument("--yes", action="store_true", help="discard them, not only count them")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the command; return 0, or 1 if a part of it could not be done."""
    folder = StateFolder(existing(state_dir(loaded.settings))).dead_letters
    try:
        code = _run(args, loaded, folder)
        sys.stdout.flush()  # here, so that the error of a full disk gets the text below
        return code
    except BrokenPipeError:
        raise  # the reader of the output has gone: main() ends quietly
    except OSError as error:
        # The error may be of a file of the folder, or of the file that the output goes to.
        where = f"{error.filename}: " if error.filename else ""
        why = f"{where}{error.strerror or error}"
        raise IngestError(
            f"dlq {args.dlq_command}: {why} (the dead letters are in {folder})"
        ) from error


def _run(args: argparse.Namespace, loaded: Loaded, folder: Path) -> int:
    if args.dlq_command in {"list", "show"}:
        return _list(args, folder)
    if args.dlq_command == "stats":
        return _stats(folder, as_json=args.json)
    if args.dlq_command == "replay":
        return asyncio.run(replay(args, loaded.settings, folder, where_of(args.where)))
    return asyncio.run(_discard(args, folder))


def where_of(texts: Sequence[str] | None) -> Selection:
    """Return the conditions of --where. Raises IngestError."""
    found: dict[str, str] = {}
    for text in texts or ():
        for part in re.split(r",(?=\w+=)", text):
            name, equals, value = part.partition("=")
            if name not in {"reason", "code", "device", "since"} or not equals:
                raise IngestError(f"--where {part}: not reason=, code=, device= or since=")
            if name in found:
                raise IngestError(f"--where names {name} twice")
            found[name] = value
    reason = found.get("reason")
    if reason is not None and reason not in REASONS:
        raise IngestError(f"--where reason={reason}: not one of {', '.join(REASONS)}")
    since_us = text_us(found["since"]) if "since" in found else None
    if since_us is not None and not isinstance(since_us, int):
        raise IngestError(f"--where since={found['since']}: {since_us[1]}")
    return Selection(
        (reason,) if reason else None, found.get("code"), found.get("device"), since_us
    )


def _selected(args: argparse.Namespace, folder: Path, tally: Tally) -> Iterator[LiveLetter]:
    """Yield the live letters that the arguments select."""
    prefixes = tuple(each.lower() for each in args.ids)
    if short := [each for each in prefixes if len(each) < PREFIX_MIN]:
        raise IngestError(f"{short[0]}: give at least {PREFIX_MIN} characters of an id")
    for live in live_letters(folder, where=where_of(args.where), tally=tally):
        if not prefixes or live.id.startswith(prefixes):
            yield live


def _once(letters: Iterable[LiveLetter]) -> Iterator[LiveLetter]:
    """Yield each letter once: two processes may have written the same one."""
    seen: set[tuple[str, str]] = set()
    for live in letters:
        key = (live.id, live.letter.reason)
        if key not in seen:
            if len(seen) < IDS_COUNTED_MAX:
                seen.add(key)
            yield live


def _list(args: argparse.Namespace, folder: Path) -> int:
    tally = Tally()
    count = 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    for live in islice(_once(_selected(args, folder, tally)), args.limit):
        if args.json:
            sys.stdout.write(live.line.decode())
        elif args.dlq_command == "show":
            print(f"{show.in_full(live)}\n")
        else:
            if not count:
                print(show.COLUMNS)
            print(show.one_line(live, max(width, len(show.COLUMNS))))
        count += 1
    if not count:
        print(
            "no such dead letter" if args.ids or args.where else "no dead letters", file=sys.stderr
        )
    if tally.damaged:
        print(f"skipped: {show.damaged(tally)}", file=sys.stderr)
    return 0 if count or not args.ids else 1


def _stats(folder: Path, *, as_json: bool) -> int:
    tally = Tally()
    files = segments(folder)
    size_bytes = folder_bytes(folder) if folder.exists() else 0
    counted = show.count(_once(live_letters(folder, tally=tally)), len(files), size_bytes, tally)
    print(json.dumps(counted) if as_json else show.figures(counted, tally))
    return 0


async def _discard(args: argparse.Namespace, folder: Path) -> int:
    if sum(map(bool, (args.ids, args.where, args.all))) != 1:
        raise IngestError("name what to discard: IDs, or --where, or --all (one of the three)")
    tally = Tally()
    if not args.yes:
        count = sum(1 for _ in _once(_selected(args, folder, tally)))
        print(f"{counted(count, 'dead letter')} would be discarded; to do it, repeat it with --yes")
        return 1
    if not segments(folder):
        print("no dead letters", file=sys.stderr)
        return 0
    count = 0
    with await hold_replay_lock(folder):
        wanted = _selected(args, folder, tally)
        while some := list(islice(wanted, MARKS_AT_ONCE)):
            mark_done(((each.path, each.mark) for each in some), "discarded")
            count += len(some)
    print(f"{counted(count, 'dead letter')} discarded")
    return 0
