"""Asks the monitor port of nats-server whether it syncs each message to the disk.

A client cannot see that, and by default a server syncs every two minutes: a power cut then loses
all messages since. With http.client, which ignores the proxies of the environment. Blocks.
"""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from ingest.broker.manage import StreamFault

ANSWER_S_MAX = 3.0
ANSWER_BYTES_MAX = 8 * 1024**2


def monitor_faults(urls: tuple[str, ...]) -> list[StreamFault]:
    """Return why messages may not be on the disk when they are acknowledged."""
    if not urls:
        return [
            StreamFault(
                "the server",
                "whether it syncs each message to the disk is not known: set broker_monitor_url, "
                "or broker_unsafe if you are sure",
            )
        ]
    # Without the path: that of an embedded server is a secret.
    return [
        StreamFault(f"the server with the monitor port {urlsplit(url).netloc}", fault)
        for url in urls
        if (fault := _fault(url))
    ]


def _fault(url: str) -> str:
    try:
        found = ask(url, "/varz")
    except (OSError, HTTPException, ValueError) as error:
        return f"its monitor port does not answer: {str(error) or type(error).__name__}"
    config = (found.get("jetstream") or {}).get("config") or {}
    if not config:
        return "JetStream is off"
    if config.get("sync_always") is not True:
        return (
            "it does not sync each message to the disk (sync_interval: always in its block "
            "jetstream), so a power cut loses acknowledged readings"
        )
    return ""


def is_answering(url: str, within_s: float) -> bool:
    """Whether the process answers at all, whatever it says; a frozen one does not."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=within_s)
    try:
        connection.request("GET", f"{parts.path}/")
        connection.getresponse().read(ANSWER_BYTES_MAX)
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True


def ask(url: str, path: str) -> dict[str, Any]:
    """Return the JSON of one page. Raises OSError, HTTPException, and ValueError."""
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=ANSWER_S_MAX)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        response = connection.getresponse()
        text = response.read(ANSWER_BYTES_MAX)
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"status {response.status}")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found
