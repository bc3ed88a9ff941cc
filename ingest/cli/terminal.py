"""Colours of the output, only on a terminal and only if the user has not switched them off.

NO_COLOR (any text) switches them off, as in other programs; so does TERM=dumb.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

RED, AMBER, GREEN, DIM = "31;1", "33", "32", "2"


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return the text in a colour, if the stream (default: stdout) is a terminal."""
    stream = sys.stdout if stream is None else stream
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\x1b[{colour}m{text}\x1b[0m"
