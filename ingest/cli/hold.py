"""`ingest hold`: asks the running service whether writes are paused, or makes it try again now."""

from __future__ import annotations

import argparse

from ingest.cli.running_service import ask
from ingest.config.settings import Loaded


def add_arguments(parser: argparse.ArgumentParser, settings_flags: argparse.ArgumentParser) -> None:
    """Add the two commands."""
    commands = parser.add_subparsers(dest="hold_command", metavar="show | release", required=True)
    commands.add_parser(
        "show",
        parents=[settings_flags],
        help="print the state, the reason, and the message of the database",
    )
    release = commands.add_parser(
        "release", parents=[settings_flags], help="try to write now; do not wait for the next try"
    )
    release.add_argument(
        "--dead-letter",
        action="store_true",
        help="also move all rows that the database refuses to the dead letters",
    )


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Show or release; return 0."""
    if args.hold_command == "show":
        answer = ask(loaded.settings, "GET", "/readyz")
        print(f"state:  {answer.get('state')}")
        print(f"reason: {answer.get('reason') or '-'}")
        print(f"since:  {answer.get('since')}")
        if answer.get("reason") and (said := ask(loaded.settings, "GET", "/hold").get("said")):
            # A message may quote a reading. Its control characters must not reach the terminal.
            print("said:   " + "".join(c if c.isprintable() else " " for c in str(said)))
        return 0
    answer = ask(loaded.settings, "POST", "/hold/release", {"dead_letter": args.dead_letter})
    if answer.get("released"):
        print("released: the service tries to write now. See the result with `ingest hold show`")
    else:
        print("nothing is on hold: writes are not paused")
    return 0
