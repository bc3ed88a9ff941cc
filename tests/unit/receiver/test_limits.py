"""One sender that sends too much, at a real port, and others beside it."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.receiver import (
    GOOD,
    OTHER,
    SECRET,
    Client,
    Receiver,
    Reply,
    in_force,
    line,
    post,
    put,
    running_receiver,
)

THIRD = "iot_" + "t" * 43


async def _send(
    receiver: Receiver, body: bytes = GOOD, *, token: str = "", came_from: str = ""
) -> Reply:
    client = await receiver.connect()
    headers = {"X-Forwarded-For": came_from} if came_from else {}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    await client.send(post(body, headers=headers))
    reply = await client.reply()
    await client.close()
    return reply


async def test_limits_of_a_token_come_before_the_settings() -> None:
    """Less, more and none; both live tokens of a name count together; a change counts at once."""
    slow: dict[str, Any] = {"posts_per_s_max": 0.01}  # of 300 s: three posts
    free: dict[str, Any] = {"posts_per_s_max": 0, "readings_per_s_max": 0}
    tokens = in_force(line(**slow), line(OTHER, **slow), line(THIRD, "yard", **free))
    async with running_receiver(
        tokens, sender_posts_per_s_max=0.02, sender_burst_s=300, sender_readings_per_s_max=0.02
    ) as receiver:
        told = [(await _send(receiver, token=each)).status for each in (SECRET, OTHER) * 3]
        assert told == [202] * 3 + [429] * 3
        assert {(await _send(receiver, token=THIRD)).status for _ in range(10)} == {202}
        put(tokens, line(posts_per_s_max=0.02), line(OTHER, **slow), line(THIRD, "yard"))
        assert (await _send(receiver, token=SECRET)).status == 202
        assert (await _send(receiver, token=OTHER)).status == 429
        told = [(await _send(receiver, token=THIRD)).status for _ in range(7)]
        assert told == [202] * 6 + [429]


async def test_limits_of_a_token_need_no_setting_and_are_shared_by_gateways() -> None:
    """Where others have no limit, too. A connection that changes hands gives its place back."""
    limits: dict[str, Any] = {
        "posts_per_s_max": 0.04,
        "readings_per_s_max": 1e9,
        "connections_max": 2,
    }
    tokens = in_force(line(**limits), line(OTHER, "yard"))
    async with running_receiver(tokens, gateways=2, sender_burst_s=100) as receiver:
        one, two = await receiver.connect(), await receiver.connect()

        async def sent(client: Client, token: str) -> int:
            await client.send(post(GOOD, headers={"Authorization": f"Bearer {token}"}))
            return (await client.reply()).status

        assert await sent(one, SECRET) == 202
        assert await sent(one, OTHER) == 202
        assert await sent(two, SECRET) == 202
        refused = await _send(receiver, token=SECRET)
        assert (refused.status, refused.code) == (429, "too_many_connections")
        assert await sent(two, SECRET) == 429, "half of 4 posts"
        assert {(await _send(receiver, token=OTHER)).status for _ in range(10)} == {202}


async def test_sender_uses_no_more_connections_than_it_may() -> None:
    """The one too many gets 429 and is closed. Another sender goes on; a closed one gives place."""
    tokens = in_force(line(), line(OTHER, "yard"))
    async with running_receiver(tokens, sender_connections_max=2) as receiver:
        headers = {"Authorization": f"Bearer {SECRET}"}
        clients = [await receiver.connect() for _ in range(3)]
        for _ in range(2):
            for client in clients[:2]:
                await client.send(post(GOOD, headers=headers))
                assert (await client.reply()).status == 202
        await clients[2].send(post(GOOD, headers=headers))
        refused = await clients[2].reply()
        assert (refused.status, refused.code) == (429, "too_many_connections")
        assert refused.headers["retry-after"] == "5"
        assert await clients[2].closed()
        assert (await _send(receiver, token=OTHER)).status == 202
        await clients[0].close()
        await asyncio.sleep(0.05)
        assert (await _send(receiver, token=SECRET)).status == 202
        # A connection counts for the sender of its last post.
        await clients[1].send(post(GOOD, headers={"Authorization": f"Bearer {OTHER}"}))
        assert (await clients[1].reply()).status == 202
        await asyncio.sleep(0.05)
        assert receiver.endpoint.senders._connections == {"token yard": 1}
        await clients[1].close()
        assert len(receiver.inlet.blocks) == 7
