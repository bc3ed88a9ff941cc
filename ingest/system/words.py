"""Small parts of the texts that people read: numbers with their nouns, quotes, names of commands.

How a person types a command, only who starts the process knows, and says so in its environment:
`run`, the image, and the files in `deploy/` that start it in another way. Without these variables
the words are those of an installed package.
Does not: look at the machine, which tells a checkout in a container nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

QUOTED_CHARACTERS_MAX = 60
# word: variable, default. `down` runs a command while the service does not run.
_WORDS = {
    "run": ("INGEST_COMMAND", "ingest"),
    "down": ("INGEST_COMMAND_DOWN", ""),
    "restart": ("INGEST_COMMAND_RESTART", "ingest serve"),
    "log": ("INGEST_COMMAND_LOG", "ingest doctor"),
}
WORD_VARIABLES = frozenset(name for name, _ in _WORDS.values())


def counted(number: int, noun: str) -> str:
    """Return `1 letter`, `2 letters`; for nouns whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Return `40 s`, `25 min`, `11 h 5 min` or `3 d 4 h`."""
    for unit_s, unit, part_s, part in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min")):
        if seconds >= unit_s:
            whole, rest = divmod(int(seconds), unit_s)
            return f"{whole} {unit} {rest // part_s} {part}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def quoted(text: str) -> str:
    """Return a client's text, fit for a message or a log line: in quotes, plain ASCII, cut off."""
    if len(text) <= QUOTED_CHARACTERS_MAX:
        return ascii(text)
    return f"{text[:QUOTED_CHARACTERS_MAX]!a}.."


def command_words(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return how to type a command of the service (`run`, `down`), restart it, and read its log.

    `{host}` in a variable becomes the name of this machine: a container's id, a pod's name.
    """
    words = {word: environ.get(name) or default for word, (name, default) in _WORDS.items()}
    words["down"] = words["down"] or words["run"]
    return {word: text.replace("{host}", os.uname().nodename) for word, text in words.items()}
