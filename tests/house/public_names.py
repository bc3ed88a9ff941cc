"""What a version number promises, as names (docs/upgrading.md), of the code as it is now.

`python -m tests.house.public_names > tests/house/public_names.json` records it: with a new MAJOR,
and where names were added with a MINOR. The record keeps a name from being taken away by accident.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

from ingest.cli.main import COMMANDS
from ingest.cli.print_docs import (
    forward_metrics_table,
    metrics_table,
    mqtt_metrics_table,
    openapi_text,
)
from ingest.config.settings import Settings
from ingest.model.codes import ITEM_CODES, PROBLEMS

RECORD = Path(__file__).parent / "public_names.json"
_METRIC = re.compile(r"^\| `(ingest_\w+)` \| (\w+) \| ([^|]*) \|", re.MULTILINE)
_LABEL = re.compile(r"`(\w+)`")


def public_names() -> dict[str, list[str]]:
    """Return sorted names of each kind; a metric has its type and labels, a code its status."""
    tables = metrics_table() + "\n" + forward_metrics_table() + "\n" + mqtt_metrics_table()
    paths = json.loads(openapi_text())["paths"]
    metrics = [
        " ".join([name, kind, *_LABEL.findall(labels)])
        for name, kind, labels in _METRIC.findall(tables)
    ]
    found = {
        "commands": list(COMMANDS),
        "settings": [each.name for each in fields(Settings)],
        "metrics": metrics,
        "problem codes": [f"{code} {each.status}" for code, each in PROBLEMS.items()],
        "item codes": list(ITEM_CODES),
        "requests": [
            f"{method.upper()} {path}"
            for path, methods in paths.items()
            for method in methods
            if method in {"get", "post", "head"}
        ],
    }
    return {kind: sorted(set(names)) for kind, names in found.items()}


if __name__ == "__main__":
    print(json.dumps(public_names(), indent=1))  # noqa: T201
