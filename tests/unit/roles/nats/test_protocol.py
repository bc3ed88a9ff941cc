"""Replies of JetStream: an unknown one is never a definite answer."""

from __future__ import annotations

import pytest

from ingest.roles.nats.protocol import ApiFault, Meaning, Message, PubAck, pub_ack


def reply(data: bytes, **headers: str) -> Message:
    """Return a reply."""
    return Message("", data, headers)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"stream":"INGEST","seq":4}', PubAck(4, False)),
        (b'{"stream":"INGEST","seq":4,"duplicate": true}', PubAck(4, True)),
        (b'{"error":{"err_code":10077,"description":"maximum bytes exceeded"}}', Meaning.FULL),
        (b'{"error":{"err_code":10077,"description":"no space left on"}}', Meaning.UNSURE),
        (b'{"error":{"err_code":10158,"description":"in process"}}', Meaning.UNSURE),
        (b'{"error":{"err_code":10008,"description":"unavailable"},"seq":0}', Meaning.AGAIN),
        (b'{"error":{"err_code":10060,"description":"stream"}}', Meaning.WRONG),
        (b'{"error":{"err_code":99999}}', Meaning.UNSURE),
        (b'{"error":{},"seq":7}', Meaning.UNSURE),
        (b'{"stream":"INGEST","seq":0}', Meaning.UNSURE),
        (b"{}", Meaning.UNSURE),
        (b"", Meaning.UNSURE),
        (b"+OK", Meaning.UNSURE),
    ],
)
def test_reply_to_a_message_has_one_meaning(data: bytes, expected: PubAck | Meaning) -> None:
    """Only an answer with a place in the stream says that the message is stored."""
    found = pub_ack(reply(data))
    assert (found.meaning if isinstance(found, ApiFault) else found) == expected


def test_nobody_who_answers_has_stored_nothing() -> None:
    """The status 503 of the server."""
    found = pub_ack(reply(b"", Status="503"))
    assert isinstance(found, ApiFault)
    assert found.meaning is Meaning.AGAIN
