"""The pages for line protocol, over a real socket and fakes: answers, errors, limits, big posts."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from ingest.http.response import Answer
from ingest.model.errors import (
    BufferFull,
    DeadLettersBroken,
    DeadLettersFull,
    JournalBroken,
    Stopping,
)
from ingest.model.letter import LINE
from ingest.model.reading import Reading
from ingest.receiver.pages.line_stubs import DATABASES_MAX
from ingest.receiver.pages.lines import VERSION
from ingest.system.clock import monotonic_s
from tests.support import tokens
from tests.support.receiver import Receiver, Reply, head, running_receiver, until
from tests.support.ways import both_ways

TS = 1_750_000_000
LINE_A = b"cpu,host=h,cpu=cpu0 idle=1.5 %d" % TS
PATHS = ("/write", "/api/v2/write", "/api/v3/write_lp", "/influx/write", "/influx/api/v2/write")


async def write(
    receiver: Receiver,
    body: bytes,
    target: str = "/write",
    headers: dict[str, str] | None = None,
) -> Reply:
    """Post lines on a connection of their own."""
    sized = {"Content-Length": str(len(body)), **(headers or {})}
    return await receiver.send(head("POST", target, sized) + body)


@both_ways
@pytest.mark.parametrize("path", PATHS)
async def test_lines_are_kept_and_answered_with_204(path: str) -> None:
    """Without a body and without a Content-Length; whatever else the client says."""
    async with running_receiver() as receiver:
        target = f"{path}?db=x&rp=&org=o&bucket=b&consistency=any&u=user&zzz=1&precision=s"
        reply = await write(receiver, LINE_A, target, {"Content-Type": "image/png"})
        assert (reply.status, reply.body) == (204, b"")
        assert "content-length" not in reply.headers
        assert "content-type" not in reply.headers
        assert receiver.inlet.readings == [Reading(TS * 10**6, "h", "cpu.idle,cpu=cpu0", 1.5)]
        assert receiver.ledger.requests[path, 204] == 1


@both_ways
async def test_connection_stays_open_after_a_204() -> None:
    """Two posts and a probe on one connection, sent at once."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        post = head("POST", "/write", {"Content-Length": str(len(LINE_A))}) + LINE_A
        await client.send(post + post + head("GET", "/ping"))
        assert [(await client.reply()).status for _ in range(3)] == [204, 204, 204]


@pytest.mark.parametrize("body", [b"", b"\n", b"# nothing", b'm,host=h text="only"'])
async def test_body_without_readings_is_204(body: bytes) -> None:
    """Home Assistant sends an empty one when it is set up."""
    async with running_receiver() as receiver:
        assert (await write(receiver, body)).status == 204
        assert receiver.inlet.blocks == []
        assert receiver.ledger.line_fields["text_ignored"] == body.count(b"text")


async def test_rounded_integers_are_counted() -> None:
    """They are stored, and no error."""
    async with running_receiver() as receiver:
        assert (await write(receiver, b"m,host=h a=9007199254740993i,b=1i")).status == 204
        assert receiver.ledger.line_fields["integer_rounded"] == 1


async def test_chunked_and_compressed_bodies_are_read() -> None:
    """Telegraf sends both at once."""
    packed = gzip.compress(LINE_A)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)
    headers = {"Transfer-Encoding": "chunked", "Content-Encoding": "gzip"}
    async with running_receiver() as receiver:
        reply = await receiver.send(head("POST", "/write", headers) + chunked)
        assert reply.status == 204
        assert len(receiver.inlet.readings) == 1
        assert (await write(receiver, b"x", headers={"Content-Encoding": "br"})).status == 415


@pytest.mark.parametrize(
    ("query", "stamp"),
    [
        ("", b"%d" % TS),
        ("precision=ns", b"%d000000000" % TS),
        ("precision=n", b"%d000000000" % TS),
        ("precision=nanosecond", b"%d000000000" % TS),
        ("precision=u", b"%d000000" % TS),
        ("precision=us", b"%d000000" % TS),
        ("precision=%C2%B5", b"%d000000" % TS),
        ("precision=microsecond", b"%d000000" % TS),
        ("precision=ms", b"%d000" % TS),
        ("precision=millisecond", b"%d000" % TS),
        ("precision=second", b"%d" % TS),
        ("precision=auto", b"%d000" % TS),
        ("precision=m", b"%d" % (TS // 60)),
        ("precision=h", b"%d" % (TS // 3600)),
        ("precision=s", b"%d000000000n" % TS),  # as QuestDB's client writes it
        ("", b"%d000000t" % TS),
        ("precision=ns", b"%d000m" % TS),
    ],
)
async def test_precision_of_all_dialects(query: str, stamp: bytes) -> None:
    """Of InfluxDB 1, 2 and 3; without one by magnitude."""
    async with running_receiver() as receiver:
        assert (await write(receiver, b"m,host=h a=1 " + stamp, f"/write?{query}")).status == 204
        (reading,) = receiver.inlet.readings
        assert TS - 3_600 < reading.ts_us / 10**6 <= TS


async def test_faulty_lines_are_dead_lettered_with_their_defaults() -> None:
    """The others are kept, and the answer is 204."""
    async with running_receiver(line_prefix=True) as receiver:
        body = b"m a=1 5\n" + LINE_A + b"\nm,host=h a=nan,b=2 %d\n" % (TS // 60)
        reply = await write(receiver, body, "/api/v2/write?bucket=my.db&precision=m")
        assert reply.status == 204
        assert [each.metric for each in receiver.inlet.readings] == [r"my\.db.m.b"]
        first, *_ = letters = receiver.dead_letters.letters
        assert [(each.code, each.item) for each in letters] == [
            ("no_device", 0),
            ("ts_in_future", 1),
            ("value_out_of_range", 2),
        ]
        assert letters[2].original == b"m,host=h a=nan %d" % (TS // 60)
        assert {(each.format, each.source, each.precision, each.prefix) for each in letters} == {
            (LINE, "/api/v2/write", "m", "my.db")
        }
        assert first.received_us > 0
        assert receiver.ledger.received == 4


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"m,host=h a=nan", "line 1: nan is not a finite number"),
        (b'm,host=h t="x"\nm,host=h a=1 5', "1 faulty line, and no reading; line 2"),
        (b"m,host=h\t a=1\nm,host= a=1\nm,host=h a=18446744073709551616u", "3 faulty lines"),
    ],
)
async def test_post_without_a_reading_is_refused(body: bytes, says: str) -> None:
    """Nothing of it is kept, so its sender must hear of it."""
    async with running_receiver() as receiver:
        reply = await write(receiver, body)
        assert (reply.status, reply.document["problem"]) == (400, "all_invalid")
        assert says in reply.document["message"]
        assert reply.document["line"] == reply.document["data"][0]["line_number"]
        assert not receiver.dead_letters.letters
        assert receiver.ledger.received == receiver.ledger.at_receiver == 0


async def test_lines_without_a_device_are_dead_letters_all_the_same() -> None:
    """They can be replayed with another setting; a sender with one line a post would lose each."""
    async with running_receiver() as receiver:
        assert (await write(receiver, b"m a=1")).status == 204
        assert (await write(receiver, b"m a=1\nm,host=h a=nan")).status == 204
        assert [each.code for each in receiver.dead_letters.letters] == [
            *("no_device", "no_device", "value_out_of_range")
        ]


@pytest.mark.parametrize("kind", [b"\x0e", b"\x10", b"\x17"])
async def test_binary_values_of_questdb_refuse_the_post(kind: bytes) -> None:
    """Its client keeps the rows; as dead letters they could never be replayed."""
    async with running_receiver() as receiver:
        for line in (b'm,host=h f==%b\n =,"\xff\\ 5n\n', b"m a=1i,f==%b\0\0\0\0\0\0\xf0? 5n\n"):
            body = LINE_A + b"\n" + line % kind + LINE_A
            reply = await write(receiver, body)
            assert (reply.status, reply.document["problem"]) == (400, "not_lines")
            assert "protocol_version=1" in reply.document["message"]
        assert not receiver.dead_letters.letters
        assert not receiver.inlet.blocks


async def test_backslashes_are_read_as_the_setting_says() -> None:
    """As InfluxDB has it, two are two; QuestDB's client writes one as two."""
    body = b"m,host=a\\\\b a=1"
    for setting, device in (("influxdb", "a\\\\b"), ("questdb", "a\\b")):
        async with running_receiver(line_escapes=setting) as receiver:
            assert (await write(receiver, body)).status == 204
            assert [each.device_id for each in receiver.inlet.readings] == [device]


@pytest.mark.parametrize("query", ["strict=true", "accept_partial=false"])
async def test_all_or_nothing_keeps_nothing(query: str) -> None:
    """The answer names the lines in the form of InfluxDB 3."""
    async with running_receiver() as receiver:
        reply = await write(receiver, LINE_A + b"\nm a=1\n", f"/api/v3/write_lp?{query}")
        assert (reply.status, reply.headers["content-type"]) == (400, "application/json")
        document = reply.document
        assert document["problem"] == "invalid_items"
        assert document["error"] == document["message"] != ""
        assert document["code"] == "invalid"
        assert document["line"] == 2
        (entry,) = document["data"]
        assert entry["line_number"] == 2
        assert entry["original_line"] == "m a=1"
        assert entry["error_message"]
        assert not receiver.inlet.blocks
        assert not receiver.dead_letters.letters
        assert (await write(receiver, LINE_A, f"/write?{query}")).status == 204


@pytest.mark.parametrize(
    ("target", "body", "status", "problem"),
    [
        ("/write", b'{"a": 1}', 400, "not_lines"),
        ("/write?precision=x", LINE_A, 400, "bad_parameter"),
        ("/write?ack=x", LINE_A, 400, "bad_parameter"),
        ("/write?ack=durable", LINE_A, 400, "ack_unavailable"),
        ("/write", b"m,host=h " + b",".join([b"a=1"] * 251), 413, "too_many_readings"),
        ("/write", b"x\n" * 200, 400, "not_lines"),
        ("/write", b"m,host=h a=1 " + b" " * 3_000, 413, "body_too_large"),
    ],
)
async def test_refusal_has_a_body_that_all_parsers_read(
    target: str, body: bytes, status: int, problem: str
) -> None:
    """JSON, never a problem document; nothing is kept."""
    async with running_receiver(line_rows_max=250, line_bytes_max=2_048) as receiver:
        reply = await write(receiver, body, target)
        assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
        document = reply.document
        assert document["problem"] == problem
        assert {"error", "code", "message"} <= document.keys()
        assert not receiver.inlet.blocks
        assert not receiver.dead_letters.letters


@pytest.mark.parametrize(
    ("error", "problem"),
    [(BufferFull(3.0), "buffer_full"), (Stopping("x"), "draining")],
)
async def test_what_can_be_sent_again_is_503(error: Exception, problem: str) -> None:
    """Never a 4xx; and no Retry-After for the client that reads it as milliseconds."""
    async with running_receiver(answer_s_max=0.2) as receiver:
        receiver.inlet.error = error
        reply = await write(receiver, LINE_A)
        assert (reply.status, reply.document["problem"]) == (503, problem)
        assert int(reply.headers["retry-after"]) >= 1
        agent = {"User-Agent": "influxdb-client-js/1.33.2"}
        reply = await write(receiver, LINE_A, headers=agent)
        assert (reply.status, reply.document["code"]) == (503, "unavailable")
        assert "retry-after" not in reply.headers
        assert receiver.ledger.rejected[problem] == 2


async def test_journal_that_fails_is_503() -> None:
    """The block was put, and is not kept."""
    async with running_receiver() as receiver:
        receiver.inlet.put_error = JournalBroken("disk")
        assert (await write(receiver, LINE_A + b'\nm,host=h a="text",b=1i')).status == 503
        assert receiver.ledger.rejected["disk_low"] == 2
        assert not receiver.ledger.line_fields["text_ignored"]  # the post comes again


async def test_body_that_does_not_come_is_503() -> None:
    """408 would make Telegraf drop it."""
    async with running_receiver(body_s_max=0.05) as receiver:
        reply = await receiver.send(head("POST", "/write", {"Content-Length": "9"}) + b"m")
        assert (reply.status, reply.document["problem"]) == (503, "body_timeout")
        assert int(reply.headers["retry-after"]) >= 1


async def test_post_without_room_is_refused_in_time() -> None:
    """Nothing of it is kept, also not later."""
    async with running_receiver(answer_s_max=0.3) as receiver:
        receiver.inlet.open.clear()
        reply = await write(receiver, LINE_A)
        assert (reply.status, reply.document["problem"]) == (503, "buffer_full")
        await until(lambda: receiver.inlet.waiting == 0)
        receiver.inlet.open.set()
        assert (await write(receiver, LINE_A)).status == 204
        assert len(receiver.inlet.blocks) == 1
        assert receiver.ledger.rejected["buffer_full"] == 1


async def test_post_whose_outcome_is_not_known_in_time_goes_on() -> None:
    """It has its room, but the disk is slow. It is kept after the answer."""
    async with running_receiver(answer_s_max=0.2) as receiver:
        receiver.dead_letters.open.clear()
        reply = await write(receiver, LINE_A + b"\nm a=1")
        assert (reply.status, reply.document["problem"]) == (503, "outcome_unknown")
        receiver.dead_letters.open.set()
        await receiver.blocks(1)
        await until(lambda: receiver.ledger.accepted == 1)


async def test_large_post_counts_until_all_of_it_is_kept() -> None:
    """Also when it was answered before, or its client is gone."""
    large = (b"#" * 999 + b"\n") * 1_100 + LINE_A + b"\nm a=1\n"
    async with running_receiver(answer_s_max=0.5) as receiver:
        receiver.dead_letters.open.clear()
        answers = await asyncio.gather(write(receiver, large), write(receiver, large))
        assert {each.document["problem"] for each in answers} == {"outcome_unknown"}
        reply = await write(receiver, large)
        assert (reply.status, reply.document["problem"]) == (503, "buffer_full")
        receiver.dead_letters.open.set()
        await until(lambda: receiver.ledger.accepted == 2)
        assert (await write(receiver, large)).status == 204


async def test_lines_are_received_when_their_body_ends() -> None:
    """Else the blocks of a slow client would end the messages of others in a gateway."""
    async with running_receiver() as receiver:
        client = await receiver.connect()
        expects = {"Content-Length": str(len(LINE_A)), "Expect": "100-continue"}
        await client.send(head("POST", "/write", expects))
        assert (await client.reply()).status == 100
        middle_s = monotonic_s()
        await client.send(LINE_A)
        assert (await client.reply()).status == 204
        (block,) = receiver.inlet.blocks
        assert block.received_s >= middle_s


async def test_good_lines_are_kept_beside_any_number_of_faulty_ones() -> None:
    """Some of these are dead letters, and more are counted."""
    async with running_receiver() as receiver:
        faulty = 300
        assert (await write(receiver, b"m,host=h v=NaN\n" * faulty + LINE_A)).status == 204
        assert len(receiver.inlet.readings) == 1
        letters = len(receiver.dead_letters.letters)
        assert 100 < letters < faulty
        assert receiver.ledger.rejected["not_kept"] == faulty - letters
        assert receiver.ledger.posts_refused["not_kept"] == 1
        assert receiver.ledger.received == faulty + 1


async def test_question_of_anybody_is_small() -> None:
    """Nobody needs a token for it."""
    async with running_receiver() as receiver:
        reply = await write(receiver, b"q=" + b"x" * 5_000, "/query")
        assert (reply.status, reply.document["problem"]) == (413, "body_too_large")
        packed = gzip.compress(b"q=" + b"x" * 5_000)
        reply = await write(receiver, packed, "/query", {"Content-Encoding": "gzip"})
        assert (reply.status, reply.document["problem"]) == (413, "inflated_too_large")
        for reply in (
            await write(receiver, b"a=1&" * 20, "/query"),
            await receiver.send(head("GET", "/ping?" + "a=1&" * 20)),
        ):
            assert (reply.status, reply.document["problem"]) == (400, "bad_parameter")


async def test_lines_that_cannot_be_dead_lettered_cost_the_others_nothing() -> None:
    """They are counted as not kept; the answer is 204."""
    async with running_receiver() as receiver:
        receiver.dead_letters.error = DeadLettersFull("full")
        assert (await write(receiver, LINE_A + b"\nm a=1")).status == 204
        assert len(receiver.inlet.readings) == 1
        assert receiver.ledger.rejected["not_kept"] == 1
        assert receiver.ledger.posts_refused["not_kept"] == 1
        receiver.dead_letters.error = DeadLettersBroken("disk")
        reply = await write(receiver, LINE_A + b"\nm a=1")
        assert (reply.status, reply.document["problem"]) == (503, "disk_low")
        assert len(receiver.inlet.readings) == 1


async def test_large_post_is_kept_in_blocks_or_not_at_all() -> None:
    """Its blocks have at most `post_rows_max` rows; one receipt time for all."""
    lines = b"\n".join(b"m,host=h%d a=%d" % (i % 9, i) for i in range(1_000))
    async with running_receiver(
        post_rows_max=300, batch_rows_max=300, answer_s_max=1.0
    ) as receiver:
        assert (await write(receiver, lines)).status == 204
        assert [block.rows for block in receiver.inlet.blocks] == [300, 300, 300, 100]
        assert [each.value for each in receiver.inlet.readings] == [*range(1_000)]
        assert len({block.received_us for block in receiver.inlet.blocks}) == 1
        receiver.inlet.error = BufferFull(1.0)
        assert (await write(receiver, lines, "/write?ack=buffered")).status == 503
        assert len(receiver.inlet.blocks) == 4


async def test_only_two_large_posts_are_in_work() -> None:
    """Others get 503 at once; small ones are taken."""
    large = b"m,host=h a=1\n" * 90_000
    async with running_receiver() as receiver:
        receiver.inlet.open.clear()
        waiting = [asyncio.create_task(write(receiver, large)) for _ in range(2)]
        await until(lambda: receiver.ledger.received == 180_000)
        reply = await write(receiver, large)
        assert (reply.status, reply.document["problem"]) == (503, "buffer_full")
        receiver.inlet.open.set()
        assert [(await each).status for each in waiting] == [204, 204]
        assert (await write(receiver, LINE_A)).status == 204


@pytest.mark.parametrize("prefix", ["", "/influx"])
async def test_questions_before_writing_are_answered(prefix: str) -> None:
    """As InfluxDB 1.8 answers them."""
    async with running_receiver() as receiver:
        for method in ("GET", "HEAD"):
            client = await receiver.connect()
            await client.send(head(method, f"{prefix}/ping"))
            reply = await client.reply(head_only=method == "HEAD")
            assert (reply.status, reply.headers["x-influxdb-version"]) == (204, VERSION)
            assert reply.headers["x-influxdb-build"] == "OSS"
        reply = await receiver.send(head("GET", f"{prefix}/ping?verbose=true"))
        assert (reply.status, reply.document) == (200, {"version": VERSION})
        reply = await receiver.send(head("GET", f"{prefix}/health"))
        assert reply.status == 503  # the receiver of this test is full
        assert (reply.document["name"], reply.document["status"]) == ("influxdb", "fail")
        created = {"results": [{"statement_id": 0}]}
        reply = await receiver.send(head("GET", f"{prefix}/query?q=CREATE%20DATABASE%20x"))
        assert (reply.status, reply.document) == (200, created)
        reply = await write(receiver, b"q=create+database+%22x%22", f"{prefix}/query?db=")
        assert (reply.status, reply.document) == (200, created)
        reply = await write(receiver, b"", f"{prefix}/query?q=SHOW+DATABASES")
        (series,) = reply.document["results"][0]["series"]
        assert (series["columns"], series["values"]) == (["name"], [["x"]])
        for asked in (b"CREATE+RETENTION+POLICY+x+ON+y", b"alter+retention+policy+x+on+y"):
            reply = await write(receiver, b"q=" + asked, f"{prefix}/query")
            assert (reply.status, reply.document) == (200, created)
        reply = await write(receiver, b"q=select+1", f"{prefix}/query")
        assert (reply.status, "error" in reply.document) == (400, True)
        reply = await receiver.send(head("GET", f"{prefix}/settings"))
        assert reply.document["config"]["line.proto.support.versions"] == [1]
        for method, path in (("GET", "/ready"), ("GET", "/api/v2/orgs"), ("POST", "/api/v2/setup")):
            reply = await receiver.send(head(method, prefix + path, {"Content-Length": "0"}))
            assert (reply.status, reply.document["code"]) == (404, "not found")
            assert "/health says" in reply.document["message"]


async def test_names_of_databases_are_bounded() -> None:
    """Nobody needs a token to make one; a name may be anything."""
    async with running_receiver() as receiver:
        for name in (*map(str, range(DATABASES_MAX)), "%ff%ed%a0%80", "%22x", ""):
            reply = await receiver.send(head("GET", f"/query?q=create+database+{name}"))
            assert reply.status == 200
        reply = await write(receiver, b"", "/query?q=SHOW+DATABASES")
        (series,) = reply.document["results"][0]["series"]
        assert len(series["values"]) == DATABASES_MAX


async def test_wrong_method_is_told_in_the_same_form() -> None:
    """With the methods that are allowed."""
    async with running_receiver() as receiver:
        reply = await receiver.send(head("GET", "/write"))
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
        assert json.loads(reply.body)["code"] == "method not allowed"


def test_answer_without_content_has_no_size() -> None:
    """RFC 9110 forbids Content-Length in a 204."""
    text = Answer(204, b"", headers=b"A: b\r\n").rendered(b"Connection: close\r\n")
    assert text.startswith(b"HTTP/1.1 204 No Content\r\nDate: ")
    assert text.endswith(b"\r\nA: b\r\nConnection: close\r\n\r\n")
    assert b"Content-" not in text


async def test_client_that_is_gone_does_not_stop_a_decoded_post() -> None:
    """It may never send it again."""
    async with running_receiver() as receiver:
        receiver.inlet.open.clear()
        client = await receiver.connect()
        await client.send(head("POST", "/write", {"Content-Length": str(len(LINE_A))}) + LINE_A)
        await until(lambda: receiver.inlet.waiting == 1)
        await client.close()
        receiver.inlet.open.set()
        await receiver.blocks(1)
        await until(lambda: receiver.ledger.accepted == 1)


async def test_token_is_needed_and_gives_its_device() -> None:
    """Each client sends it in its own way; a wrong one is 401 in the form of these paths."""
    in_force = tokens.in_force(tokens.line(device="gateway"))
    async with running_receiver(in_force) as receiver:
        reply = await write(receiver, LINE_A, "/api/v2/write?bucket=b")
        assert (reply.status, reply.document["code"]) == (401, "unauthorized")
        assert "www-authenticate" in reply.headers
        for target, headers in (
            (f"/write?db=x&u=x&p={tokens.SECRET}", {}),
            ("/api/v2/write?bucket=b", {"Authorization": f"Token {tokens.SECRET}"}),
            ("/api/v3/write_lp?db=b", {"Authorization": f"Bearer {tokens.SECRET}"}),
        ):
            assert (await write(receiver, b"m a=1\n", target, headers)).status == 204
        assert {each.device_id for each in receiver.inlet.readings} == {"gateway"}
        assert {each.sender for each in receiver.inlet.blocks} == {"token garden"}
        faulty = await write(receiver, b"m a=1\nm a=nan", f"/write?p={tokens.SECRET}")
        assert faulty.status == 204
        (letter,) = receiver.dead_letters.letters
        assert letter.device == "gateway"
        assert (await receiver.send(head("GET", "/ping"))).status == 204


async def test_token_is_bound_to_its_devices_and_pages() -> None:
    """Lines of other devices are dead letters; a post of them only is 403, and nothing is kept."""
    scoped = tokens.in_force(
        tokens.line(devices=("h",)), tokens.line(tokens.OTHER, name="json", sources=("readings",))
    )
    async with running_receiver(scoped) as receiver:
        target = f"/write?p={tokens.SECRET}"
        assert (await write(receiver, b"m,host=h a=1\nm,host=x a=2", target)).status == 204
        (letter,) = receiver.dead_letters.letters
        assert (letter.code, letter.sender, letter.devices) == (
            "not_allowed",
            "garden",
            ("h",),
        )
        reply = await write(receiver, b"m,host=x a=2", target)
        assert (reply.status, reply.document["problem"]) == (403, "outside_scope")
        reply = await write(receiver, LINE_A, f"/write?p={tokens.OTHER}")
        assert (reply.status, reply.document["problem"]) == (403, "outside_scope")
        assert len(receiver.dead_letters.letters) == len(receiver.inlet.readings) == 1


async def test_sender_that_is_too_fast_gets_503() -> None:
    """429 would make Telegraf drop its batch."""
    async with running_receiver(sender_readings_per_s_max=1.0, sender_burst_s=1.0) as receiver:
        assert (await write(receiver, b"m,host=h a=1,b=2,c=3,d=4")).status == 204
        reply = await write(receiver, LINE_A)
        assert (reply.status, reply.document["problem"]) == (503, "too_fast")
        assert int(reply.headers["retry-after"]) >= 1


async def test_post_that_never_fits_the_journal_is_not_told_to_come_again() -> None:
    """Half of the journal holds all readings of one post at most."""
    lines = b"\n".join(b"m,host=h a%d=1" % number for number in range(4_000))
    async with running_receiver(journal_bytes_max=128 * 1024) as receiver:
        reply = await write(receiver, lines)
        assert (reply.status, reply.document["problem"]) == (413, "body_too_large")
