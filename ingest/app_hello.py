"""What `serve` says at a terminal once it listens: where to post, where to look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ingest import __version__

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
        yield "database:      embedded; look with: ./run psql -c 'table readings'"
    else:
        yield "database:      the one of INGEST_DATABASE_URL"
    if waiting:
        yield f"waiting for the database: {waiting}"
