"""What answers of the service mean for messages."""

from __future__ import annotations

import json

import pytest

from ingest.mqtt.bridge import PostVerdict, answer_of

TAKEN, REFUSED = PostVerdict.TAKEN, PostVerdict.REFUSED
NOT_NOW, AGAIN = PostVerdict.NOT_NOW, PostVerdict.AGAIN


@pytest.mark.parametrize(
    ("status", "code", "verdict"),
    [
        *((status, "", TAKEN) for status in (200, 202, 204)),
        (400, "not_json", REFUSED),
        (400, "not_lines", REFUSED),
        (400, "bad_parameter", REFUSED),
        (422, "all_invalid", REFUSED),
        (422, "dead_letters_full", REFUSED),
        *((413, code, NOT_NOW) for code in ("body_too_large", "too_many_readings", "")),
        (403, "outside_scope", NOT_NOW),
        (403, "foreign_site", AGAIN),
        *((status, "", AGAIN) for status in (301, 400, 401, 403, 404, 405, 408, 415, 421, 429)),
        *((400, code, AGAIN) for code in ("ack_unavailable", "needs_tls")),
        *((status, "buffer_full", AGAIN) for status in (500, 502, 503, 504, 599)),
    ],
)
def test_only_what_is_about_the_messages_gives_them_up(
    status: int, code: str, verdict: PostVerdict
) -> None:
    """In both forms of an error: that of our own path, and that of line protocol."""
    assert answer_of(status, json.dumps({"code": code}).encode()).verdict is verdict
    lines = {"code": "invalid", "problem": code}
    assert answer_of(status, json.dumps(lines).encode()).verdict is verdict


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code":7,"detail":[]}', b"\xff"])
def test_any_body_can_be_read(body: bytes) -> None:
    """A proxy may answer; and its 400 is not about messages."""
    assert answer_of(400, body).verdict is AGAIN
    assert answer_of(204, body).verdict is TAKEN


def test_an_answer_that_holds_for_each_message_needs_no_halves() -> None:
    """The reason of the first error is told."""
    body = json.dumps({"code": "all_invalid", "detail": "x", "errors": [{"message": "y"}]})
    answer = answer_of(422, body.encode())
    assert answer.for_each
    assert answer.why == "422 all_invalid: x: y"
    assert not answer_of(400, b'{"code":"not_json"}').for_each
