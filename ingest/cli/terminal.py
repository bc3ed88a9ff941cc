"""The output of commands: JSON for programs, text for people, in colours if they want them.

NO_COLOR (any text) switches them off, as in other programs; so does TERM=dumb.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any, NamedTuple, TextIO

from ingest.system.surroundings import command_words

RED, AMBER, GREEN, DIM = "31;1", "33", "32", "2"


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return the text in a colour, if the stream (default: stdout) is a terminal."""
    stream = sys.stdout if stream is None else stream
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
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
