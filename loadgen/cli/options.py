"""The options of a command as a table: each is declared once, and makes its part of the parser.

An option is stored under the name of the field in the plan of a run, so that `picked` can pass it
on without another list.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

ACKS = ("buffered", "durable", "committed")


class Option(NamedTuple):
    """One option. `help` may name the default, as `%(default)s`.

    `read` makes the value from a text; a tuple: the value is one of these words; None: a switch.
    `shows` stands for the value in the help; `into` is the name of the stored value, if another.
    `repeats`: it may be given several times, and the value is a list, or None.
    """

    name: str
    help: str
    read: Callable[[str], Any] | tuple[str, ...] | None = None
    default: Any = None
    shows: str | None = None
    into: str | None = None
    repeats: bool = False

    def add_to(self, group: argparse._ActionsContainer, action: Any = "store") -> None:
        """Add it to a parser, or to a group of its options."""
        more: dict[str, Any] = {"help": self.help}
        if self.read is None:
            more["action"] = "store_true"
        elif isinstance(self.read, tuple):
            more |= {"action": action, "choices": self.read, "default": self.default}
        else:
            action = "append" if self.repeats else action
            more |= {"action": action, "type": self.read, "default": self.default}
            more["metavar"] = self.shows
        if self.into:
            more["dest"] = self.into
        group.add_argument(self.name, **more)


def add_all(
    parser: argparse.ArgumentParser,
    table: Mapping[str, Sequence[Option]],
    actions: Mapping[str, Any] | None = None,
) -> None:
    """Add a table: options by the title of their group; those without a title to no group."""
    for title, options in table.items():
        group = parser.add_argument_group(title) if title else parser
        for option in options:
            option.add_to(group, (actions or {}).get(title, "store"))


def picked(chosen: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """Return the chosen values of those fields of a dataclass that are options."""
    names = (field.name for field in fields(kind))
    return {name: getattr(chosen, name) for name in names if hasattr(chosen, name)}
