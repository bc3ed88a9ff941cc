"""`ingest dlq`: shows the dead letters, replays them, discards them.

It works beside a running service and without one. Only `replay` needs the database. The dead
letters are in the files of the state folder or in the broker's stream: find_letters.py knows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import sys
from collections.abc import Sequence

from ingest.cli import dlq_show as show
from ingest.cli.arguments import forward_name
from ingest.cli.dlq_replay import add_replay_arguments, replay
from ingest.cli.find_letters import FILES, STORES, STREAM, OwnLetters, letter_store
from ingest.cli.parser import Command, Parser, SettingsFlags, add_group, add_json_flag
from ingest.config.folders import state_dir
from ingest.config.loading import Loaded
from ingest.dead_letters.store import LetterStore, LiveLetter, Selection, Tally, newest, once
from ingest.formats.timestamp import text_us
from ingest.model.errors import IngestError
from ingest.model.letter import REASONS, REFUSED_BY_SERVICE, REFUSED_BY_TARGET
from ingest.system.state_folder import StateFolder
from ingest.system.words import counted

PREFIX_MIN = 6
LISTED = 50
MORE_COUNTED_MAX = 100_000  # a second or two
CONDITIONS = ("reason", "code", "device", "device_prefix", "since")
WHERE_HELP = (
    "only these: reason=, code=, device=, device_prefix= (what the name begins with), "
    "since=RFC3339; all must match"
)

TAKES = "COMMAND [options]"
EXAMPLES = ("ingest dlq list", "ingest dlq stats --json")
EPILOG = (
    "exit codes: 0 done; 1 a part is left, such as a dead letter that is refused again, or discard "
    "without --yes"
)


def add_arguments(parser: Parser, settings: SettingsFlags) -> None:
    """Add the commands and their arguments."""
    commands = (
        Command(
            "list",
            "one line for each dead letter, the newest first",
            ("ingest dlq list", "ingest dlq list --where device_prefix=boiler- --limit 0"),
            _list_arguments,
            "[ID ..]",
        ),
        Command(
            "show",
            "dead letters in full, the newest first",
            ("ingest dlq show 6f1c09", "ingest dlq show --json --where reason=invalid"),
            _list_arguments,
            "[ID ..]",
        ),
        Command(
            "stats",
            "number, reasons, age and size",
            ("ingest dlq stats", "ingest dlq stats --forward billing --json"),
            _stats_arguments,
        ),
        Command(
            "replay",
            "validate dead letters again and write them to the table",
            ("ingest dlq replay --dry-run", "ingest dlq replay --file fixed.jsonl --edited"),
            _replay_arguments,
        ),
        Command(
            "discard",
            "mark dead letters as discarded; their readings are lost",
            (
                "ingest dlq discard 6f1c09 --yes",
                "ingest dlq discard --where device_prefix=test- --yes",
            ),
            _discard_arguments,
            "[ID ..]",
        ),
    )
    add_group(parser, "dlq_command", commands, settings)


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    add_json_flag(parser)
    _store(parser)


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    _ids_and_where(parser)
    add_json_flag(parser, "the lines of the files, unchanged; all of them, unless there is --limit")
    parser.add_argument(
        "--limit",
        type=_limit,
        metavar="N",
        help=f"the newest N ({LISTED} if --json is not given); 0: all, the oldest first",
    )


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    _where(parser)
    add_replay_arguments(parser)


def _discard_arguments(parser: argparse.ArgumentParser) -> None:
    _ids_and_where(parser)
    parser.add_argument("--all", action="store_true", help="all dead letters")
    parser.add_argument("--yes", action="store_true", help="discard them, not only count them")
    add_json_flag(parser, "print the number as JSON")


def _ids_and_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="an id, or its first characters")
    _where(parser)


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--where", action="append", metavar="K=V", help=WHERE_HELP)
    _store(parser)


def _store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        choices=STORES,
        help=f"{FILES}: those of the state folder; {STREAM}: those of the broker; default: found",
    )
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--forward", metavar="NAME", type=forward_name, help="those of a forwarder")
    whose.add_argument("--mqtt", metavar="NAME", type=forward_name, help="those of `ingest mqtt`")


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on (0: all)")
    return int(text)


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the command; return 0, or 1 if a part of it could not be done."""
    try:
        code = asyncio.run(_run(args, loaded))
        sys.stdout.flush()  # here, so that the error of a full disk gets the text below
        return code
    except BrokenPipeError:
        raise  # the reader of the output has gone: main() ends quietly
    except OSError as error:
        # The error may be of a file of the folder, or of the file that the output goes to.
        where = f"{error.filename}: " if error.filename else ""
        why = f"{where}{error.strerror or error}"
        folder = StateFolder(state_dir(loaded.settings)).dead_letters
        raise IngestError(
            f"dlq {args.dlq_command}: {why} (the dead letters are in {folder})"
        ) from error


async def _run(args: argparse.Namespace, loaded: Loaded) -> int:
    if args.forward is not None and args.dlq_command == "replay":
        raise IngestError(
            "dlq replay writes to the table, and the readings of a forwarder are there already: "
            "post what `ingest dlq show --json --forward` prints, then discard it"
        )
    if args.mqtt is not None and args.dlq_command == "replay":
        raise IngestError(
            "dlq replay cannot read messages of MQTT: publish them again, corrected, or post what "
            "`ingest dlq show --json --mqtt` prints; then discard them"
        )
    own = OwnLetters("forward", args.forward) if args.forward is not None else None
    own = OwnLetters("mqtt", args.mqtt) if args.mqtt is not None else own
    async with letter_store(loaded.settings, args.store, own=own) as store:
        if args.dlq_command in {"list", "show"}:
            return await _list(args, store)
        if args.dlq_command == "stats":
            return await _stats(store, as_json=args.json)
        if args.dlq_command == "replay":
            return await replay(args, loaded.settings, store, where_of(args.where))
        return await _discard(args, store)


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


async def _list(args: argparse.Namespace, store: LetterStore) -> int:
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
    elif args.dlq_command == "show":
        print(f"{show.in_full(live)}\n")
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
        if is_first:
            print(show.COLUMNS)
        print(show.one_line(live, max(width, len(show.COLUMNS))))


async def _stats(store: LetterStore, *, as_json: bool) -> int:
    tally = Tally()
    count = show.Count()
    async for live in once(store.oldest(Selection(), tally)):
        count.add(live)
    counted = count.figures(await store.extent(), tally)
    print(json.dumps(counted) if as_json else show.figures(counted, tally))
    return 0


async def _discard(args: argparse.Namespace, store: LetterStore) -> int:
    if sum(map(bool, (args.ids, args.where, args.all))) != 1:
        raise IngestError("name what to discard: IDs, or --where, or --all (one of the three)")
    tally = Tally()
    where = _selected(args)
    count = 0
    if not args.yes:
        async for _ in once(store.oldest(where, tally)):
            count += 1
        said = f"{counted(count, 'dead letter')} would be discarded; to do it, repeat it with --yes"
        print(json.dumps({"would_be_discarded": count}) if args.json else said)
        return 1
    if (await store.extent()).empty:
        print("no dead letters", file=sys.stderr)
        if args.json:
            print(json.dumps({"discarded": 0}))
        return 0
    async with store.held():
        async for some in store.oldest(where, tally):
            await store.mark_done(some, "discarded")
            count += len(some)
    said = f"{counted(count, 'dead letter')} discarded"
    print(json.dumps({"discarded": count}) if args.json else said)
    return 0
