"""What `serve` says at a terminal once it listens: where to post, where to look."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from ingest import __version__
from ingest.config.settings import default_state_dir
from ingest.model.errors import ConfigError

_EXAMPLE = '{"device_id":"d1","metric":"temperature","value":21.5}'


def hello(
    *, state_dir: Path, listen: str, admin_listen: str, embedded: bool, waiting: str
) -> Iterator[str]:
    """Yield the lines. `waiting` is why the database is not there yet, or empty."""
    yield f"iot-ingest {__version__}, state in {state_dir}"
    yield (
        f"post readings: curl -H 'content-type: application/json' -d '{_EXAMPLE}' "
        f"http://{listen}/v1/readings"
    )
    yield f"dashboard:     http://{admin_listen}/"
    yield f"metrics:       http://{admin_listen}/metrics  (state: /readyz)"
    if embedded:
        look = f"./run psql{_flag(state_dir)} -c 'table readings'"
        yield f"database:      embedded; look with: {look}"
    else:
        yield "database:      the one of INGEST_DATABASE_URL"
    if waiting:
        yield f"waiting for the database: {waiting}"


def _flag(state_dir: Path) -> str:
    """Return what a command needs to find this folder: nothing, if it is the usual one."""
    try:
        if state_dir == default_state_dir():
            return ""
    except ConfigError:  # no home, so no usual folder
        pass
    return f" --state-dir {shlex.quote(str(state_dir))}"
