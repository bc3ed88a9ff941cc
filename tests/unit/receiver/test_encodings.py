"""Formats and encodings over a real socket: media types, dead letters, tokens, compression."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ingest.dead_letters.format import decode_line, encode_line
from ingest.dead_letters.manual_replay import ManualReplay, item_of_letter
from ingest.dead_letters.store import LiveLetter
from ingest.formats.media_types import FORMATS, USUAL
from ingest.model.reading import Reading
from tests.support.encodings import written
from tests.support.posts import NOW_US, RULES
from tests.support.receiver import Receiver, Reply, running_receiver

if sys.version_info >= (3, 14):
    pass
else:
    pass

US = 1_750_000_000_000_000
FACTS = [Reading(US + number, "room-1", "t", number / 8) for number in range(40)]
OLD = Reading(300_000_000_000_000, "room-1", "t", 1.0)
TYPES = {FORMATS[media_type].name: media_type for media_type in USUAL}


async def posted(receiver: Receiver, body: bytes, media_type: str, **headers: str) -> Reply:
    """Post with numeric times in microseconds."""
    headers = {each.replace("_", "-"): value for each, value in headers.items()}
    return await receiver.post(
        body, "?precision=us", headers={"Content-Type": media_type, **headers}
    )


@pytest.mark.parametrize("name", TYPES)
async def test_bad_item_is_a_dead_letter_that_can_be_replayed(name: str) -> None:
    """Its line on the disk has its own bytes and its format; a dry replay reads what was posted."""
    async with running_receiver() as receiver:
        reply = await posted(receiver, written(name, [*FACTS, OLD]), TYPES[name])
        assert (reply.status, reply.document["dead_lettered"]) == (202, 1)
        assert reply.document["errors"][0]["index"] == len(FACTS)
        (letter,) = receiver.dead_letters.letters
    assert letter.format == name
    line = encode_line(letter, id_="0" * 32, failed_us=NOW_US)
    _, _, letter = decode_line(line)
    item = item_of_letter(LiveLetter(Path("x"), 0, len(line), "0" * 32, NOW_US, letter, line))

    async def done(_: object) -> None:
        """Nothing is marked."""

    for ts_min_us, readings, code in ((0, 1, None), (RULES.ts_min_us, 0, "ts_too_old")):
        rules = RULES._replace(ts_min_us=ts_min_us)
        replay = ManualReplay(sink=None, rules=rules, done=done)
        await replay.run([item])
        assert replay.summary.rows == readings
        assert [*replay.summary.refused] == ([code] if code else [])
