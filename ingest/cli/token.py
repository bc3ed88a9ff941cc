"""`ingest token`: makes tokens for those who post, lists them, ends them.

Only the digest of a token is stored, so it is printed once and cannot be printed again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ingest.access.token_file import LOOK_S
from ingest.access.token_lines import (
    Entries,
    TokenEntry,
    append_lines,
    certificate_key,
    check_name,
    digest_of,
    end_line,
    entry_line,
    new_secret,
    read_entries,
)
from ingest.app.post_rules import tokens_path
from ingest.cli.parser import JSON, Command, Ending, OneOf, flag, number_within
from ingest.config.loading import Loaded
from ingest.config.named_files import state_dir
from ingest.config.settings import Settings
from ingest.config.values import moment_us
from ingest.model import reading
from ingest.model.errors import IngestError, StartError
from ingest.system.clock import unix_us
from ingest.system.state_folder import StateFolder, running_service

OVERLAP_DAYS = 30.0
FORMS = (  # that a token may be limited to
    *(reading.JSON, reading.NDJSON, reading.MSGPACK, reading.SENML, reading.LINE),
    reading.MAPPED,
)
LIMIT_MAX = 1e9
_DAY_US = 86_400_000_000
_PLAIN = frozenset({"name", "sha256", "state", "expires"})
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def _list(_args: argparse.Namespace, loaded: Loaded) -> Ending:
    path = tokens_path(loaded.settings)
    shown = [_described(each) for each in read_entries(path).by_digest.values()]
    lines = [
        f"{each['name']:<24} {each.get('sha256', 'by name')[:8]:<8}  {each['state']:<28} "
        f"{_scope_text(each)}".rstrip()
        for each in shown
    ]
    text = "\n".join(lines) or f"there are no tokens in {path}"
    return Ending({"file": str(path), "tokens": shown}, text)


def _new(args: argparse.Namespace, loaded: Loaded) -> Ending:
    try:
        check_name(args.name)
    except ValueError as error:
        raise IngestError(str(error)) from None
    path, entries = _read(loaded.settings)
    if _live(entries, args.name):
        raise IngestError(
            f"there is a token {args.name} already: `ingest token rotate {args.name}` makes its "
            "successor"
        )
    if args.device and (args.devices or "*" in args.device):
        raise IngestError(
            "a token has --device, a name without *, or --devices, patterns; not both"
        )
    if unknown := [each for each in args.formats if each not in FORMS]:
        raise IngestError(f"there is no format {unknown[0]!r}; there are {', '.join(FORMS)}")
    if args.admin and (args.devices or args.device or args.sources or args.formats):
        raise IngestError("a token with --admin posts nothing: it has no devices or sources")
    entry = TokenEntry(
        args.name,
        _certificate_key(args.certificate, entries),
        tuple(args.devices),
        args.device,
        tuple(args.sources),
        tuple(args.formats),
        math.inf if args.expires is None else args.expires,
        args.note,
        args.admin,
        args.readings_per_s,
        args.posts_per_s,
        args.connections,
    )
    if not (entries.senders or args.admin):
        print(
            "The first token. If the service runs and lets everybody post, restart it.",
            file=sys.stderr,
        )
    return _make(path, entry, b"")


def _rotate(args: argparse.Namespace, loaded: Loaded) -> Ending:
    path, entries = _read(loaded.settings)
    live = _required(entries, args.name)
    before = live[-1]
    if before.certificate:
        raise IngestError(
            f"{args.name} has a certificate and no token, so there is nothing to rotate. A renewed "
            "certificate with the same name counts without a change here"
        )
    if before.ends_us != math.inf and args.expires is None:
        raise IngestError(
            f"the token {args.name} has an end: give the new one its own with --expires TIME, or "
            "--expires never"
        )
    with suppress(StartError):  # then it is not known
        service = running_service(state_dir(loaded.settings))
        if service is not None and service.is_open and not before.admin:
            print("The service lets everybody post until it is restarted.", file=sys.stderr)
    at_us = unix_us() + int(args.overlap_days * _DAY_US)
    ends = b"".join(end_line(each, at_us) for each in live)
    like = before._replace(ends_us=math.inf if args.expires is None else args.expires)
    return _make(path, like, ends)


def _disable(args: argparse.Namespace, loaded: Loaded) -> Ending:
    path, entries = _read(loaded.settings)
    live = _required(entries, args.name)
    begin = args.digest if args.digest or args.all or len(live) == 1 else _asked(args.name, live)
    chosen = [each for each in live if (each.certificate or each.digest).startswith(begin)]
    if not chosen:
        raise IngestError(f"no live token {args.name} has a digest that begins so")
    lines = b"".join(end_line(each, unix_us()) for each in chosen)
    kept = _append(path, lines)
    text = "\n".join(
        f"disabled: {each.name} {each.certificate or each.digest[:8]}" for each in chosen if kept
    )
    disabled = [each.digest for each in chosen]
    return Ending({"disabled": disabled, "written": kept}, text, 0 if kept else 1)


def _asked(name: str, live: list[TokenEntry]) -> str:
    """Return the begin of the digest that the user types, "" for all. Raises IngestError."""
    told = f"{len(live)} tokens {name} are valid: " + ", ".join(
        f"{each.certificate or each.digest[:8]} ({_described(each)['state']})" for each in live
    )
    if not sys.stdin.isatty():
        raise IngestError(f"{told}. End one with --digest BEGIN, or all with --all")
    print(
        f"{told}. Which one ends? Type its digest, or `all`: ", end="", file=sys.stderr, flush=True
    )
    answer = sys.stdin.readline().strip()
    return "" if answer == "all" else answer or "nothing"


def _make(path: Path, like: TokenEntry, ends: bytes) -> Ending:
    """Make a token with the scope of this entry, for a certificate none; `ends` are more lines."""
    token = new_secret()
    entry = like if like.certificate else like._replace(digest=digest_of(token))
    try:
        line = entry_line(entry)
        for _ in Entries().read(line):  # a line that the service cannot read is never written
            pass
    except (OverflowError, TypeError, ValueError) as error:
        raise IngestError(f"the service could not read this token: {error}") from None
    kept = _append(path, line + ends)
    document = {"name": entry.name, "file": str(path), "written": kept}
    if entry.certificate:
        document["certificate"] = entry.certificate
        text = f"{entry.name}: the certificate {entry.certificate}" if kept else ""
    else:
        document |= {"sha256": entry.digest, "token": token}
        text = f"The token {entry.name}; it is not shown again:\n{token}"
    return Ending(document, text, 0 if kept else 1)


def _certificate_key(name: str, entries: Entries) -> str:
    """Return what an entry of a certificate has in the place of a digest; "" for a token."""
    if not name:
        return ""
    try:
        key = certificate_key(name)
    except ValueError as error:
        raise IngestError(str(error).replace("`certificate`", repr(name))) from None
    known = entries.by_digest.get(key)
    if known is not None and known.ends_us > unix_us():
        raise IngestError(f"the certificate {name!r} counts for {known.name} already")
    if known is not None:
        raise IngestError(
            f"the certificate {name!r} was ended: remove the line that ends it from the file"
        )
    return key


def _append(path: Path, lines: bytes) -> bool:
    """Append the lines; if the file cannot be written, print them. Returns whether it was."""
    try:
        append_lines(path, lines)
    except OSError as error:
        print(
            f"{path} cannot be written ({error.strerror}). Add this to it:\n"
            f"{lines.decode().rstrip()}",
            file=sys.stderr,
        )
        return False
    asyncio.run(asyncio.sleep(4 * LOOK_S))  # then a running service has read it
    return True


def _read(settings: Settings) -> tuple[Path, Entries]:
    """Return the file and what it has. The state folder is made if it is missing."""
    if not settings.tokens_file:
        StateFolder.open(state_dir(settings))
    path = tokens_path(settings)
    return path, read_entries(path)


def _live(entries: Entries, name: str) -> list[TokenEntry]:
    now_us = unix_us()
    return [
        each for each in entries.by_digest.values() if each.name == name and each.ends_us > now_us
    ]


def _required(entries: Entries, name: str) -> list[TokenEntry]:
    live = _live(entries, name)
    if not live:
        raise IngestError(f"there is no live token {name!r} (see `ingest token list`)")
    return live


def _described(entry: TokenEntry) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(entry_line(entry))
    state = "live"
    if "expires" in fields:
        ended = entry.ends_us <= unix_us()
        state = f"{'ended' if ended else 'live until'} {fields['expires'][:19]}Z"
    return {**fields, "state": state}


def _scope_text(fields: dict[str, Any]) -> str:
    shown = {name: each for name, each in fields.items() if name not in _PLAIN}
    return " ".join(
        f"{name}={','.join(each) if isinstance(each, list) else each}"
        for name, each in shown.items()
    )


def _time(text: str) -> float:
    try:
        if text == "never":
            return math.inf
        return moment_us(f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a date such as 2028-01-01 nor RFC 3339"
        ) from None


_rate = number_within(float, 0, LIMIT_MAX, f"number from 0 to {LIMIT_MAX:g}")
_count = number_within(int, 0, LIMIT_MAX, f"whole number from 0 to {LIMIT_MAX:g}")
_days = number_within(float, 1e-6, 3650, "number of days up to 3650 (or --now)")


NAME = flag("name", metavar="NAME")
NEW = (
    flag("name", metavar="NAME", help="shown in lists and logs: no secret"),
    *(
        flag(name, metavar="TEXT", action="append", default=[], help=f"{what}; may be repeated")
        for name, what in (
            ("--devices", "devices that it may send readings of, as in 'greenhouse-*'"),
            ("--sources", "where it may post: readings, line, or the name of a source"),
            ("--formats", f"formats that it may post: {', '.join(FORMS)}"),
        )
    ),
    flag(
        "--device",
        metavar="ID",
        default="",
        help="the only device that it may send readings of, also if a post names none",
    ),
    flag(
        "--certificate",
        metavar="CN",
        default="",
        help="instead of a token: the name (CN) in a client's certificate, which a proxy checks",
    ),
    *(
        flag(
            name,
            metavar="N",
            type=kind,
            help=f"{what}; 0: no limit; without this flag the setting counts",
        )
        for name, kind, what in (
            ("--readings-per-s", _rate, "most readings a second"),
            ("--posts-per-s", _rate, "most posts a second"),
            ("--connections", _count, "most connections"),
        )
    ),
    flag(
        "--admin",
        choices=("read", "operate"),
        default="",
        help="for the admin port, and not for posts: see the dashboard, or act there, too",
    ),
    flag("--expires", metavar="TIME", type=_time, help="as in 2028-01-01 (UTC)"),
    flag("--note", metavar="TEXT", default="", help="for people"),
    JSON,
)
DISABLE = (
    NAME,
    OneOf(
        (
            flag("--digest", metavar="BEGIN", default="", help="only this one of the name"),
            flag("--all", action="store_true", help="all tokens of the name"),
        )
    ),
    JSON,
)
ROTATE = (
    NAME,
    OneOf(
        (
            flag(
                "--overlap-days",
                metavar="DAYS",
                type=_days,
                default=OVERLAP_DAYS,
                help=f"how long the token before stays valid [{OVERLAP_DAYS:g}]",
            ),
            flag(
                "--now",
                action="store_const",
                dest="overlap_days",
                const=0.0,
                help="the token before ends at once, as if somebody else has it",
            ),
        )
    ),
    flag(
        "--expires", metavar="TIME", type=_time, help="of the new one, as in 2028-01-01, or never"
    ),
    JSON,
)
COMMAND = Command(
    examples=("ingest token new greenhouse", "ingest token list"),
    usage="COMMAND [options]",
    epilog="""\
A running service reads the file by itself. Clients send `Authorization: Bearer TOKEN`.

exit codes: 0 done, 1 the file cannot be written: the line to add is printed""",
    commands={
        "new": Command(
            "make a token, and print it once, as the last word",
            (
                "ingest token new greenhouse",
                "ingest token new greenhouse --devices 'greenhouse-*' --expires 2028-01-01",
                "ingest token new boiler --certificate boiler-7 --device boiler-7",
            ),
            _new,
            "[options] NAME",
            NEW,
        ),
        "list": Command(
            "print the tokens: name, begin of the digest, state, what each may do",
            ("ingest token list", "ingest token list --json"),
            _list,
            flags=(JSON,),
        ),
        "disable": Command(
            "refuse a token from now on; if several of this name are valid, it asks which",
            (
                "ingest token disable greenhouse",
                "ingest token disable greenhouse --digest 3f29a0c4",
            ),
            _disable,
            "[options] NAME",
            DISABLE,
        ),
        "rotate": Command(
            "make another token of this name; the one before ends later",
            ("ingest token rotate greenhouse", "ingest token rotate greenhouse --now"),
            _rotate,
            "[options] NAME",
            ROTATE,
        ),
    },
)
