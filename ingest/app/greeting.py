"""The text that `serve` prints when it listens: where to post, and where to see the result."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from ingest import __version__
from ingest.config.folders import default_state_dir
from ingest.model.errors import ConfigError

_EXAMPLE = '{"device_id":"d1","metric":"temperature","value":21.5}'


def greeting_lines(
    *,
    state_dir: Path,
    listen: str,
    cert_file: str,
    admin_listen: str,
    page: str,
    database: str,
    waiting: str,
) -> Iterator[str]:
    """Yield the lines. With a `cert_file` the data port speaks TLS.

    `page` is the address of the dashboard. `database` is what sets its URL; empty if it is
    embedded. `waiting` is why the database does not answer yet, or empty.
    """
    yield f"iot-ingest {__version__}, state folder: {state_dir}"
    scheme, trust = "http", ""
    if cert_file:
        scheme, trust = "https", f"--cacert {shlex.quote(cert_file)} "
    yield (
        f"post readings: curl {trust}-H 'content-type: application/json' -d '{_EXAMPLE}' "
        f"{scheme}://{listen}/v1/readings"
    )
    once = "  (the first browser that opens it may act)" if "/login/" in page else ""
    yield f"dashboard:     {page}{once}"
    yield f"metrics:       http://{admin_listen}/metrics  (state: /readyz)"
    if not database:
        look = f"./run psql{_flag(state_dir)} -c 'table readings'"
        yield f"database:      embedded; to look into it: {look}"
    else:
        yield f"database:      as set by {database}"
    if waiting:
        yield f"waiting for the database: {waiting}"


def _flag(state_dir: Path) -> str:
    """Return the flag with which a command finds this folder; empty for the default folder."""
    try:
        if state_dir == default_state_dir():
            return ""
    except ConfigError:  # no home folder, so no default
        pass
    return f" --state-dir {shlex.quote(str(state_dir))}"
