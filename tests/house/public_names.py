"""What users type or read, as names of the code as it is now (docs/run/upgrading.md).

RECORD_ANEW is the command that records them. Until the first release a name may change: the record
shows it in the diff of its commit. At the release it is made anew; from then on none may go.
public_names_102f91b0.json has those of a commit that others have used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from ingest.app.metrics_and_causes import CAUSES
from ingest.cli.commands import COMMANDS, build_parser
from ingest.cli.parser import DEST
from ingest.config.settings import Settings
from ingest.model.codes import ITEM_CODES, PROBLEMS
from ingest.receiver.endpoint import FILE
from ingest.system.log_events import EVENTS
from tests.printing.documents import METRICS

RECORD = Path(__file__).parent / "public_names.json"
RECORD_ANEW = "python -m tests.house.public_names > tests/house/public_names.json"
OF_ALL = ("help", "config_file")  # flags that each command has


def public_names() -> dict[str, list[str]]:
    """Return sorted names of each kind; a metric has its type and labels, a code its status."""
    paths = json.loads(FILE.read_text())["paths"]
    metrics = [
        " ".join(filter(None, (f"ingest_{each.name}", each.kind, label, *each.labels)))
        for label, listed in METRICS.items()
        for each in listed
    ]
    found = {
        "commands and flags": [
            words for name in COMMANDS for words in _words_of(build_parser(name), "ingest")
        ],
        "settings": [each.name for each in fields(Settings)],
        "metrics": metrics,
        "problem codes": [f"{code} {each.status}" for code, each in PROBLEMS.items()],
        "item codes": list(ITEM_CODES),
        "causes": list(CAUSES),
        "log events": list(EVENTS),
        "requests": [
            f"{method.upper()} {path}"
            for path, methods in paths.items()
            for method in methods
            if method in {"get", "post", "head"}
        ],
    }
    return {kind: sorted(set(names)) for kind, names in found.items()}


def _words_of(parser: argparse.ArgumentParser, before: str) -> Iterator[str]:
    """Yield the commands below a parser, each with its flags; a setting's flag has its name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, each in action.choices.items():
                yield f"{before} {name}"
                yield from _words_of(each, f"{before} {name}")
        elif action.help != argparse.SUPPRESS and not action.dest.startswith((DEST, *OF_ALL)):
            yield from (f"{before} {flag}" for flag in action.option_strings)


if __name__ == "__main__":
    print(json.dumps(public_names(), indent=1))  # noqa: T201
