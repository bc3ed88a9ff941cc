"""The pages for line protocol, over a real socket and fakes: answers, errors, limits, big posts."""

from __future__ import annotations

import asyncio

from ingest.http.request_and_answer import Answer
from ingest.model.errors import BufferFull
from ingest.receiver.pages.lines import DATABASES_MAX
from ingest.system.clock import monotonic_s
from tests.support.receiver import Receiver, Reply, head, running_receiver, until
from tests.unit.receiver.rows_lines import LINE_A


async def write(
    receiver: Receiver,
    body: bytes,
    target: str = "/write",
    headers: dict[str, str] | None = None,
) -> Reply:
    """Post lines on a connection of their own."""
    sized = {"Content-Length": str(len(body)), **(headers or {})}
    return await receiver.send(head("POST", target, sized) + body)


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


async def test_names_of_databases_are_bounded() -> None:
    """Nobody needs a token to make one; a name may be anything."""
    async with running_receiver() as receiver:
        for name in (*map(str, range(DATABASES_MAX)), "%ff%ed%a0%80", "%22x", ""):
            reply = await receiver.send(head("GET", f"/query?q=create+database+{name}"))
            assert reply.status == 200
        reply = await write(receiver, b"", "/query?q=SHOW+DATABASES")
        (series,) = reply.document["results"][0]["series"]
        assert len(series["values"]) == DATABASES_MAX


def test_answer_without_content_has_no_size() -> None:
    """RFC 9110 forbids Content-Length in a 204."""
    text = Answer(204, b"", headers=b"A: b\r\n").rendered(b"Connection: close\r\n")
    assert text.startswith(b"HTTP/1.1 204 No Content\r\nDate: ")
    assert text.endswith(b"\r\nA: b\r\nConnection: close\r\n\r\n")
    assert b"Content-" not in text


async def test_client_that_is_gone_does_not_stop_a_decoded_post() -> None:
    """It may never send it again."""
    async with running_receiver() as receiver:
        client = await receiver.waits(
            head("POST", "/write", {"Content-Length": str(len(LINE_A))}) + LINE_A
        )
        await client.close()
        receiver.inlet.open.set()
        await receiver.blocks(1)
        await until(lambda: receiver.ledger.accepted == 1)


async def test_post_that_never_fits_the_journal_is_not_told_to_come_again() -> None:
    """Half of the journal holds all readings of one post at most."""
    lines = b"\n".join(b"m,host=h a%d=1" % number for number in range(4_000))
    async with running_receiver(journal_bytes_max=128 * 1024) as receiver:
        reply = await write(receiver, lines)
        assert (reply.status, reply.document["problem"]) == (413, "body_too_large")
