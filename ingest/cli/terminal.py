"""The output of commands: JSON for programs, text for people, in colours if they want them.

NO_COLOR (any text) switches them off, as in other programs; so does TERM=dumb.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any, TextIO

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


def print_answer(document: Any, text: str, *, as_json: bool) -> None:
    """Print the document as JSON, or the text for a person, with its commands as typed here."""
    print(json.dumps(document, indent=2) if as_json else as_typed(text))


def say(line: str) -> None:
    """Print at once. If the reader of the output has gone, the service goes on."""
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the last flush must not fail either: it would change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
