"""The parser of all commands: one line for a mistake, with what was perhaps meant, and examples.

It accepts no abbreviated options, as the commands of the service do not.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

_WRONG_CHOICE = re.compile(r"(argument \S+: )?invalid choice: '(.*)' \(choose from (.*)\)", re.S)


class Parser(argparse.ArgumentParser):
    """An argument parser with examples in its help. A mistake ends it with exit code 2."""

    def __init__(self, *args: object, examples: Sequence[str] = (), **kwargs: object) -> None:
        kwargs |= {"allow_abbrev": False, "formatter_class": _formatter}
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        if examples:
            lines = ["examples:", *(f"  {each}" for each in examples)]
            self.epilog = "\n".join([*lines, *(["", self.epilog] if self.epilog else [])])

    def error(self, message: str) -> NoReturn:
        """Print one line and end with exit code 2."""
        if wrong := _WRONG_CHOICE.fullmatch(message):
            about, given, known = wrong.groups()
            about = "" if not about or "COMMAND" in about else about
            words = re.findall(r"[\w-]+", known)
            message = f"{about}there is no {given!r}{meant(given, words)}"
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def meant(given: str, known: Iterable[str]) -> str:
    """Return `; did you mean ..?` for a misspelt word, or the words that there are."""
    words = list(known)
    near = difflib.get_close_matches(given, words, 1)
    return f"; did you mean {near[0]}?" if near else f": one of {', '.join(words)}"


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog)
