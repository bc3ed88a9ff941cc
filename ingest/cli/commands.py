"""The command line: the commands, a flag for every setting, and the messages of failures.

The module of a command is imported only when that command is used, so help and `ingest config` are
quick.
Promises: an expected failure is one sentence on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Coroutine, Mapping, Sequence
from importlib import import_module

from ingest import __version__
from ingest.app import annexes
from ingest.app.annexes import CommandModule
from ingest.cli.parser import DEST, Command, Ending, Parser, add_command, as_typed, hidden_settings
from ingest.config.loading import Loaded, load
from ingest.config.settings import Settings
from ingest.config.values import flag_name, full_path, nearest
from ingest.model.errors import IngestError
from ingest.system.words import command_words

COMMANDS = {
    "serve": CommandModule(
        "run the service: take readings and write them to PostgreSQL", "ingest.cli.serve"
    ),
    "token": CommandModule("make, list and end the tokens of those who post", "ingest.cli.token"),
    "sources": CommandModule(
        "show how JSON of other senders becomes readings, and try it with a body",
        "ingest.cli.sources",
    ),
    "tables": CommandModule(
        "show which values become columns of a row, and suggest more of them",
        "ingest.cli.tables",
    ),
    "schema": CommandModule(
        "create the table, or compare it with what is needed", "ingest.cli.schema"
    ),
    "housekeeping": CommandModule(
        "make partitions, drop or archive old ones, compute rollups; show what is due",
        "ingest.cli.housekeeping",
    ),
    "dlq": CommandModule(
        "show the dead letters, replay them, discard them", "ingest.cli.dlq.command"
    ),
    "hold": CommandModule("show why writes are paused, or try again now", "ingest.cli.hold"),
    "config": CommandModule(
        "print every setting, its value, and where the value comes from", "ingest.cli.config"
    ),
    "psql": CommandModule(
        "open psql on the database of the service; further arguments go to psql", "ingest.cli.psql"
    ),
    "doctor": CommandModule(
        "check this machine, the state folder and the database, and say what to do",
        "ingest.cli.doctor.command",
    ),
    **annexes.COMMANDS,
}
_ABOUT_ALL = """\
Each command has its own --help.{typed}

exit codes:
  0    done
  1    a part could not be done, or a check has found something wrong
  2    wrong use, or the command could not begin: the reason is on stderr
  3    only of serve and up: the service has ended, and readings were lost
  130  ended by Ctrl-C"""
_EXIT_WRONG = 2
_EXIT_INTERRUPTED = 130
_EXIT_PIPE = 141  # as a shell reports it for a program that SIGPIPE has ended


def build_parser(command: str | None) -> Parser:
    """Return the parser. Only `command` gets its arguments (None: no command does)."""
    run = command_words()["run"]
    parser = Parser(
        prog="ingest",
        usage="ingest COMMAND [options]",
        description="Takes sensor readings over HTTP and writes them to PostgreSQL in batches.",
        examples=("ingest serve", "ingest doctor"),
        epilog=_ABOUT_ALL.format(typed="" if run == "ingest" else f" Here type {run} for ingest."),
    )
    parser.add_argument("--version", action="version", version=f"ingest {__version__}")
    parser.set_defaults(help_of=parser)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", parser_class=Parser, prog="ingest"
    )
    for name, each in COMMANDS.items():
        if name == command:
            named = _command(name)._replace(purpose=each.purpose)
            add_command(commands, name, named, hidden_settings())
        else:
            commands.add_parser(name, help=each.purpose)
    return parser


def _command(name: str) -> Command:
    is_of_annex = name in annexes.COMMANDS
    module = annexes.module_of(name) if is_of_annex else import_module(COMMANDS[name].module)
    found: Command = module.COMMANDS[name] if hasattr(module, "COMMANDS") else module.COMMAND
    return found


def load_settings(args: argparse.Namespace, environ: Mapping[str, str]) -> Loaded:
    """Read the settings for parsed arguments. Raises ConfigError."""
    named = getattr(args, "config_file", None) or environ.get("INGEST_CONFIG")
    flags = {
        name.removeprefix(DEST): value
        for name, value in vars(args).items()
        if name.startswith(DEST)
    }
    toml_path = full_path(named) if named else None
    return load(toml_path=toml_path, environ=environ, flags=flags)


def split_psql(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split what follows `psql` into our flags and psql's own arguments.

    Ours are the settings, --config, and -h or --help at the beginning. All after `--` is psql's.
    """
    ours, theirs = list[str](), list[str]()
    known = {"--config", *(flag_name(name) for name in Settings.__dataclass_fields__)}
    rest = list(words)
    if rest[:1] in (["-h"], ["--help"]):
        return rest[:1], []
    while rest:
        word = rest.pop(0)
        if word == "--":
            return ours, theirs + rest
        if word.partition("=")[0] not in known:
            theirs.append(word)
            continue
        ours.append(word)
        if "=" not in word and rest:
            ours.append(rest.pop(0))
    return ours, theirs


def _run(words: list[str]) -> int:
    command = _command_of(words)
    theirs: list[str] = []
    if command == "psql":
        ours, theirs = split_psql(words[1:])
        words = [command, *ours]
    parser = build_parser(command)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        raise IngestError(f"there is no argument {unknown[0]}{_meant(unknown[0])}")
    if args.help_of is not None:  # a group without one of its commands
        args.help_of.print_help(sys.stderr)
        return _EXIT_WRONG
    args.psql_arguments = theirs
    code = _ended(args, load_settings(args, os.environ))
    sys.stdout.flush()
    return code


def _ended(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the command to its end; print its answer, if it has one. Returns the exit code."""
    ended = args.run(args, loaded)
    if isinstance(ended, Coroutine):
        import asyncio  # noqa: PLC0415

        ended = asyncio.run(ended)
    if isinstance(ended, Ending):
        ended.print(as_json=getattr(args, "json", False))
        return ended.code
    return int(ended)


def _command_of(words: list[str]) -> str | None:
    """Return the command of a command line; None if it is empty or asks for help."""
    if not words or words[0] in {"-h", "--help", "--version"}:
        return None
    if words[0].startswith("-"):
        raise IngestError(f"write {words[0]} after a command, as in: ingest serve {words[0]} ..")
    if words[0] not in COMMANDS:
        near = nearest(words[0], COMMANDS)
        raise IngestError(f"there is no command {words[0]!r}{near} (see ingest --help)")
    return words[0]


def _meant(given: str) -> str:
    name = given.partition("=")[0].removeprefix("--").replace("-", "_")
    return nearest(name, Settings.__dataclass_fields__, flag_name) if given.startswith("--") else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Help and --version end by SystemExit, as usual."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        _drop_output()
        return _EXIT_PIPE
    except (IngestError, OSError) as error:
        print(f"ingest: {as_typed(str(error))}", file=sys.stderr)
        _drop_output()
        return _EXIT_WRONG


def _drop_output() -> None:
    """Make sure that the interpreter's last flush does not fail: that changes the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
