"""What an attacker tries to post without a token, or to learn one. Each has a right one nearby."""

from __future__ import annotations

import hmac
import json
import resource
from pathlib import Path

import pytest
import structlog

from ingest.access import token_lines as entries_module
from ingest.access import tokens as tokens_module
from ingest.admin.guard import Guard
from ingest.app.metrics_and_causes import own_metrics
from tests.support.receiver import GOOD, Receiver, post, running_receiver
from tests.support.tokens import OTHER, SECRET, in_force, line


def request(target: str, *lines: str, body: bytes = GOOD) -> bytes:
    """Return a post to a target with these further header lines, as they are."""
    sized = ("Host: door", "Content-Type: application/json", f"Content-Length: {len(body)}")
    head = "\r\n".join((f"POST {target} HTTP/1.1", *sized, *lines))
    return head.encode("latin-1") + b"\r\n\r\n" + body


async def test_no_token_is_in_log_page_or_metric() -> None:
    """Right and wrong ones, in each place, kept and refused."""
    with structlog.testing.capture_logs() as lines:
        async with running_receiver(in_force(line())) as receiver:
            for token in (SECRET, OTHER):
                for query in ("", f"?p={token}", f"?p={token}&unknown=1", f"?p={token}&p={token}"):
                    for header in ({}, {"Authorization": f"Bearer {token}"}, {"X-API-Key": token}):
                        await receiver.post(GOOD, query, header)
                        await receiver.post(b"[", query, header)
                await receiver.send(request(f"/none/{token}?p={token}"))
                await receiver.send(f"NOT HTTP {token}\r\n\r\n".encode())
            shown = [
                own_metrics(receiver.ledger).text().decode(),
                json.dumps(receiver.refused_posts.listed()),
                repr(receiver.ledger.senders.keys()),
                repr(lines),
            ]
    for text in shown:
        assert SECRET not in text
        assert OTHER not in text
    assert "token garden" in shown[2]


def test_work_for_a_wrong_token_does_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is hashed whole, once, and only digests are looked up; the guard compares in full."""
    tokens, hashed, compared = in_force(line(), line(OTHER)), list[str](), list[bytes]()
    digest_of, compare = entries_module.digest_of, hmac.compare_digest

    def counting(token: str) -> str:
        hashed.append(token)
        return digest_of(token)

    def comparing(given: bytes, wanted: bytes) -> bool:
        compared.append(given)
        return compare(given, wanted)

    monkeypatch.setattr(tokens_module, "digest_of", counting)
    monkeypatch.setattr(hmac, "compare_digest", comparing)
    wrong = ["", "x", SECRET[:-1], SECRET[:-1] + "x", "x" + SECRET[1:], "x" * 5_000, "é"]
    assert not any(map(tokens.find, wrong))
    assert hashed == wrong
    guard = Guard("the admin token of it", tokens=tokens)
    hashed.clear()
    assert not any(guard.log_in(each) for each in (*wrong, SECRET))
    assert hashed == [*wrong, SECRET]
    assert compared == [each.encode() for each in hashed]


async def post_wrong_ones(receiver: Receiver, first: int, count: int) -> None:
    """Post with so many distinct wrong tokens, over one connection."""
    client = await receiver.connect()
    at_once = 50
    for start in range(first, first + count, at_once):
        tokens = (f"iot_{at:043}" for at in range(start, start + at_once))
        await client.send(
            b"".join(post(GOOD, headers={"Authorization": f"Bearer {each}"}) for each in tokens)
        )
        for _ in range(at_once):
            assert (await client.reply()).status == 401
    await client.close()


@pytest.mark.parametrize(
    "count", [6_000, pytest.param(200_000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
async def test_memory_is_flat_under_distinct_wrong_tokens(count: int) -> None:
    """Heads, plans, counts and refused posts are bounded: most of it is there after the first."""
    async with running_receiver(in_force(line())) as receiver:
        await post_wrong_ones(receiver, 0, 4_000)
        before_bytes = resident_bytes()
        await post_wrong_ones(receiver, 4_000, count)
        grown_bytes = resident_bytes() - before_bytes
        assert receiver.ledger.posts_refused == {"unauthorized": 4_000 + count}
    assert grown_bytes < 8 * 1024**2


def resident_bytes() -> int:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
