"""The pages of mapped sources, over a real socket and fakes: answers, tokens, faults, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import orjson
import pytest

from ingest.app.post_rules import make_rules
from ingest.buffers.memory import MemoryBuffer
from ingest.config.settings import Settings
from ingest.dead_letters.format import decode_line, encode_line, parse
from ingest.dead_letters.identity import letter_id
from ingest.dead_letters.manual_replay import ManualReplay, item_of_fields
from ingest.model.errors import ConfigError, JournalBroken
from ingest.model.reading import INVALID, MAPPED, Letter
from ingest.receiver.pages import lines, mapped
from ingest.receiver.pages.mapped import turn, turns_of_large_bodies
from tests.support.receiver import Receiver, Reply, head, running_receiver, until
from tests.unit.receiver.rows import request

ESP = '[[source]]\nname = "esp"\ndevice = "id"\n'
BODY = b'{"id":"esp-1","temp":21.4,"hum":40}'


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    return tmp_path / "sources.toml"


@asynccontextmanager
async def running(file: Path, text: str = ESP, **options: Any) -> AsyncIterator[Receiver]:
    """Run a receiver with these sources."""
    file.write_text(text)
    async with running_receiver(sources_file=str(file), **options) as receiver:
        yield receiver


async def send(
    receiver: Receiver,
    target: str = "/v1/in/esp",
    body: bytes = BODY,
) -> Reply:
    """Send a post on a connection of its own."""
    return await receiver.send(request(target, body))


async def test_letter_of_a_document_is_replayed_with_what_came_beside_it(file: Path) -> None:
    """By the mapping of then; without the source it stays."""
    async with running(
        file, '[[source]]\nname = "s"\ndevice = "$query.dev"\ntime = "at"\n'
    ) as receiver:
        await send(receiver, "/v1/in/s?dev=d1&p=%73ecret", b'{"v":2,"at":"yesterday"}')
        (letter,) = receiver.dead_letters.letters
        assert orjson.loads(letter.context)["query"]["dev"] == "d1"
    file.write_text('[[source]]\nname = "s"\ndevice = "$query.dev"\n')
    assert await replayed(letter, file) == (1, {})
    file.write_text(ESP)
    assert await replayed(letter, file) == (0, {"not_found": 1})


@pytest.mark.parametrize(
    ("body", "code", "refusals"),
    [
        (b'{"id":"d","x":1}\na=5', "document_unreadable", {"not_json": 1}),  # lines of JSON
        (b"a=5", "no_device", {"no_device": 1}),  # a form
        (b"a=5&a=6", "repeated_field", {"repeated_field": 1}),
    ],
)
async def test_letter_is_replayed_as_what_it_was(
    file: Path, body: bytes, code: str, refusals: dict[str, int]
) -> None:
    """A line of a JSON post is no form, whatever it looks like: it would give readings."""
    text = '[[source]]\nname = "s"\ndevice = "id"\nnumeric_strings = true\n'
    async with running(file, text) as receiver:
        await send(receiver, "/v1/in/s", body)
        (letter,) = receiver.dead_letters.letters
        assert letter.code == code
    assert await replayed(letter, file) == (0, refusals)
    file.write_text(text.replace('"id"', '"=fixed"'))
    is_form = code == "no_device"
    assert await replayed(letter, file) == ((1, {}) if is_form else (0, refusals))
    message = letter._replace(code="not_json", original=b"a=5")  # as `ingest mqtt` refuses it
    assert await replayed(message, file) == (0, {"not_json": 1})


async def replayed(letter: Letter, file: Path) -> tuple[int, dict[str, int]]:
    """Write a letter as a line, and replay it by the file's mapping of now: readings, refusals."""
    line = encode_line(letter, id_=letter_id(letter), failed_us=letter.received_us)
    assert decode_line(line).letter == letter
    rules = make_rules(Settings(sources_file=str(file)))
    replay = ManualReplay(sink=None, rules=rules, done=AsyncMock())
    await replay.run([item_of_fields(parse(line, check_sum=True), "here")])
    return replay.summary.rows, replay.summary.refused


async def test_time_of_receipt_has_the_limits_of_all_times(file: Path) -> None:
    """Also in a replay of what was kept before they were checked."""
    file.write_text(ESP)
    early = Letter(INVALID, "x", "", 0, original=BODY, format=MAPPED, source="/v1/in/esp")
    assert await replayed(early, file) == (0, {"ts_too_old": 1})
    late = early._replace(received_us=99_999_999_999_999_999)
    assert await replayed(late, file) == (2, {})  # with the time of the replay


async def test_large_post_is_kept_in_blocks(file: Path) -> None:
    """Telegraf posts 10,000 readings at once; one that cannot be kept now is 503 as a whole."""
    fields = {f"usage_{at}": at + 0.5 for at in range(10)}
    rows = [
        {"name": "cpu", "tags": {"host": f"h{at}"}, "fields": fields, "timestamp": 1777636800 + at}
        for at in range(1_000)
    ]
    body = orjson.dumps({"metrics": rows})
    async with running(file, '[[source]]\npreset = "telegraf_json"\n') as receiver:
        reply = await send(receiver, "/v1/in/telegraf_json", body)
        assert reply.document["accepted"] == 10_000
        assert len(receiver.inlet.blocks) == 2
        receiver.inlet.put_error = JournalBroken()
        assert (await send(receiver, "/v1/in/telegraf_json", body)).code == "disk_low"


async def test_small_posts_go_on_beside_a_large_one(file: Path) -> None:
    """A large body is decoded in short steps."""
    doc = orjson.dumps([{"id": f"d{at}", "v": at} for at in range(6_000)])
    async with running(file) as receiver:
        large = asyncio.create_task(send(receiver, body=doc))
        small = asyncio.create_task(send(receiver))
        await until(small.done)
        assert (await small).status == 200
        assert (await large).document["accepted"] == 6_000


@pytest.mark.parametrize("target", ["/v1/in/esp", "/write"])
@pytest.mark.parametrize("size", [1_000, 100_000])
async def test_post_is_answered_in_time_though_it_cannot_be_read(
    file: Path, monkeypatch: pytest.MonkeyPatch, target: str, size: int
) -> None:
    """Others take turns with it. Its client does not wait, and sends it again."""

    def never_ends(*_: object) -> Iterator[None]:
        while True:
            yield

    monkeypatch.setattr(mapped, "begin", never_ends)
    monkeypatch.setattr(lines, "begin", never_ends)
    async with running(file, answer_s_max=0.1) as receiver:
        body = b" " * size
        replies = await asyncio.gather(*(send(receiver, target, body) for _ in range(2)))
        assert [each.status for each in replies] == [503, 503]
        assert all(b"in time" in each.body for each in replies)
        assert receiver.ledger.received == 0


async def test_path_of_another_page_is_refused_at_the_start(file: Path) -> None:
    """A source must not hide a page of the service, nor seem to have one."""
    with pytest.raises(ConfigError, match=r"source 'a', key path: /v1/readings is a page"):
        async with running(file, '[[source]]\nname = "a"\npath = "/v1/readings"\n'):
            pass


async def test_large_bodies_are_decoded_one_after_another(file: Path) -> None:
    """Each takes ten times its memory while it is decoded; a client that is gone is forgotten."""
    doc = orjson.dumps([{"id": f"d{at}", "v": at} for at in range(3_000)])
    async with running(file) as receiver:
        client = await receiver.connect(
            head("POST", "/v1/in/esp", {"Content-Length": str(len(doc))}) + doc
        )
        await client.close()
        replies = await asyncio.gather(*(send(receiver, body=doc) for _ in range(4)))
        assert [each.document["accepted"] for each in replies] == [3_000] * 4


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


async def take(turns: MemoryBuffer, sender: str, order: list[str]) -> None:
    """Take a turn, which lasts a round of the event loop, and note it."""
    async with turn(turns, sender, 1_000):
        order.append(sender)
        await asyncio.sleep(0)


async def test_senders_take_turns() -> None:
    """Who has many posts gets no more than who has one."""
    turns, order = turns_of_large_bodies(), list[str]()
    async with asyncio.TaskGroup() as tasks:
        for sender in [*"hhhhhhhh", "a", "b", "a"]:
            tasks.create_task(take(turns, sender, order))
    assert order[:4] == ["h", "h", "a", "b"]  # the second one is the first that waits
    assert sorted(order) == sorted("hhhhhhhhaba")


async def test_cancelled_one_gives_its_turn_on() -> None:
    """At each moment of its wait, and in the round in which it got the turn."""
    for rounds in range(8):
        turns, order = turns_of_large_bodies(), list[str]()
        tasks = [asyncio.create_task(take(turns, each, order)) for each in "abcd"]
        for _ in range(rounds):
            await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert "a" in order
        assert "d" in order
        async with asyncio.timeout(1):
            await take(turns, "later", order)
