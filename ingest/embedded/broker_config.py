"""The configuration of the embedded nats-server, as text.

Promises: it listens on the loopback only, lets in nobody without a password, and syncs each message
to the disk before it acknowledges it. The path of its monitor port is a secret, because that port
asks nobody for a password.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ingest.broker.roles import ROLES, Permissions, inboxes_of

LOG_BYTES_MAX = 8 * 1024**2
ACCOUNT = "IOT_INGEST"


class Endpoints(NamedTuple):
    """Where the server listens, and how to log in there."""

    port: int
    monitor_port: int
    monitor_path: str
    passwords: Mapping[str, str]  # by role

    @property
    def server(self) -> str:
        """The URL for clients."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor_url(self) -> str:
        """The URL of the monitor port."""
        return f"http://127.0.0.1:{self.monitor_port}{self.monitor_path}"


def new_endpoints(port: int, monitor_port: int) -> Endpoints:
    """Return endpoints with new passwords."""
    passwords = {role: secrets.token_urlsafe(24) for role in ROLES}
    return Endpoints(port, monitor_port, f"/{secrets.token_urlsafe(24)}", passwords)


def config_text(
    at: Endpoints, *, store: Path, log: Path, store_bytes_max: int, payload_bytes_max: int
) -> str:
    """Return the text of the configuration file. It has passwords."""
    users = "\n".join(
        "      "
        + json.dumps(
            {"user": role, "password": at.passwords[role], "permissions": rights(role, may)}
        )
        for role, may in ROLES.items()
    )
    return f"""# iot-ingest writes this file at each start of the embedded broker.
server_name: iot-ingest
listen: "127.0.0.1:{at.port}"
http: "127.0.0.1:{at.monitor_port}"
http_base_path: {_quoted(at.monitor_path)}
log_file: {_quoted(str(log))}
logfile_size_limit: {LOG_BYTES_MAX}
logfile_max_num: 2
max_payload: {payload_bytes_max}
max_pending: {max(64 * 1024**2, 2 * payload_bytes_max)}
jetstream {{
  store_dir: {_quoted(str(store))}
  max_file: {store_bytes_max}
  max_mem: 1048576
  sync_interval: always
}}
accounts {{
  {ACCOUNT} {{
    jetstream: enabled
    users: [
{users}
    ]
  }}
}}
"""


def rights(role: str, may: Permissions) -> dict[str, dict[str, list[str]]]:
    """Return the permissions of a role, as the configuration has them."""
    publish = {"allow": list(may.publish), **({"deny": list(may.never)} if may.never else {})}
    return {"publish": publish, "subscribe": {"allow": [inboxes_of(role), *may.hear]}}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
