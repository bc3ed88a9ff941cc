"""The command line: `python -m loadgen run | verify | csv ..`.

Exit codes of all commands: 0 success, 1 a part failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from loadgen.cli import csv as cli_csv
from loadgen.cli import run as cli_run
from loadgen.cli import verify as cli_verify
from loadgen.cli.parser import Parser, meant

COMMANDS = {"run": cli_run, "verify": cli_verify, "csv": cli_csv}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = parser()
    chosen, unknown = words.parse_known_args(arguments)
    if chosen.command is None:
        words.print_help(sys.stderr)
        return 2
    if unknown:
        options = (each.name for group in chosen.options.values() for each in group)
        near = meant(unknown[0].partition("=")[0], options)
        known = near if "did you mean" in near else f" (see loadgen {chosen.command} --help)"
        again = "" if unknown[0].startswith("-") else "repeat an option for each value: "
        print(f"loadgen {chosen.command}: {again}there is no {unknown[0]}{known}", file=sys.stderr)
        return 2
    code: int = COMMANDS[chosen.command].main(chosen)
    return code


def parser() -> Parser:
    """Return the parser of all commands."""
    loadgen = Parser(
        prog="loadgen",
        usage="loadgen COMMAND [options]",
        description="Clients of iot-ingest: measure it, prove that it loses nothing, post a file.",
        examples=("loadgen run --rate 500 --duration-s 30", "loadgen verify"),
        epilog="exit codes: 0 success, 1 a part failed, 2 wrong use, 130 ended by Ctrl-C",
    )
    commands = loadgen.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", prog="loadgen"
    )
    for each in COMMANDS.values():
        each.add_parser(commands)
    return loadgen
