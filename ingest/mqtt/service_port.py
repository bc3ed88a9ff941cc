"""What the path of messages needs of the service, and the dead letter of what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ingest.http_client.client import ServerReply
from ingest.model.letter import REFUSED_BY_SERVICE, Letter
from ingest.mqtt.gathering import MessageForm
from ingest.mqtt.messages import MqttMessage

QUOTED_CHARACTERS = 200


class ServicePort(Protocol):
    """Posts to the service; see http_client/client.py."""

    async def post(self, body: bytes, headers: Mapping[str, str]) -> ServerReply:
        """Return the answer. Raises NoReply."""

    def abort(self) -> None:
        """Let all posts end now."""


class PostHeaders(Protocol):
    """Makes the headers of a post."""

    def __call__(self) -> Mapping[str, str]:
        """Return them; with the token of now. Raises ConfigError."""


def letter_of(message: MqttMessage, form: MessageForm, code: str, why: str) -> Letter:
    """Return a message as a dead letter: as it came, with its topic and the reason."""
    return Letter(
        reason=REFUSED_BY_SERVICE,
        code=code,
        message=f"topic {message.topic[:QUOTED_CHARACTERS]!r}: {why[:QUOTED_CHARACTERS]}",
        received_us=message.received_us,
        original=message.payload,
        attempts=1,
        format=form.name,
        source=form.path,
        context=form.context(message),
    )
