"""The command line: `python -m loadgen run | verify | csv ..`.

Exit codes of all commands: 0 success, 1 a part failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from loadgen.cli import csv as cli_csv
from loadgen.cli import run as cli_run
from loadgen.cli import verify as cli_verify

WORDS = {"run": cli_run, "verify": cli_verify, "csv": cli_csv}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    chosen = parser().parse_args(arguments)
    code: int = WORDS[chosen.word].main(chosen)
    return code


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    loadgen = argparse.ArgumentParser(prog="loadgen", description="Clients of iot-ingest.")
    words = loadgen.add_subparsers(dest="word", required=True, metavar="WORD")
    for each in WORDS.values():
        each.add_parser(words)
    return loadgen
