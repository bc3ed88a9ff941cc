"""The flags of `ingest token new`, `disable` and `rotate`, and what they may be."""

from __future__ import annotations

import argparse
import math
import re

from ingest.cli.parser import add_json_flag
from ingest.config.values import moment_us
from ingest.model.letter import JSON, LINE, MAPPED, MSGPACK, NDJSON, SENML

OVERLAP_DAYS = 30.0
FORMS = (JSON, NDJSON, MSGPACK, SENML, LINE, MAPPED)  # that a token may be limited to
LIMIT_MAX = 1e9
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def new_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `new`."""
    parser.add_argument("name", metavar="NAME", help="shown in lists and logs: no secret")
    for flag, what in (
        ("devices", "devices that it may send readings of, as in 'greenhouse-*'; may be repeated"),
        ("sources", "where it may post: readings, line, or the name of a source; may be repeated"),
        ("formats", f"formats that it may post: {', '.join(FORMS)}; may be repeated"),
    ):
        parser.add_argument(f"--{flag}", metavar="TEXT", action="append", default=[], help=what)
    parser.add_argument(
        "--device",
        metavar="ID",
        default="",
        help="the only device that it may send readings of, also if a post names none",
    )
    parser.add_argument(
        "--certificate",
        metavar="CN",
        default="",
        help="instead of a token: the name (CN) in a client's certificate, which a proxy checks",
    )
    for flag, kind, what in (
        ("readings-per-s", _rate, "most readings a second"),
        ("posts-per-s", _rate, "most posts a second"),
        ("connections", _count, "most connections"),
    ):
        parser.add_argument(
            f"--{flag}",
            metavar="N",
            type=kind,
            help=f"{what}; 0: no limit; without this flag the setting counts",
        )
    parser.add_argument(
        "--admin",
        choices=("read", "operate"),
        default="",
        help="for the admin port, and not for posts: see the dashboard, or act there, too",
    )
    parser.add_argument("--expires", metavar="TIME", type=_time, help="as in 2028-01-01 (UTC)")
    parser.add_argument("--note", metavar="TEXT", default="", help="for people")
    add_json_flag(parser)


def disable_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `disable`."""
    parser.add_argument("name", metavar="NAME")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--digest", metavar="BEGIN", default="", help="only this one of the name")
    which.add_argument("--all", action="store_true", help="all tokens of the name")
    add_json_flag(parser)


def rotate_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `rotate`."""
    parser.add_argument("name", metavar="NAME")
    end = parser.add_mutually_exclusive_group()
    end.add_argument(
        "--overlap-days",
        metavar="DAYS",
        type=_days,
        default=OVERLAP_DAYS,
        help=f"how long the token before stays valid [{OVERLAP_DAYS:g}]",
    )
    end.add_argument(
        "--now",
        action="store_const",
        dest="overlap_days",
        const=0.0,
        help="the token before ends at once, as if somebody else has it",
    )
    parser.add_argument(
        "--expires", metavar="TIME", type=_time, help="of the new one, as in 2028-01-01, or never"
    )
    add_json_flag(parser)


def _time(text: str) -> float:
    try:
        if text == "never":
            return math.inf
        return moment_us(f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a date such as 2028-01-01 nor RFC 3339"
        ) from None


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 < days <= 3650:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days up to 3650 (or --now)")
    return days


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= LIMIT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {LIMIT_MAX:g}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > LIMIT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {LIMIT_MAX:g}")
    return int(text)
