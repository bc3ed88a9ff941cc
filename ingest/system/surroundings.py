"""How a person types the commands of this process, for texts that name one.

Only who starts the process knows it, and says so in its environment: `run`, the image, and the
files in `deploy/` that start it in another way. Without these variables the words are those of an
installed package. Does not: look at the machine, which tells a checkout in a container nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# word: variable, default. `down` runs a command while the service does not run.
_WORDS = {
    "run": ("INGEST_COMMAND", "ingest"),
    "down": ("INGEST_COMMAND_DOWN", ""),
    "restart": ("INGEST_COMMAND_RESTART", "ingest serve"),
    "log": ("INGEST_COMMAND_LOG", "ingest doctor"),
}


def command_words(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return how to type a command of the service (`run`, `down`), restart it, and read its log.

    `{host}` in a variable becomes the name of this machine: a container's id, a pod's name.
    """
    words = {word: environ.get(name) or default for word, (name, default) in _WORDS.items()}
    words["down"] = words["down"] or words["run"]
    return {word: text.replace("{host}", os.uname().nodename) for word, text in words.items()}
