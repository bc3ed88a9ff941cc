"""Posts of messages to a source: their topic and their times stand in headers."""

from __future__ import annotations

from pathlib import Path

import orjson

from tests.unit.receiver.rows import request
from tests.unit.receiver.test_sources import replayed, running

MQTT = """[[source]]
name = "s"
device = "$topic.2"
values = "."
metric = "$topic.3"
value = ["v", "."]
"""


async def test_letter_of_a_message_has_its_topic_so_a_replay_reads_the_same(tmp_path: Path) -> None:
    """The topic may have any character. What is no topic at all is a fault of its documents."""
    file = tmp_path / "sources.toml"
    async with running(file, MQTT) as receiver:
        for topic in ("%FF/%00/t", "a", "", "\xff/\xff/t", "a/k%C3%BC%2Cche/t"):
            sent = request("/v1/in/s", b'{"x":"y"}', {"X-Topic": topic})
            assert (await receiver.send(sent)).document["faulty"] == 1, topic
            (*_, letter) = receiver.dead_letters.letters
            assert await replayed(letter, file) == (0, {letter.code: 1})
        (*_, letter) = receiver.dead_letters.letters
        assert orjson.loads(letter.context)["topic"] == "a/kü,che/t"
        file.write_text(MQTT.replace('"v", ', '"x", ') + "numeric_strings = true\n")
        stored = letter._replace(original=b'{"x":"7"}')
        assert await replayed(stored, file) == (1, {})
