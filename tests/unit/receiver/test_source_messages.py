"""Posts of messages to a source: their topic and their times stand in headers."""

from __future__ import annotations

from pathlib import Path

import orjson

from ingest.model.reading import Reading
from tests.support import tokens
from tests.support.receiver import head
from tests.unit.receiver.test_sources import metrics, replayed, running, send

MQTT = """[[source]]
name = "s"
device = "$topic.2"
values = "."
metric = "$topic.3"
value = ["v", "."]
"""


async def test_topic_and_time_of_messages_come_in_headers(tmp_path: Path) -> None:
    """A dead letter has both, so a replay reads the same. The topic may have any character."""
    file = tmp_path / "sources.toml"
    async with running(file, MQTT) as receiver:
        headers = {
            "X_Topic": "a/k%C3%BC%2Cche/t",
            "X_Received_At": "1790000000000001,1790000000000002",
        }
        reply = await send(receiver, "/v1/in/s", b'[21.5,{"v":22},{"x":"y"}]', **headers)
        assert (reply.document["accepted"], reply.document["faulty"]) == (2, 1)
        assert receiver.inlet.readings == [
            Reading(1790000000000001, "kü,che", "t", 21.5),
            Reading(1790000000000002, "kü,che", "t", 22.0),
        ]
        (letter,) = receiver.dead_letters.letters
        assert orjson.loads(letter.context)["topic"] == "a/kü,che/t"
        assert letter.received_us == 1790000000000002
        broken = await send(receiver, "/v1/in/s", b"1", **{**headers, "X_Received_At": "now"})
        assert broken.code == "bad_parameter"
        # What is no topic at all is a fault of its documents.
        for topic in ("%FF/%00/t", "a", "", "\udcff/\udcff/t"):
            raw = head("POST", "/v1/in/s", {"Content-Length": "1"})
            line = b"X-Topic: %b\r\n\r\n" % topic.encode("utf-8", "surrogateescape")
            odd = await receiver.send(raw[:-2] + line + b"1")
            assert odd.document["faulty"] == 1, topic
            odd_letter = receiver.dead_letters.letters[-1]
            assert await replayed(odd_letter, file) == (0, {odd_letter.code: 1})
        file.write_text(MQTT.replace('"v", ', '"x", ') + "numeric_strings = true\n")
        stored = letter._replace(original=b'{"x":"7"}')
        assert await replayed(stored, file) == (1, {})


async def test_refusal_names_a_metric_that_is_not_utf_8(tmp_path: Path) -> None:
    """It was answered 500: the name of the field could not be written."""
    many = b"[%b1]" % (b"1," * 300)
    raw = head("POST", "/v1/in/s", {"Content-Length": str(len(many))})
    async with running(tmp_path / "sources.toml", MQTT) as receiver:
        for body in (many, b"1".ljust(len(many))):
            reply = await receiver.send(raw[:-2] + b"X-Topic: a/h/\xff\r\n\r\n" + body)
            assert reply.status == (422 if body is many else 200)
            fault = reply.document.get("first_fault") or reply.document["errors"][0]
            assert (fault["code"], fault["field"]) == ("name_control_character", "?")


async def test_token_is_for_the_device_that_the_topic_names(tmp_path: Path) -> None:
    """Whoever writes the header. A token for another source may not post here."""
    file = tmp_path / "sources.toml"
    allowed = tokens.in_force(
        tokens.line(devices=("hall",)), tokens.line(tokens.OTHER, "other", sources=("t",))
    )
    async with running(file, MQTT, tokens=allowed, access="token") as receiver:
        for secret, topic, status in (
            (tokens.SECRET, "a/hall/t", 200),
            (tokens.SECRET, "a/cellar/t", 403),
            (tokens.OTHER, "a/hall/t", 403),
        ):
            named = {"Authorization": f"Bearer {secret}", "X_Topic": topic}
            assert (await send(receiver, "/v1/in/s", b"1", **named)).status == status
        assert metrics(receiver) == [("hall", "t", 1.0)]
