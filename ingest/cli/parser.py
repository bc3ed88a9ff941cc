"""The parts of the command line: a parser that raises, help with examples, flags for the settings.

Help shows a command's own options first, then the few settings that most commands need. All other
settings are flags of every command too; `ingest config --help` lists them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Container, Mapping, Sequence
from copy import copy
from dataclasses import Field
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from ingest.config.text import groups, help_text, metavar
from ingest.config.values import flag_name, nearest
from ingest.model.errors import IngestError

DEST = "setting."  # keeps flags of settings apart from arguments of a command
MOST_USED = ("listen", "admin_listen", "database_url", "state_dir")
OF_MOST_COMMANDS = ("state_dir", "database_url")
ALL_SETTINGS = "every other setting is a flag too: see `ingest config --help`"
_WRONG_CHOICE = re.compile(r"invalid choice: '(?P<given>.*)' \(choose from (?P<known>.*)\)", re.S)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises IngestError and accepts no abbreviated flags."""

    def __init__(self, *args: object, examples: Sequence[str] = (), **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _wide_formatter)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.examples = tuple(examples)
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


class Command(NamedTuple):
    """A command of a group: `takes` are its positional arguments, `arguments` adds all."""

    name: str
    purpose: str
    examples: tuple[str, ...]
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
    takes: str = ""


class SettingsFlags:
    """A flag for every setting, and --config. Those in `shown` are in the help, the others not."""

    def __init__(self, shown: Sequence[str]) -> None:
        self._shown = shown
        self.hidden = Parser(add_help=False)  # a parent: it costs little to give it to many parsers
        for _, members in groups():
            for each in members:
                if each.name not in shown:
                    _add_flag(self.hidden, each, is_shown=False)

    def add_to(self, parser: argparse.ArgumentParser, *, are_shown: bool = True) -> None:
        """Add the flags that the help shows, behind what the parser has."""
        declared = {each.name: each for _, members in groups() for each in members}
        group = parser.add_argument_group("settings", ALL_SETTINGS) if are_shown else parser
        for name in self._shown:
            _add_flag(group, declared[name], is_shown=are_shown)
        _add_config(group, is_shown=are_shown)


def add_all_settings(
    parser: argparse.ArgumentParser,
    first: Sequence[str] = MOST_USED,
    renamed: Mapping[str, str] = MappingProxyType({}),
    unused: Container[str] = (),
    words: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Add all settings in their groups, those of `first` first.

    `renamed`: the flag of this name sets that other setting. Help does not show those in `unused`,
    which this command does not read. `words` are its own words for what a setting means.
    """
    declared = {
        each.name: _reworded(each, words.get(each.name))
        for _, members in groups()
        for each in members
    }
    most_used = parser.add_argument_group("Most used")
    for name in first:
        _add_flag(most_used, declared[name], is_shown=True)
    for flag, name in renamed.items():
        _add_flag(most_used, declared[name], is_shown=True, flag=flag)
    _add_config(most_used, is_shown=True)
    for title, members in groups():
        group = parser.add_argument_group(title)
        for each in members:
            if each.name not in {*first, *renamed}:
                _add_flag(group, declared[each.name], is_shown=each.name not in unused)


def _reworded(declared: Field[Any], words: str | None) -> Field[Any]:
    if words is None:
        return declared
    other = copy(declared)
    other.metadata = MappingProxyType({**declared.metadata, "why": words})
    return other


def _add_flag(
    to: argparse._ActionsContainer, declared: Field[Any], *, is_shown: bool, flag: str = ""
) -> argparse.Action:
    return to.add_argument(
        flag_name(flag or declared.name),
        dest=DEST + declared.name,
        metavar=metavar(declared),
        default=argparse.SUPPRESS,  # a flag before `show` must survive the parser of `show`
        help=help_text(declared) if is_shown else argparse.SUPPRESS,
    )


def _add_config(to: argparse._ActionsContainer, *, is_shown: bool) -> None:
    to.add_argument(
        "--config",
        metavar="FILE",
        dest="config_file",
        default=argparse.SUPPRESS,
        help="a TOML file with settings [INGEST_CONFIG]" if is_shown else argparse.SUPPRESS,
    )


def add_json_flag(parser: argparse.ArgumentParser, purpose: str = "print as JSON") -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help=purpose)


def add_group(
    parser: Parser, dest: str, commands: Sequence[Command], settings: SettingsFlags
) -> None:
    """Add the commands of a group, such as `list` and `show` of `dlq`.

    Without a command the group shows its help: `args.help_of` is then its parser, else None.
    """
    parser.set_defaults(help_of=parser)
    added = parser.add_subparsers(
        dest=dest, metavar="COMMAND", title="commands", parser_class=Parser, prog=parser.prog
    )
    for each in commands:
        name = f"{parser.prog} {each.name}"
        one = added.add_parser(
            each.name,
            help=each.purpose,
            description=f"{each.purpose[0].upper()}{each.purpose[1:]}.",
            usage=f"{name} [options] {each.takes}".rstrip(),
            parents=[settings.hidden],
            examples=each.examples,
        )
        if each.arguments:
            each.arguments(one)
        settings.add_to(one)
        one.set_defaults(help_of=None)
    settings.add_to(parser, are_shown=False)
