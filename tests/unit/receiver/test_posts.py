"""Bounds the time in which a post is decoded: what is inside ends when the answer is due."""

from __future__ import annotations

import asyncio

import pytest

from ingest.model.errors import Refused
from ingest.receiver.posts import in_time
from ingest.system.clock import monotonic_s


async def test_what_takes_too_long_is_refused_and_may_be_sent_again() -> None:
    """Also if the answer was due before it began."""
    for left_s in (0.01, -1.0):
        with pytest.raises(Refused) as raised:
            async with in_time(monotonic_s() + left_s):
                await asyncio.sleep(10)
        assert (raised.value.code, raised.value.retry_after_s) == ("buffer_full", 2.0)


async def test_other_time_outs_and_a_cancelled_post_are_not_taken_for_this_one() -> None:
    """A sender must not be told that the service reads others if that is not so."""
    with pytest.raises(TimeoutError):
        async with in_time(monotonic_s() + 60):
            raise TimeoutError
    with pytest.raises(asyncio.CancelledError):
        async with in_time(monotonic_s() + 60):
            raise asyncio.CancelledError
