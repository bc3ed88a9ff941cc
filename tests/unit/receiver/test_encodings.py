"""Formats and encodings over a real socket: media types, dead letters, tokens, compression."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from ingest.dead_letters.format import decode_line, encode_line
from ingest.dead_letters.manual_replay import ManualReplay, item_of_letter
from ingest.dead_letters.store import LiveLetter
from ingest.formats.media_type import FORMATS, USUAL
from ingest.model.reading import Reading
from tests.support import tokens
from tests.support.encodings import written
from tests.support.posts import NOW_US, RULES
from tests.support.receiver import Receiver, Reply, running_receiver

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

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


@pytest.mark.parametrize("media_type", FORMATS)
async def test_each_media_type_is_taken(media_type: str) -> None:
    """Small and large, plain and compressed, in one or two parts; in any case of letters."""
    body = written(FORMATS[media_type].name, FACTS)
    async with running_receiver() as receiver:
        assert (await posted(receiver, body, f"{media_type.upper()}; charset=utf-8")).status == 202
        for pack, encoding in ((gzip.compress, "gzip"), (zstd.compress, "zstd")):
            packed = pack(body[:50]) + pack(body[50:])
            reply = await posted(receiver, packed, media_type, Content_Encoding=encoding)
            assert reply.status == 202, reply.body
        assert receiver.inlet.readings == FACTS * 3
        assert receiver.ledger.imbalance == 0


async def test_unknown_types_and_encodings_hear_what_is_known() -> None:
    """Also in a header that programs read."""
    async with running_receiver() as receiver:
        reply = await posted(receiver, b"x", "application/cbor")
        assert (reply.status, reply.headers["accept"]) == (415, ", ".join(USUAL))
        assert all(media_type in reply.document["detail"] for media_type in USUAL)
        reply = await posted(receiver, b"x", "application/json", Content_Encoding="br")
        assert (reply.status, reply.headers["accept-encoding"]) == (415, "gzip, zstd")
        reply = await posted(receiver, b"x", "application/json", Content_Encoding="zstd")
        assert (reply.status, reply.code) == (400, "bad_encoding")
        bomb = zstd.compress(bytes(64 << 20))
        reply = await posted(receiver, bomb, "application/msgpack", Content_Encoding="zstd")
        assert (reply.status, reply.code) == (413, "inflated_too_large")


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


async def test_senml_names_without_a_device_are_of_the_tokens_device() -> None:
    """Also later, when the dead letter of such a record is replayed. Texts are counted."""
    known = tokens.in_force(tokens.line(device="gateway"))
    bearer = f"Bearer {tokens.SECRET}"
    async with running_receiver(known) as receiver:
        body = b'[{"n":"t","v":21.5},{"n":"door","vs":"open"},{"n":"other/t","v":1},{"n":"t"}]'
        reply = await posted(receiver, body, "application/senml+json", Authorization=bearer)
        assert reply.status == 202, reply.body
        assert [each["code"] for each in reply.document["errors"]] == [
            *("not_allowed", "missing_field")
        ]
        assert [each[1:] for each in receiver.inlet.readings] == [("gateway", "t", 21.5)]
        assert [each.device for each in receiver.dead_letters.letters] == ["gateway"] * 2
        assert receiver.ledger.line_fields["text_ignored"] == 1
        refused = await posted(
            receiver, b'[{"n":"t","vs":"x"}]', "application/senml+json", Authorization=bearer
        )
        assert (refused.status, refused.code) == (422, "empty")
        assert receiver.ledger.line_fields["text_ignored"] == 1


async def test_token_may_be_for_one_format() -> None:
    """A token for JSON is not one for MessagePack; an unknown type is 415 for who has a token."""
    known = tokens.in_force(tokens.line(formats=("msgpack",)))
    bearer = f"Bearer {tokens.SECRET}"
    async with running_receiver(known) as receiver:
        for name, media_type in TYPES.items():
            body = written(name, FACTS)
            reply = await posted(receiver, body, media_type, Authorization=bearer)
            assert reply.status == (202 if name == "msgpack" else 403)
        reply = await posted(receiver, b"x", "text/plain", Authorization="Bearer x")
        assert reply.status == 401
