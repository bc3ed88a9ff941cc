"""`ingest size`: what a fleet will need: processes, cores, network, disk. Starts and asks nothing.

It multiplies measured figures (see size_figures.py) by the rates of the fleet. So it is an
estimate for machines like the measured one, and says where a figure goes beyond what was measured.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from ingest.cli.parser import Parser, SettingsFlags, add_json_flag
from ingest.cli.size_figures import Fleet, Need, need_of
from ingest.cli.terminal import print_answer
from ingest.config.loading import Loaded
from ingest.model.errors import IngestError

TAKES = ""
EXAMPLES = (
    "ingest size --devices 50000 --every 1s",
    "ingest size --devices 1000 --every 10s --metrics 4 --batch 40",
    "ingest size --devices 200 --every 5m --json",
)
EPILOG = "What the figures are made from: docs/sizing.md."
DEVICES_MAX = 1_000_000_000
_TIMES_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|h|d)")


def add_arguments(parser: Parser, settings: SettingsFlags) -> None:
    """Add the description of the fleet."""
    parser.add_argument("--devices", metavar="N", required=True, help="how many devices post")
    parser.add_argument(
        "--every", metavar="TIME", required=True, help="a device measures every TIME: 500ms, 10s"
    )
    parser.add_argument(
        "--metrics", metavar="N", default="1", help="readings of one measurement [default: 1]"
    )
    parser.add_argument(
        "--batch", metavar="N", help="readings in a post [default: those of one measurement]"
    )
    add_json_flag(parser)
    settings.add_to(parser)


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Print what the fleet needs; return 0. Raises IngestError for a wrong number."""
    metrics = _whole("--metrics", args.metrics, 10_000)
    settings = loaded.settings
    fleet = Fleet(
        devices=_whole("--devices", args.devices, DEVICES_MAX),
        every_s=seconds_of(args.every),
        metrics=metrics,
        batch=_whole("--batch", args.batch, settings.post_rows_max) if args.batch else metrics,
    )
    need = need_of(fleet, settings.journal_bytes_max)
    print_answer(
        need._asdict() | {"fleet": fleet._asdict()},
        as_text(fleet, need, settings.connections_max),
        as_json=args.json,
    )
    return 0


def seconds_of(text: str) -> float:
    """Return a time such as 500ms, 10s, 5m, 1h, 1d in seconds. Raises IngestError."""
    found = _TIME.fullmatch(text.strip())
    if not found or not (every_s := float(found[1]) * _TIMES_S[found[2]]):
        raise IngestError(f"--every {text!r} is no time above 0, such as 500ms, 10s, 5m, 1h or 1d")
    return every_s


def _whole(flag: str, text: str, most: int) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else 0
    if not 1 <= number <= most:
        raise IngestError(f"{flag} {text!r} is no whole number from 1 to {most:,}")
    return number


def as_text(fleet: Fleet, need: Need, connections_max: int) -> str:
    """Return the answer for a person."""
    rows: list[tuple[str, str, str]] = [
        ("readings", f"{_short(need.readings_per_s)}/s", f"{_short(need.readings_per_day)} a day"),
        ("posts", f"{_short(need.posts_per_s)}/s", _counted(fleet.batch)),
        ("network in", f"{_short(need.network_mb_per_s)} MB/s", "JSON over HTTP, without TLS"),
        ("run", need.command, need.why),
        *(
            (f"cores, {role}", _short(cores), "busy; buy twice as many")
            for role, cores in need.cores.items()
        ),
        ("WAL", f"{_short(need.wal_mb_per_s)} MB/s", "PostgreSQL's write-ahead log"),
        ("table", f"{_short(need.hot_gb_per_day)} GB a day", "heap and key, in PostgreSQL"),
        ("archive", f"{_short(need.cold_gb_per_day)} GB a day", "the same as Parquet files"),
        ("journal", _duration(need.journal_minutes), "of an outage until it is full"),
        ("connections", f"{fleet.devices:,}", f"{_short(need.connections_mb)} MB if all stay open"),
    ]
    widths = [max(len(row[at]) for row in rows) for at in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {what:<{widths[1]}}  {why}" for name, what, why in rows]
    warnings = list(need.warnings)
    if fleet.devices > connections_max:
        warnings.append(
            f"connections_max is {connections_max:,}: above it, idle connections are closed. "
            "Raise it, and the limit of open files, if devices keep theirs open."
        )
    return "\n".join([*lines, *(["", *warnings] if warnings else [])])


def _short(number: float) -> str:
    """Return a number with two or three digits that count, and never as 1e+03."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.2g}" if number >= 0.01 else "below 0.01"


def _counted(batch: int) -> str:
    return "of one reading" if batch == 1 else f"of {batch:,} readings"


def _duration(minutes: float) -> str:
    if minutes < 120:
        return f"{_short(minutes)} minutes"
    hours = minutes / 60
    return f"{_short(hours)} hours" if hours < 48 else f"{_short(hours / 24)} days"


def columns(need: Need) -> dict[str, Any]:
    """Return what one line of the table in docs/sizing.md shows."""
    return {
        "readings/s": _short(need.readings_per_s),
        "run": f"`{need.command}`",
        "cores": _short(sum(need.cores.values())),
        "WAL, MB/s": _short(need.wal_mb_per_s),
        "table, GB a day": _short(need.hot_gb_per_day),
        "archive, GB a day": _short(need.cold_gb_per_day),
        "journal": _duration(need.journal_minutes),
    }
