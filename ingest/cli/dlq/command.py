"""`ingest dlq`: shows the dead letters, replays them, discards them.

It works beside a running service and without one. Only `replay` needs the database. The dead
letters are in the files of the state folder or in the broker's stream: cli/context.py knows.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from ingest.cli.context import FILES, STORES, STREAM, letter_store
from ingest.cli.dlq import show
from ingest.cli.dlq.replay import replay
from ingest.cli.parser import (
    JSON,
    Command,
    Ended,
    Ending,
    OneOf,
    flag,
    forward_name,
    number_within,
)
from ingest.config.loading import Loaded
from ingest.config.named_files import state_dir
from ingest.config.settings import Settings
from ingest.dead_letters.store import LetterStore, LiveLetter, Selection, Tally, newest, once
from ingest.formats.timestamp import text_us
from ingest.model.errors import IngestError
from ingest.model.reading import REASONS, REFUSED_BY_SERVICE, REFUSED_BY_TARGET
from ingest.system.state_folder import StateFolder
from ingest.system.words import counted

PREFIX_MIN = 6
LISTED = 50
MORE_COUNTED_MAX = 100_000  # a second or two
CONDITIONS = ("reason", "code", "device", "device_prefix", "since")
NO_REPLAY = {
    "forward": "dlq replay writes to the table, and the readings of a forwarder are there already: "
    "post what `ingest dlq show --json --forward` prints, then discard it",
    "mqtt": "dlq replay cannot read messages of MQTT: publish them again, corrected, or post what "
    "`ingest dlq show --json --mqtt` prints; then discard them",
}

Do = Callable[[LetterStore, argparse.Namespace, Settings], Awaitable[Ended]]


async def _run(do: Do, args: argparse.Namespace, loaded: Loaded) -> int:
    """Do it with the dead letters; the exit code is 1 if a part of it could not be done."""
    names = {"forward": args.forward, "mqtt": args.mqtt}
    own = next((each for each in names.items() if each[1] is not None), None)
    if own is not None and do is _replay:
        raise IngestError(NO_REPLAY[own[0]])
    try:
        async with letter_store(loaded.settings, args.store, own=own) as store:
            ended = await do(store, args, loaded.settings)
        if isinstance(ended, Ending):
            ended.print(as_json=args.json)
            ended = ended.code
        sys.stdout.flush()  # here, so that the error of a full disk gets the text below
        return ended
    except BrokenPipeError:
        raise  # the reader of the output has gone: main() ends quietly
    except OSError as error:
        # The error may be of a file of the folder, or of the file that the output goes to.
        where = f"{error.filename}: " if error.filename else ""
        why = f"{where}{error.strerror or error}"
        folder = StateFolder(state_dir(loaded.settings)).dead_letters
        raise IngestError(
            f"dlq {args.command_of_group}: {why} (the dead letters are in {folder})"
        ) from error


async def _replay(store: LetterStore, args: argparse.Namespace, settings: Settings) -> Ending:
    return await replay(args, settings, store, where_of(args.where))


def where_of(texts: Sequence[str] | None) -> Selection:
    """Return the conditions of --where. Raises IngestError."""
    found: dict[str, str] = {}
    for text in texts or ():
        for part in re.split(r",(?=\w+=)", text):
            name, equals, value = part.partition("=")
            if name not in CONDITIONS or not equals:
                raise IngestError(f"--where {part}: not one of {'=, '.join(CONDITIONS)}=")
            if name == "device_prefix" and not value:  # perhaps of an empty variable of a shell
                raise IngestError("--where device_prefix=: give the beginning of a name")
            if name in found:
                raise IngestError(f"--where names {name} twice")
            found[name] = value
    reason = found.get("reason")
    known = (*REASONS, REFUSED_BY_TARGET, REFUSED_BY_SERVICE)
    if reason is not None and reason not in known:
        raise IngestError(f"--where reason={reason}: not one of {', '.join(REASONS)}")
    since_us = text_us(found["since"]) if "since" in found else None
    if since_us is not None and not isinstance(since_us, int):
        raise IngestError(f"--where since={found['since']}: {since_us[1]}")
    return Selection(
        (reason,) if reason else None,
        found.get("code"),
        found.get("device"),
        since_us,
        device_prefix=found.get("device_prefix"),
    )


def _selected(args: argparse.Namespace) -> Selection:
    """Return what the ids and conditions of the arguments select. Raises IngestError."""
    prefixes = tuple(each.lower() for each in args.ids)
    if short := [each for each in prefixes if len(each) < PREFIX_MIN]:
        raise IngestError(f"{short[0]}: give at least {PREFIX_MIN} characters of an id")
    where = where_of(args.where)
    if not prefixes:
        return where
    return where._replace(id_prefixes=tuple(each.encode() for each in prefixes))


async def _list(store: LetterStore, args: argparse.Namespace, _settings: Settings) -> int:
    tally = Tally()
    limit = args.limit if args.limit is not None else 0 if args.json else LISTED
    where = _selected(args)
    count = more = 0
    if limit:
        letters, more, _ = await newest(store, where, limit, tally=tally, more_max=MORE_COUNTED_MAX)
        for count, live in enumerate(letters, 1):
            _print(args, live, is_first=count == 1)
    else:
        async for live in once(store.oldest(where, tally)):
            count += 1
            _print(args, live, is_first=count == 1)
    sys.stdout.flush()
    if more:
        least = "at least " if more >= MORE_COUNTED_MAX else ""
        print(f"{least}{more:,} more: --limit 0 shows all", file=sys.stderr)
    if not count:
        print(
            "no such dead letter" if args.ids or args.where else "no dead letters", file=sys.stderr
        )
    if tally.damaged:
        print(f"skipped: {show.damaged(tally)}", file=sys.stderr)
    return 0 if count or not args.ids else 1


def _print(args: argparse.Namespace, live: LiveLetter, *, is_first: bool) -> None:
    if args.json:
        sys.stdout.write(live.line.decode())
    elif args.command_of_group == "show":
        print(f"{show.in_full(live)}\n")
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
        if is_first:
            print(show.COLUMNS)
        print(show.one_line(live, max(width, len(show.COLUMNS))))


async def _stats(store: LetterStore, args: argparse.Namespace, _: Settings) -> Ending:
    tally = Tally()
    found = await show.count(store, tally)
    return Ending(found, show.figures(found, tally))


async def _discard(store: LetterStore, args: argparse.Namespace, _settings: Settings) -> Ending:
    if sum(map(bool, (args.ids, args.where, args.all))) != 1:
        raise IngestError("name what to discard: IDs, or --where, or --all (one of the three)")
    tally = Tally()
    where = _selected(args)
    count = 0
    if not args.yes:
        async for _ in once(store.oldest(where, tally)):
            count += 1
        said = f"{counted(count, 'dead letter')} would be discarded; to do it, repeat it with --yes"
        return Ending({"would_be_discarded": count}, said, 1)
    if (await store.extent()).empty:
        print("no dead letters", file=sys.stderr)
        return Ending({"discarded": 0}, "")
    async with store.held():
        async for some in store.oldest(where, tally):
            await store.mark_done(some, "discarded")
            count += len(some)
    return Ending({"discarded": count}, f"{counted(count, 'dead letter')} discarded")


STORE = (
    flag(
        "--store",
        choices=STORES,
        help=f"{FILES}: those of the state folder; {STREAM}: those of the broker; default: found",
    ),
    OneOf(
        (
            flag("--forward", metavar="NAME", type=forward_name, help="those of a forwarder"),
            flag("--mqtt", metavar="NAME", type=forward_name, help="those of `ingest mqtt`"),
        )
    ),
)
WHERE = (
    flag(
        "--where",
        action="append",
        metavar="K=V",
        help="only these: reason=, code=, device=, device_prefix= (what the name begins with), "
        "since=RFC3339; all must match",
    ),
    *STORE,
)
IDS = flag("ids", nargs="*", metavar="ID", help="an id, or its first characters")
LISTING = (
    IDS,
    *WHERE,
    flag(
        "--json",
        action="store_true",
        help="the lines of the files, unchanged; all of them, unless there is --limit",
    ),
    flag(
        "--limit",
        type=number_within(int, 0, math.inf, "whole number from 0 on (0: all)"),
        metavar="N",
        help=f"the newest N ({LISTED} if --json is not given); 0: all, the oldest first",
    ),
)
COMMAND = Command(
    examples=("ingest dlq list", "ingest dlq stats --json"),
    usage="COMMAND [options]",
    epilog="exit codes: 0 done; 1 a part is left, such as a dead letter that is refused again, or "
    "discard without --yes",
    commands={
        "list": Command(
            "one line for each dead letter, the newest first",
            ("ingest dlq list", "ingest dlq list --where device_prefix=boiler- --limit 0"),
            partial(_run, _list),
            "[options] [ID ..]",
            LISTING,
        ),
        "show": Command(
            "dead letters in full, the newest first",
            ("ingest dlq show 6f1c09", "ingest dlq show --json --where reason=invalid"),
            partial(_run, _list),
            "[options] [ID ..]",
            LISTING,
        ),
        "stats": Command(
            "number, reasons, age and size",
            ("ingest dlq stats", "ingest dlq stats --forward billing --json"),
            partial(_run, _stats),
            flags=(JSON, *STORE),
        ),
        "replay": Command(
            "validate dead letters again and write them to the table",
            ("ingest dlq replay --dry-run", "ingest dlq replay --file fixed.jsonl --edited"),
            partial(_run, _replay),
            flags=(
                *WHERE,
                flag(
                    "--rate",
                    type=number_within(int, 1, math.inf, "whole number from 1 on"),
                    metavar="N",
                    help="write at most N readings per second",
                ),
                flag("--dry-run", action="store_true", help="only validate, write nothing"),
                flag("--file", type=Path, metavar="COPY", help="replay the lines of a copy"),
                flag(
                    "--edited",
                    action="store_true",
                    help="the copy was edited: do not check checksums",
                ),
                JSON,
                flag(
                    "--ignore-unknown",
                    action="store_true",
                    help="accept fields that readings do not have",
                ),
            ),
        ),
        "discard": Command(
            "mark dead letters as discarded; their readings are lost",
            (
                "ingest dlq discard 6f1c09 --yes",
                "ingest dlq discard --where device_prefix=test- --yes",
            ),
            partial(_run, _discard),
            "[options] [ID ..]",
            (
                IDS,
                *WHERE,
                flag("--all", action="store_true", help="all dead letters"),
                flag("--yes", action="store_true", help="discard them, not only count them"),
                JSON,
            ),
        ),
    },
)
