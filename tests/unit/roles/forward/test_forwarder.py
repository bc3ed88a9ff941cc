"""What the path of messages through a forwarder must do, and which answers refuse a post."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ingest.http_client.client import HttpClient, Target, retry_after_s
from ingest.roles.forward import forwarder
from ingest.roles.forward.forwarder import Forwarder, ForwardTally, TargetSender, is_refusal
from ingest.roles.forward.posts import Filters, PostLimits


class BrokenPuller:
    """A consumer with a bug."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()

    def working(self, _deliveries: object) -> None:
        """Fail."""
        raise ZeroDivisionError


async def test_messages_that_nobody_keeps_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the broker would send each one again and again, and nobody would be told."""
    monkeypatch.setattr(forwarder, "WORKING_S", 0.001)
    target = Target("http://127.0.0.1:1/", "a target")
    client = HttpClient(target, connections_max=1, connect_s_max=1, answer_s_max=1)
    try:
        tally, unused, puller = ForwardTally(), dict[str, Any](), BrokenPuller()
        sender = TargetSender(client, unused, tally, sign=lambda *_: {}, retry_s_max=1)  # type: ignore[arg-type]
        limits = PostLimits(1, 1)
        path = Forwarder(sender, puller, tally, filters=Filters(), limits=limits, in_flight=2)  # type: ignore[arg-type]
        stopping = asyncio.Event()
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(5):
                await path.run(stopping, asyncio.Event(), 0)
        assert stopping.is_set()
    finally:
        await client.close()


NOW_S = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("statuses", "refused"),
    [
        ((408, 425, 429, 500, 502, 503, 599, 600, 999, 100, 101), False),
        ((300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 410, 413, 422), True),
    ],
)
def test_meaning_of_a_status(statuses: tuple[int, ...], refused: bool) -> None:
    """Only what speaks of this moment is tried again."""
    assert {is_refusal(each) for each in statuses} == {refused}


@pytest.mark.parametrize(
    ("text", "pause_s"),
    [
        ("0", 0),
        (" 7 ", 7),
        ("999999", 60),
        ("9" * 5_000, 60),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30),
        ("Tue, 14 Nov 2023 22:13:50 -0000", 30),
        ("Tue, 14 Nov 2023 23:13:50 +0100", 30),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60),
        ("", 0),
        ("-1", 0),
        ("1.5", 0),
        ("٣", 0),
        ("soon", 0),
        ("Tue, 99 Nov 2023", 0),
        ("\x00\xff", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_has_a_bound(text: str, pause_s: float) -> None:
    """What cannot be read asks for nothing."""
    assert retry_after_s(text, NOW_S, 60) == pytest.approx(pause_s)
