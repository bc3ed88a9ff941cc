"""Which service a command talks to: the same options for all commands, and one way to find it.

Without options it is the service that runs on the usual state folder of this machine. If none runs
there, it is whatever listens at the default addresses.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from loadgen.cli import values
from loadgen.cli.options import Option
from loadgen.proof.local_service import LocalService, find, state_folder
from loadgen.traffic.encode import FORMATS
from loadgen.traffic.post import Target, target_of

DATA_PORT, ADMIN_PORT = 8080, 8081
DEFAULT_URL = f"http://127.0.0.1:{DATA_PORT}"
LOOPBACK = ("127.0.0.1", "::1")

URL = Option("--url", "of the service; default: the one on this machine", values.url, shows="URL")
URLS = URL._replace(
    help="of the service; default: the one on this machine; several: those of its gateways",
    into="urls",
    repeats=True,
)
CA = Option(
    "--ca",
    "certificates that an https service is checked with; default: the system's",
    values.path,
    shows="FILE",
)
ADMIN_URL = Option(
    "--admin-url",
    "of its admin port (/metrics); several: those of its gateways and writers",
    values.admin_url,
    shows="URL",
    into="admin_urls",
    repeats=True,
)
TOKEN = Option(
    "--token",
    "sent with each post; also LOADGEN_TOKEN, which others on this machine cannot see",
    values.token,
    os.environ.get("LOADGEN_TOKEN", ""),
    shows="TOKEN",
)
FORMAT = Option(
    "--format",
    "of the bodies; lines: line protocol to /write; mapped: JSON of another form to the source "
    "loadgen. Their answers do not say what was invalid (%(default)s)",
    tuple(FORMATS),
    "json",
)
NEW_CONNECTIONS = Option(
    "--new-connections",
    "so many (30%% or 0.3) of the posts close their connection, and as many come on a new one, as "
    "small devices do; 100%%: each post has its own",
    values.share,
    0.0,
    "SHARE",
)
STATE_DIR = Option(
    "--state-dir",
    "state folder of a service on this machine: says its addresses; default: the usual place",
    Path,
    shows="DIR",
)


def local_of(chosen: argparse.Namespace) -> LocalService | None:
    """Return the running service of this machine, if it is the one that is meant. Raises NoHome."""
    local = find(state_folder(chosen.state_dir))
    return local if local is not None and _is_meant(given_urls(chosen), local) else None


def given_urls(chosen: argparse.Namespace) -> list[Target]:
    """Return the URLs that were given, as one option or several."""
    if hasattr(chosen, "urls"):
        return list(chosen.urls or ())
    return [] if chosen.url is None else [chosen.url]


def _is_meant(targets: list[Target], local: LocalService) -> bool:
    own = target_of(local.url)
    near = {own.host, "localhost"} if own.host in LOOPBACK else {own.host}
    return all(each.port == own.port and each.host in near for each in targets)


def targets_for(chosen: argparse.Namespace, local: LocalService | None) -> list[Target]:
    """Return where posts go: the given URLs, the service of this machine, the default address.

    Raises ValueError if they do not go together.
    """
    name = getattr(chosen, "format", "json")
    if chosen.ack and not FORMATS[name].takes_ack:
        raise ValueError(f"--ack is not for --format {name}: the service's ack_default holds")
    ca_file = str(chosen.ca or (local.ca_file if local else ""))
    targets = [
        each._replace(token=chosen.token, ca_file=ca_file if each.tls else "")
        for each in given_urls(chosen) or [target_of(local.url if local else DEFAULT_URL)]
    ]
    if len({each.tls for each in targets}) > 1:
        raise ValueError("--url: all must begin with https://, or none")
    if chosen.ca and not targets[0].tls:
        raise ValueError("--ca is for a --url that begins with https://")
    if len({each.path for each in targets}) > 1:
        raise ValueError("--url: all must have the same path, because a post goes to any of them")
    return list(dict.fromkeys(targets))


def admin_urls_for(
    chosen: argparse.Namespace, local: LocalService | None, targets: list[Target]
) -> tuple[str, ...]:
    """Return the URLs of the admin ports; none if they are not known.

    Beside the default data port it is the default admin port. Beside another one there may be the
    admin port of another service.
    """
    if chosen.admin_urls or local:
        return tuple(dict.fromkeys(chosen.admin_urls or (local.admin_url if local else "",)))
    target = targets[0]
    if target.port != DATA_PORT or len(targets) > 1:
        return ()
    host = f"[{target.host}]" if ":" in target.host else target.host
    return (f"http://{host}:{ADMIN_PORT}",)
