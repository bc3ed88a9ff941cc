"""The pages of mapped sources, over a real socket and fakes: answers, tokens, faults, limits."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import orjson
import pytest

from ingest.app.rules import make_rules
from ingest.config.settings import Settings
from ingest.dead_letters.format import decode_line, encode_line, parse
from ingest.dead_letters.identity import letter_id
from ingest.dead_letters.manual_replay import ManualReplay, item_of_fields
from ingest.model.errors import BufferFull, ConfigError, DeadLettersFull, JournalBroken
from ingest.model.letter import INVALID, MAPPED, Letter
from ingest.model.reading import Reading
from ingest.receiver.pages import lines, mapped
from ingest.system.clock import unix_us
from tests.support import tokens
from tests.support.receiver import Receiver, Reply, head, running_receiver, until

ESP = '[[source]]\nname = "esp"\ndevice = "id"\n'
BODY = b'{"id":"esp-1","temp":21.4,"hum":40}'
TTN = b"""{"end_device_ids":{"device_id":"dev1","application_ids":{"application_id":"app1"}},
"received_at":"2026-05-01T12:00:00Z",
"uplink_message":{"decoded_payload":{"temperature":21.5}}}"""


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
    method: str = "POST",
    **headers: str,
) -> Reply:
    """Send a request on a connection of its own; `_` in a header's name is `-`."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    sized = named if method == "GET" else {"Content-Length": str(len(body)), **named}
    return await receiver.send(head(method, target, sized) + (b"" if method == "GET" else body))


def metrics(receiver: Receiver) -> list[tuple[str, str, float]]:
    """Return what was kept, without the times."""
    return [each[1:] for each in receiver.inlet.readings]


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "image/png", ""])
async def test_own_json_is_kept_whatever_its_media_type(file: Path, media_type: str) -> None:
    """Many clients write a wrong one. The answer is 200, with a small body."""
    async with running(file) as receiver:
        typed = {"Content-Type": media_type} if media_type else {}
        sized = {"Content-Length": str(len(BODY)), **typed}
        reply = await receiver.send(head("POST", "/v1/in/esp", sized) + BODY)
        assert reply.status == 200
        assert reply.document == {"accepted": 2, "faulty": 0, "ignored": 0}
        assert metrics(receiver) == [("esp-1", "temp", 21.4), ("esp-1", "hum", 40.0)]
        assert receiver.ledger.requests["/v1/in/esp", 200] == 1
        assert receiver.ledger.received == receiver.ledger.accepted == 2


async def test_number_in_quotes_is_named_in_the_answer(file: Path) -> None:
    """With what takes it; a post without such a thing has nothing of it in its answer."""
    async with running(file) as receiver:
        reply = await send(receiver, body=b'{"id":"esp-1","temp":"21.4","hum":40}')
        document = reply.document
        (hint,) = document.pop("hints")
        assert document == {"accepted": 1, "faulty": 0, "ignored": 0}
        assert hint == "`temp` is a number in quotes, not stored: numeric_strings = true (1 x)"
        assert metrics(receiver) == [("esp-1", "hum", 40.0)]


async def test_lists_lines_forms_and_gzip_are_read(file: Path) -> None:
    """All of them through one source; sub-paths and unknown parameters too."""
    async with running(file) as receiver:
        for body in (
            b"[%b,%b]" % (BODY, BODY),
            BODY + b"\r\n" + BODY + b"\n",
            b"\xef\xbb\xbf" + BODY,
        ):
            assert (await send(receiver, "/v1/in/esp/uplink?x=1&x=2", body)).status == 200
        packed = gzip.compress(BODY)
        assert (await send(receiver, body=packed, Content_Encoding="gzip")).status == 200
        assert len(receiver.inlet.readings) == 12


async def test_event_without_readings_is_200_and_counted(file: Path) -> None:
    """A webhook may be disabled after some answers that are no 2xx. HEAD is a health check."""
    async with running(file, '[[source]]\npreset = "ttn"\n' + ESP) as receiver:
        assert (await send(receiver, "/v1/in/ttn", b'{"join_accept":{}}')).document["ignored"] == 1
        assert (await send(receiver, "/v1/in/ttn", b"")).status == 200
        client = await receiver.connect()
        await client.send(head("HEAD", "/v1/in/ttn"))
        assert (await client.reply(head_only=True)).status == 200
        assert receiver.ledger.events_ignored == {"ttn": 2, "esp": 0}
        assert receiver.dead_letters.letters == []
        assert receiver.ledger.received == 0
        assert (await send(receiver, "/v1/in/ttn", TTN)).document["accepted"] == 1


async def test_faulty_document_is_a_dead_letter_with_what_came_beside_it(file: Path) -> None:
    """The answer is 200 all the same; a replay reads it by the mapping of then."""
    text = '[[source]]\nname = "s"\ndevice = "$query.dev"\ntime = "at"\n'
    async with running(file, text) as receiver:
        body = b'[{"v":1},{"v":2,"at":"yesterday"},{"note":"no value"}]'
        reply = await send(receiver, "/v1/in/s?dev=d1&p=%73ecret", body)
        found = reply.document.pop("first_fault")
        assert (found["index"], found["code"], found["field"]) == (1, "ts_unreadable", "time")
        assert "yesterday" in found["message"]
        first, second = receiver.dead_letters.letters
        assert (first.code, first.item, first.field) == ("ts_unreadable", 1, "time")
        assert (second.code, second.original) == ("no_value", b'{"note":"no value"}')
        assert (first.format, first.source) == (MAPPED, "/v1/in/s")
        assert orjson.loads(first.context)["query"]["dev"] == "d1"
        assert receiver.ledger.received == 3
    file.write_text('[[source]]\nname = "s"\ndevice = "$query.dev"\n')
    assert await replayed(first, file) == (1, {})
    file.write_text(ESP)
    assert await replayed(first, file) == (0, {"not_found": 1})


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


async def test_large_document_keeps_only_its_faulty_rows_as_a_letter(file: Path) -> None:
    """Else one bad row in a post of thousands would fill the space for dead letters."""
    row = b'{"name":"m","tags":{"host":"h%d"},"fields":{"a":1},"timestamp":1777636800}'
    rows = [row % at for at in range(200)]
    rows[7] = rows[7].replace(b'"host":"h7"', b'"host":""')
    async with running(file, '[[source]]\npreset = "telegraf_json"\n') as receiver:
        reply = await send(receiver, "/v1/in/telegraf_json", b'{"metrics":[%b]}' % b",".join(rows))
        assert (reply.document["accepted"], reply.document["faulty"]) == (199, 1)
        (letter,) = receiver.dead_letters.letters
        assert letter.original == b'{"metrics":[%b]}' % rows[7]
        assert letter.code == "no_device"


async def test_faults_that_cannot_be_kept_cost_the_others_nothing(file: Path) -> None:
    """They are counted, and there is an alert."""
    async with running(file) as receiver:
        receiver.dead_letters.error = DeadLettersFull()
        reply = await send(receiver, body=b'[{"x":1},' + BODY + b"]")
        assert reply.status == 200
        assert len(receiver.inlet.readings) == 2
        assert receiver.ledger.rejected["not_kept"] == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "not_json"),
        (b'{"a":"\\ud800"}', 400, "not_json"),
        (b"[" * 2_000 + b"]" * 2_000, 400, "not_json"),
        (b"\x1f\x8b\xff", 400, "not_json"),
        (b'{"a":"%b"}' % (b"x" * 1_200_000), 413, "body_too_large"),
        (b'{"%b":1}' % (b"x" * 1_200_000), 413, "item_too_large"),
        (b"[%b1]" % (b"[]," * 100_000), 422, "invalid_items"),
        (b'{"a":[%b1]}' % (b"[]," * 100_000), 413, "too_many_readings"),
        (b"a=1&" * 2_000, 413, "too_many_readings"),
    ],
    ids=lambda each: each if isinstance(each, str) else None,
)
async def test_body_that_cannot_be_read_is_refused(
    file: Path, body: bytes, status: int, code: str
) -> None:
    """Nothing of it is kept; the operator sees it among the refused posts."""
    async with running(file) as receiver:
        if code == "item_too_large":
            reply = await send(receiver, body=gzip.compress(body), Content_Encoding="gzip")
        else:
            reply = await send(receiver, body=body)
        assert (reply.status, reply.code) == (status, code)
        assert receiver.inlet.blocks == []
        assert receiver.ledger.posts_refused[code] == 1


async def test_what_can_be_sent_again_is_503(file: Path) -> None:
    """Never a 4xx: most of these clients drop what gets one."""
    async with running(
        file, body_s_max=0.1, sender_posts_per_s_max=0.1, sender_burst_s=10
    ) as receiver:
        receiver.inlet.error = BufferFull(3.0)
        assert (await send(receiver)).code == "buffer_full"
        assert (await send(receiver)).status == 503  # too fast
        receiver.admission.code = "starting"
        assert (await send(receiver)).code == "starting"
    async with running(file, body_s_max=0.1) as receiver:
        reply = await receiver.send(head("POST", "/v1/in/esp", {"Content-Length": "9"}) + b"{")
        assert (reply.status, reply.code) == (503, "busy")
    async with running(file, sender_connections_max=1) as receiver:
        assert (await send(receiver)).status == 200
        reply = await send(receiver)  # the connection of the first one is still open
        assert (reply.status, reply.code) == (503, "busy")
        assert reply.headers["connection"] == "close"


GET = """
[[source]]
name = "shelly"
device = "$query.dev"
values = "$query"
numeric_strings = true
"""


async def test_get_with_a_query_is_kept(file: Path) -> None:
    """Where the query is data, `p` is no token: it may be a pressure."""
    async with running(file, GET + ESP) as receiver:
        target = "/v1/in/shelly?dev=ht1&t=21.5&p=1013&u=x"
        reply = await receiver.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert reply.document == {"accepted": 2, "faulty": 0, "ignored": 0}
        assert metrics(receiver) == [("ht1", "t", 21.5), ("ht1", "p", 1013.0)]
        assert reply.headers["cache-control"] == "no-store"
        assert (await send(receiver, "/v1/in/esp", method="GET")).status == 405
        assert (await send(receiver, "/v1/in/none", method="GET")).status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Referer": "http://evil.example/page"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "localhost", "Referer": "http://localhost/page"}, 200),
    ],
)
async def test_page_of_another_site_cannot_get(
    file: Path, headers: dict[str, str], status: int
) -> None:
    """A GET for a picture needs no permission, and may have neither Origin nor Sec-Fetch-Site."""
    async with running(file, GET, access="auto", listen="127.0.0.1:0") as receiver:
        lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
        request = f"GET /v1/in/shelly?dev=a&t=1 HTTP/1.1\r\n{lines}\r\n"
        assert (await receiver.send(request.encode())).status == status


THINGSBOARD = '[[source]]\npreset = "thingsboard"\n'


async def test_token_in_the_path_names_the_device(file: Path) -> None:
    """ThingsBoard devices send nothing else; attributes come first and must be 200."""
    scope = tokens.line(device="boiler", sources=("thingsboard",))
    in_force = tokens.in_force(scope)
    path = f"/api/v1/{tokens.SECRET}"
    async with running(file, THINGSBOARD + ESP, tokens=in_force, access="token") as receiver:
        assert (await send(receiver, f"{path}/attributes", b'{"a":1}')).status == 200
        body = b'{"ts":1777636800000,"values":{"t":21.5,"n":"12"}}'
        assert (await send(receiver, f"{path}/telemetry", body)).status == 200
        assert receiver.inlet.readings == [
            Reading(1777636800000000, "boiler", "t", 21.5),
            Reading(1777636800000000, "boiler", "n", 12.0),
        ]
        wrong = await send(receiver, f"/api/v1/{tokens.OTHER}/telemetry", body)
        assert (wrong.status, wrong.headers["www-authenticate"]) == (401, "Bearer")
        assert tokens.OTHER.encode() not in wrong.body
        outside = await send(receiver, X_API_Key=tokens.SECRET)
        assert outside.code == "outside_scope"
        await send(receiver, f"{path}/telemetry", b'{"t":"warm"}')
        (letter,) = receiver.dead_letters.letters
        assert tokens.SECRET not in repr(letter)
        assert (letter.sender, letter.devices) == ("garden", ("boiler",))
        assert ("/api/v1/{token}/telemetry", 200) in receiver.ledger.requests


async def test_device_of_another_token_is_not_allowed(file: Path) -> None:
    """Some of a post: dead letters. All of it: 403, and nothing is kept."""
    in_force = tokens.in_force(tokens.line(devices=("esp-*",)))
    async with running(file, tokens=in_force, access="token") as receiver:
        other = b'{"id":"other","t":1}'
        sent = f"Bearer {tokens.SECRET}"
        reply = await send(receiver, body=b"[%b,%b]" % (BODY, other), Authorization=sent)
        assert reply.document["accepted"] == 2
        assert [each.code for each in receiver.dead_letters.letters] == ["not_allowed"]
        assert (await send(receiver, body=other, Authorization=sent)).code == "outside_scope"


async def test_time_of_receipt_has_the_limits_of_all_times(file: Path) -> None:
    """Anybody may send the header. It is refused, so that no replay takes it for the time."""
    async with running(file) as receiver:
        for outside in (0, 99_999_999_999_999_999, f"{unix_us()},0"):
            reply = await send(receiver, X_Received_At=str(outside))
            assert (reply.status, reply.code) == (400, "bad_parameter")
        assert not receiver.inlet.readings + receiver.dead_letters.letters
        assert (await send(receiver, X_Received_At=str(unix_us()))).document["accepted"] == 2
    early = Letter(INVALID, "x", "", 0, original=BODY, format=MAPPED, source="/v1/in/esp")
    assert await replayed(early, file) == (0, {"ts_too_old": 1})
    late = early._replace(received_us=99_999_999_999_999_999)
    assert await replayed(late, file) == (2, {})  # with the time of the replay


async def test_own_path_gives_the_device(file: Path) -> None:
    """Also percent-encoded; AirGradient has a colon in it."""
    async with running(file, '[[source]]\npreset = "airgradient"\n') as receiver:
        target = "/sensors/airgradient:d8%2F1/measures"
        assert (await send(receiver, target, b'{"wifi":-46,"boot":3,"model":"x"}')).status == 200
        assert metrics(receiver) == [("d8/1", "wifi", -46.0)]
        assert (await send(receiver, "/sensors/airgradient:a/b/measures", b"{}")).status == 404


@pytest.mark.parametrize("where", ["header.x-sensor", "path.rest"])
async def test_bytes_of_the_head_that_are_not_utf_8_are_replaced(file: Path, where: str) -> None:
    """They are no fault of the service."""
    async with running(file, f'[[source]]\nname = "odd"\ndevice = "${where}"\n') as receiver:
        sent = b"POST /v1/in/odd/a%ff HTTP/1.1\r\nHost: x\r\nX-Sensor: a\xff\r\n"
        reply = await receiver.send(sent + b'Content-Length: 7\r\n\r\n{"t":1}')
        assert reply.status == 200
        assert metrics(receiver) == [("a\ufffd", "t", 1.0)]


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
        client = await receiver.connect()
        await client.send(head("POST", "/v1/in/esp", {"Content-Length": str(len(doc))}) + doc)
        await client.close()
        replies = await asyncio.gather(*(send(receiver, body=doc) for _ in range(4)))
        assert [each.document["accepted"] for each in replies] == [3_000] * 4
