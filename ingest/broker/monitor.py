"""Asks the monitor port of nats-server whether it syncs each message to the disk, and is well.

A client cannot see that, and by default a server syncs every two minutes: a power cut then loses
all messages since. With http.client, which ignores the proxies of the environment. Blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ingest.broker.manage import StreamFault

ANSWER_S_MAX = 3.0
ANSWER_BYTES_MAX = 8 * 1024**2
_OF_THE_DISK = ("write error", "no space left", "read-only file system", "input/output error")


class ServerLook(NamedTuple):
    """What the monitor port of one server says."""

    where: str
    silent: str = ""  # why it does not answer
    unsafe: str | None = None  # why a power cut loses messages; "" if none does; None: not known
    illness: str = ""  # what it says of its health, if that is not good
    disk: str = ""  # the same, if it is its disk that has failed

    def after(self, before: ServerLook | None) -> ServerLook:
        """Return this look; if the server is silent, how it syncs is known from before."""
        if before is None or self.unsafe is not None:
            return self
        return self._replace(unsafe=before.unsafe)

    def faults(self) -> Iterator[StreamFault]:
        """Yield why messages may not be on the disk when they are acknowledged."""
        if self.unsafe:
            yield StreamFault(self.where, self.unsafe)

    def degraded(self) -> Iterator[StreamFault]:
        """Yield what else is wrong."""
        if self.silent:
            yield StreamFault(self.where, f"its monitor port does not answer: {self.silent}")
        if self.disk:
            yield StreamFault(self.where, f"{self.disk}: free some space, and restart nats-server")
        elif self.illness:
            yield StreamFault(self.where, f"it is not well: {self.illness}")


NOT_KNOWN = StreamFault(
    "the server",
    "whether it syncs each message to the disk is not known: set broker_monitor_url, or "
    "broker_unsafe if you are sure",
)


def monitor_faults(urls: tuple[str, ...]) -> list[StreamFault]:
    """Return why messages may not be on the disk when they are acknowledged."""
    looks = [look_at(each) for each in urls]
    silent = [fault for each in looks if each.silent for fault in each.degraded()]
    unsafe = [fault for each in looks for fault in each.faults()]
    return [*silent, *unsafe] if urls else [NOT_KNOWN]


def look_at(url: str) -> ServerLook:
    """Ask one server how it syncs, and how it is. Blocks."""
    # Without the path: that of an embedded server is a secret.
    where = f"the server with the monitor port {urlsplit(url).netloc}"
    try:
        unsafe, illness = _unsafe(url), _illness(url)
    except (OSError, HTTPException, ValueError) as error:
        return ServerLook(where, silent=str(error) or type(error).__name__)
    disk = illness if any(each in illness for each in _OF_THE_DISK) else ""
    return ServerLook(where, unsafe=unsafe, illness=illness, disk=disk)


def _unsafe(url: str) -> str:
    config = (ask(url, "/varz").get("jetstream") or {}).get("config") or {}
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


def _illness(url: str) -> str:
    said = ask(url, "/healthz", also=(500, 503))
    if said.get("status") == "ok":
        return ""
    return str(said.get("error") or said.get("status"))


def ask(url: str, path: str, *, also: tuple[int, ...] = ()) -> dict[str, Any]:
    """Return the JSON of one page. Raises OSError, HTTPException, and ValueError.

    A status other than 200 is an OSError, unless it is one of `also`.
    """
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=ANSWER_S_MAX)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        response = connection.getresponse()
        text = response.read(ANSWER_BYTES_MAX)
    finally:
        connection.close()
    if response.status not in {200, *also}:
        raise OSError(f"status {response.status}")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found
