"""The path of messages through a forwarder: what ends its run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ingest.http_client.client import HttpClient, Target
from ingest.roles.forward import forwarder
from ingest.roles.forward.forwarder import Forwarder, TargetSender
from ingest.roles.forward.lag import ForwardTally
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
