"""Finds the service that runs on this machine, by `service.json` in its state folder.

Promises: uses the file only while the process that it names runs. Blocks for a moment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from loadgen.proof.letter_sources import Local
from loadgen.proof.table_names import TableNames


class NoHome(Exception):
    """A path names a home folder that does not exist; the text says whose."""


class LocalService(NamedTuple):
    """The addresses of a running service; `letters` are its dead letters.

    `token` permits actions on the admin port. `page` is the dashboard's address, with a key that
    logs in the first browser, if the service has one. `ca_file` is what to check its certificate
    with, if `url` is https. `names` are those of its table.
    """

    url: str
    admin_url: str
    database_url: str
    letters: Local
    token: str = ""
    page: str = ""
    ca_file: str = ""
    names: TableNames = TableNames()


def full_path(named: str | Path) -> Path:
    """Return a path as absolute; `~` is a home folder. Raises NoHome."""
    try:
        return Path(named).expanduser().absolute()
    except RuntimeError:
        raise NoHome(f"{named}: no such user, or one without a home; choose --state-dir") from None


def state_folder(chosen: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the state folder, found as the service does: flag, environment, default.

    Raises NoHome.
    """
    named = chosen or environ.get("INGEST_STATE_DIR") or ""
    if str(named):
        return full_path(named)
    if systemd := environ.get("STATE_DIRECTORY"):
        return Path(systemd.split(":", 1)[0])
    if os.geteuid() == 0:
        return Path("/var/lib/iot-ingest")
    base = Path(environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        base = full_path(environ.get("HOME") or "~") / ".local/state"
    return base / "iot-ingest"


def find(folder: Path) -> LocalService | None:
    """Return the service running on a state folder; None without one, or without permission."""
    try:
        info = json.loads((folder / "service.json").read_bytes())
        if not _is_alive(int(info["pid"])):
            return None
        return LocalService(
            _url(info["listen"], "https" if info.get("cert_file") else "http"),
            _url(info["admin_listen"]),
            str(info["database_url"]),
            Local(folder),
            str(info.get("token", "")),
            str(info.get("page", "")),
            str(info.get("cert_file", "")),
            TableNames(*map(str, info.get("target", ()))),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _url(listen: str, scheme: str = "http") -> str:
    """Return the URL to connect to for a listen address."""
    host, _, port = listen.rpartition(":")
    near = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104  not bound here
    return f"{scheme}://{near}:{port}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
