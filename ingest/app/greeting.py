"""The text that `serve` prints when it listens: where to post, and where to see the result."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

from ingest import __version__
from ingest.system.surroundings import command_words

_ALL = ("0.0.0.0", "[::]")  # noqa: S104  a port that is bound to all addresses
_ELSEWHERE = ("192.0.2.1", "2001:db8::1")  # addresses that no machine has
_EXAMPLE = '{"device_id":"d1","metric":"temperature","value":21.5}'


def greeting_lines(
    *,
    state_dir: Path,
    is_set: bool,
    listen: str,
    cert_file: str,
    needs_token: bool,
    admin_listen: str,
    page: str,
    database: str,
    table: str,
    waiting: str,
) -> Iterator[str]:
    """Yield the lines. With a `cert_file` the data port speaks TLS.

    `is_set`: the state folder is that of a setting; the default one is found by a command itself.
    The image sets INGEST_PUBLISHED_AT: the host by which people reach the ports of a container.
    `page` is the address of the dashboard. `database` is what sets its URL; empty if it is
    embedded. `table` is named as in SQL. `waiting` is why the database does not answer yet, or
    empty.
    """
    run = command_words()["run"]
    published = os.environ.get("INGEST_PUBLISHED_AT", "")
    if published:  # addresses of a container, which nobody can open, become those of its host
        listen, given = _published(listen, published), admin_listen
        admin_listen = _published(given, published)
        page = page.replace(given, admin_listen)
    yield f"iot-ingest {__version__}, state folder: {state_dir}"
    scheme, trust = "http", ""
    if cert_file:
        scheme, trust = "https", f"--cacert {shlex.quote(cert_file)} "
    token = "-H 'authorization: Bearer TOKEN' " if needs_token else ""
    yield (
        f"post readings: curl {trust}{token}-H 'content-type: application/json' -d '{_EXAMPLE}' "
        f"{scheme}://{listen}/v1/readings"
    )
    if (host := _from_network(listen)) and needs_token:
        url = f"{scheme}://{host}/v1/readings"
        yield f"devices:       {url}, each with a token (`{run} token new NAME`)"
    once = "  (the first browser that opens it may act)" if "/login/" in page else ""
    yield f"dashboard:     {page}{once}"
    yield f"metrics:       http://{admin_listen}/metrics  (state: /readyz)"
    if not database:
        flag = f" --state-dir {shlex.quote(str(state_dir))}" if is_set else ""
        look = f"{run} psql{flag} -c {shlex.quote(f'table {table}')}"
        yield f"database:      embedded; to look into it: {look}"
    else:
        yield f"database:      as set by {database}"
    if waiting:
        yield f"waiting for the database: {waiting}"


def _from_network(listen: str) -> str:
    """Return where devices reach a port that is bound to all addresses; "" if that is not known."""
    host, _, port = listen.rpartition(":")
    if host not in _ALL:
        return ""
    with socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
    ) as ask:
        try:
            ask.connect((_ELSEWHERE[":" in host], 9))  # sends nothing: the kernel looks up the way
        except OSError:  # no network
            return ""
        found = ask.getsockname()[0]
    return f"[{found}]:{port}" if ":" in found else f"{found}:{port}"


def _published(listen: str, host: str) -> str:
    """Return a port that is bound to all addresses as one of `host`."""
    address, _, port = listen.rpartition(":")
    return f"{host}:{port}" if address in _ALL else listen
