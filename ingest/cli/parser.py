"""The parts of the command line: how a command is declared, its flags, its help, and its output.

Help shows a command's own options first, then the few settings that most commands need. All other
settings are flags of every command too; `ingest config --help` lists them. The parser raises where
argparse would end the process. Output is JSON for programs, and text for people.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from dataclasses import Field, fields
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, TypeVar

from ingest.config.loading import Loaded
from ingest.config.settings import Settings, groups, help_text, metavar
from ingest.config.values import check_forward_name, checked, flag_name, nearest
from ingest.model.errors import ConfigError, IngestError
from ingest.system.words import command_words

DEST = "setting."  # keeps flags of settings apart from arguments of a command
MOST_USED = ("listen", "admin_listen", "database_url", "state_dir")
OF_MOST_COMMANDS = ("state_dir", "database_url")
ALL_SETTINGS = "every other setting is a flag too: see `ingest config --help`"
_OPTION = "option."
_WRONG_CHOICE = re.compile(r"invalid choice: '(?P<given>.*)' \(choose from (?P<known>.*)\)", re.S)
RED, AMBER, GREEN = "31;1", "33", "32"


def coloured(text: str, colour: str) -> str:
    """Return the text in a colour, if the output is a terminal and the user wants colours.

    NO_COLOR (any text) switches them off, as in other programs; so does TERM=dumb.
    """
    unwanted = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    plain = unwanted or not sys.stdout.isatty()
    return text if plain else f"\x1b[{colour}m{text}\x1b[0m"


def as_typed(text: str) -> str:
    """Return a text whose commands (`ingest ..`, see ingest ..) are as a person types them."""
    run = command_words()["run"]
    return re.sub(r"(`|\(see )ingest ", lambda before: f"{before[1]}{run} ", text)


class Ending(NamedTuple):
    """How a command ended: a document for --json, a text for a person, and the exit code."""

    document: Any
    text: str
    code: int = 0

    def print(self, *, as_json: bool) -> None:
        """Print one of the two; the commands of the text as a person types them here."""
        if as_json or self.text:
            print(json.dumps(self.document, indent=2) if as_json else as_typed(self.text))


def say(line: str) -> None:
    """Print at once. If the reader of the output has gone, the service goes on."""
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the last flush must not fail either: it would change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


Options = TypeVar("Options")
Ended = int | Ending
Run = Callable[[argparse.Namespace, Loaded], Ended | Coroutine[Any, Any, Ended]]


def admin_listen_of(loaded: Loaded, usual: str) -> str:
    """Return where the page of a command that takes no posts listens. Raises ConfigError."""
    if loaded.origins["listen"] == flag_name("listen"):
        raise ConfigError("this command takes no posts; where its page is, --admin-listen says")
    return usual if loaded.origins["admin_listen"] == "default" else loaded.settings.admin_listen


class Parser(argparse.ArgumentParser):
    """An argument parser that raises IngestError and accepts no abbreviated flags."""

    def __init__(self, *args: object, examples: Sequence[str] = (), **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _wide_formatter)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        if examples:
            lines = ["examples:", *(f"  {each}" for each in examples)]
            self.epilog = "\n".join([*lines, *(["", self.epilog] if self.epilog else [])])

    def error(self, message: str) -> NoReturn:
        """Raise IngestError, which main() prints."""
        if wrong := _WRONG_CHOICE.search(message):
            known = re.findall(r"[\w-]+", wrong["known"])
            near = nearest(wrong["given"], known) or f": one of {', '.join(known)}"
            message = f"there is no {wrong['given']!r} here{near}"
        raise IngestError(f"{message} (see {self.prog} --help)")


def _wide_formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32)


class Flag(NamedTuple):
    """An argument of a command, as `add_argument` of argparse takes it."""

    names: tuple[str, ...]
    options: dict[str, Any]


def flag(*names: str, **options: Any) -> Flag:
    """Declare an argument of a command."""
    return Flag(names, options)


JSON = flag("--json", action="store_true", help="print as JSON")


class OneOf(NamedTuple):
    """Flags that exclude each other. With a title they are a group of the help."""

    flags: tuple[Flag, ...]
    title: str = ""
    is_required: bool = False


class AllSettings(NamedTuple):
    """How the help of a command shows all settings: in their groups, those of `first` first.

    `renamed`: the flag of this name sets that other setting. Help does not show those in `unused`,
    which the command does not read. `words` are its own words for what a setting means.
    """

    first: Sequence[str] = MOST_USED
    renamed: Mapping[str, str] = MappingProxyType({})
    unused: Container[str] = ()
    words: Mapping[str, str] = MappingProxyType({})


class Command(NamedTuple):
    """A command: what its help shows, and what it does. A group has `commands` in place of `run`.

    `run` returns the exit code, or an Ending, which main() prints. With `settings` its help shows
    all of them.
    """

    purpose: str = ""  # commands.py has that of a command that is in no group
    examples: tuple[str, ...] = ()
    run: Run | None = None
    usage: str = "[options]"
    flags: Sequence[Flag | OneOf] = ()
    epilog: str | None = None
    settings: AllSettings | None = None
    commands: Mapping[str, Command] = MappingProxyType({})


def add_command(
    to: argparse._SubParsersAction[Parser],
    name: str,
    command: Command,
    hidden: Parser,
    group: str = "ingest",
) -> None:
    """Add a command of `group`. `hidden` is what hidden_settings() returns.

    Without a command a group shows its help: `args.help_of` is then its parser, else None.
    """
    parser = to.add_parser(
        name,
        help=command.purpose,
        description=f"{command.purpose[0].upper()}{command.purpose[1:]}.",
        usage=f"{group} {name} {command.usage}",
        parents=[] if command.settings else [hidden],
        examples=command.examples,
        epilog=command.epilog,
    )
    parser.set_defaults(run=command.run, help_of=parser if command.commands else None)
    _add_flags(parser, command.flags)
    if command.settings:
        _add_all_settings(parser, command.settings)
        return
    if command.commands:
        added = parser.add_subparsers(
            dest="command_of_group",
            metavar="COMMAND",
            title="commands",
            parser_class=Parser,
            prog=parser.prog,
        )
        for each, member in command.commands.items():
            add_command(added, each, member, hidden, parser.prog)
    are_shown = not command.commands
    shown = parser.add_argument_group("settings", ALL_SETTINGS) if are_shown else parser
    declared = Settings.__dataclass_fields__
    own = [_setting(declared[each], is_shown=are_shown) for each in OF_MOST_COMMANDS]
    _add_flags(shown, [*own, _config(is_shown=are_shown)])


def hidden_settings() -> Parser:
    """Return a parent with a hidden flag for each setting but OF_MOST_COMMANDS.

    It costs little to give it to many parsers.
    """
    parent = Parser(add_help=False)
    hidden = [each for each in fields(Settings) if each.name not in OF_MOST_COMMANDS]
    _add_flags(parent, [_setting(each, is_shown=False) for each in hidden])
    return parent


def _add_flags(to: argparse._ActionsContainer, flags: Sequence[Flag | OneOf]) -> None:
    for each in flags:
        if isinstance(each, Flag):
            to.add_argument(*each.names, **each.options)
            continue
        group = to.add_argument_group(each.title) if each.title else to
        _add_flags(group.add_mutually_exclusive_group(required=each.is_required), each.flags)


def _add_all_settings(parser: argparse.ArgumentParser, how: AllSettings) -> None:
    most_used = {name: name for name in how.first} | dict(how.renamed)
    declared = Settings.__dataclass_fields__
    first = [
        _setting(declared[each], name, how.words.get(each, "")) for name, each in most_used.items()
    ]
    _add_flags(parser.add_argument_group("Most used"), [*first, _config()])
    for title, members in groups():
        rest = [
            _setting(each, why=how.words.get(each.name, ""), is_shown=each.name not in how.unused)
            for each in members
            if each.name not in most_used
        ]
        _add_flags(parser.add_argument_group(title), rest)


def _setting(
    declared: Field[Any], name: str = "", why: str = "", *, is_shown: bool = True, dest: str = DEST
) -> Flag:
    return flag(
        flag_name(name or declared.name),
        dest=dest + declared.name,
        metavar=metavar(declared),
        default=argparse.SUPPRESS,  # a flag before `show` must survive the parser of `show`
        help=help_text(declared, why) if is_shown else argparse.SUPPRESS,
    )


def _config(*, is_shown: bool = True) -> Flag:
    return flag(
        "--config",
        metavar="FILE",
        dest="config_file",
        default=argparse.SUPPRESS,
        help="a TOML file with settings [INGEST_CONFIG]" if is_shown else argparse.SUPPRESS,
    )


def number_within(
    kind: type[float], least: float, most: float, words: str
) -> Callable[[str], float]:
    """Return what reads a number within these bounds. `words` say what it must be."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan  # it is within no bounds
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no {words}")
        return number

    return read


def forward_name(text: str) -> str:
    """Return the name of a forwarder. Raises ArgumentTypeError."""
    try:
        check_forward_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def option_flags(kind: Any) -> list[Flag]:
    """Return a flag for each field of a dataclass that is declared as settings are."""
    return [_setting(each, dest=_OPTION) for each in fields(kind)]


def options_of(kind: type[Options], args: argparse.Namespace) -> Options:
    """Return what these flags say. Raises ConfigError that names the flag."""
    return kind(
        **{
            each.name: checked(each, getattr(args, _OPTION + each.name), flag_name(each.name))
            for each in fields(kind)  # type: ignore[arg-type]
            if hasattr(args, _OPTION + each.name)
        }
    )
