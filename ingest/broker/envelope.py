"""What goes to the broker and comes from it, and where the broker is.

Does not: know the NATS library, so that `ingest serve` runs without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

PULL = "pull."  # in the reply subject of pull requests


class Address(NamedTuple):
    """Where the broker is, and how to log in. `servers` are URLs without user and password.

    `ours`: an embedded server, which must run as our user.
    """

    servers: tuple[str, ...]
    user: str
    password: str
    ca_file: str = ""
    ours: bool = False


class Message(NamedTuple):
    """What came in: a reply, or a message that was asked for."""

    reply_to: str
    data: bytes
    headers: Mapping[str, str]

    @property
    def status(self) -> str:
        """The status of the broker, as `503`, or nothing if this is no status."""
        return self.headers.get("Status", "")


class Heard(NamedTuple):
    """Who gets the messages of a subject. With a `group`, one of its members gets each."""

    on_message: Callable[[Message], None]
    group: str = ""


class Outgoing(NamedTuple):
    """A message to send."""

    subject: str
    payload: bytes
    reply_to: str
    headers: Mapping[str, str] | None
