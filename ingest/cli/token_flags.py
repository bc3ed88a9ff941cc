"""The flags of `ingest token new`, `disable` and `rotate`, and what they may be."""

from __future__ import annotations

import argparse
import math
import re

from ingest.cli.parser import JSON as AS_JSON
from ingest.cli.parser import OneOf, flag
from ingest.config.values import moment_us
from ingest.model.letter import JSON, LINE, MAPPED, MSGPACK, NDJSON, SENML

OVERLAP_DAYS = 30.0
FORMS = (JSON, NDJSON, MSGPACK, SENML, LINE, MAPPED)  # that a token may be limited to
LIMIT_MAX = 1e9
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


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
    AS_JSON,
)
DISABLE = (
    NAME,
    OneOf(
        (
            flag("--digest", metavar="BEGIN", default="", help="only this one of the name"),
            flag("--all", action="store_true", help="all tokens of the name"),
        )
    ),
    AS_JSON,
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
    AS_JSON,
)
