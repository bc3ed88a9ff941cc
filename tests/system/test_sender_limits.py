"""One sender that sends ten times what it may, beside fifty that keep to their limit."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from ingest.access.token_lines import append_lines
from tests.support.receiver import Client, line, post
from tests.system.service import Service

POSTS_PER_S = 20
POLITE, GREEDY_CONNECTIONS = 50, 10
PHASE_S = 4.0
TRIES = 3


class Devices:
    """Posts of one phase: their statuses, and the times that the polite ones took."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.polite, self.greedy = Counter[int](), Counter[int]()
        self.took_s: list[float] = []
        self._ts = time.time_ns() // 1_000_000

    async def _post_all(self, token: str, per_s: float, began_s: float, *, greedy: bool) -> None:
        client = await Client.connect(self._address)
        headers = {"Authorization": f"Bearer {token}"}
        offset_s = hash(token) % 1000 / 1000 / per_s
        for number in range(int(PHASE_S * per_s)):
            due_s = began_s + offset_s + number / per_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            self._ts += 1
            reading = b'{"device_id":"%b","metric":"m","ts":%d,"value":1}'
            sent_s = time.monotonic()
            await client.send(post(reading % (token[-8:].encode(), self._ts), headers=headers))
            status = (await client.reply()).status
            if greedy:
                self.greedy[status] += 1
            else:
                self.polite[status] += 1
                self.took_s.append(time.monotonic() - sent_s)
        await client.close()

    async def post(self, *, with_greedy: bool) -> float:
        """Post for a phase; return the p99 of the polite ones, in seconds."""
        self.took_s = []
        began_s = time.monotonic() + 0.2
        async with asyncio.TaskGroup() as tasks:
            for number in range(POLITE):
                tasks.create_task(
                    self._post_all(secret(number), 0.95 * POSTS_PER_S, began_s, greedy=False)
                )
            for _ in range(GREEDY_CONNECTIONS if with_greedy else 0):
                tasks.create_task(self._post_all(secret(POLITE), POSTS_PER_S, began_s, greedy=True))
        return sorted(self.took_s)[int(0.99 * len(self.took_s))]


def secret(number: int) -> str:
    """Return the token of a sender."""
    return f"iot_{number:043}"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(150)
async def test_greedy_sender_costs_the_others_nothing(open_tmp_path: Path) -> None:
    """None of theirs is refused, and their p99 stays within twice; it gets about what it may."""
    lines = [line(secret(at), f"n{at}") for at in range(POLITE + 1)]
    append_lines(open_tmp_path / "tokens", b"".join(lines))
    async with Service(
        open_tmp_path, sender_posts_per_s_max=POSTS_PER_S, sender_burst_s=1
    ) as service:
        await service.wait_state("accepting")
        devices = Devices(service.url.removeprefix("http://"))
        found: list[tuple[float, float]] = []
        for _ in range(TRIES):  # other work of this machine may fall into one of the two
            before_s = await devices.post(with_greedy=False)
            beside_s = await devices.post(with_greedy=True)
            found.append((before_s, beside_s))
            if beside_s <= 2 * before_s:
                break
        else:
            pytest.fail(f"p99 alone and beside it, in seconds: {found}")
        assert set(devices.polite) == {202}
        rounds = len(found)
        posted = int(PHASE_S * POSTS_PER_S) * GREEDY_CONNECTIONS * rounds
        assert devices.greedy.total() == posted
        assert set(devices.greedy) == {202, 429}
        may_s = (PHASE_S + 1) * rounds  # and the burst
        assert devices.greedy[202] <= 1.3 * POSTS_PER_S * may_s
        assert devices.greedy[202] >= 0.7 * POSTS_PER_S * PHASE_S * rounds
        assert (await service.metrics())['ingest_posts_refused_total{code="too_fast"}'] > 0
        senders = (await service.request("GET", service.admin_url + "/senders")).document["senders"]
        assert all(each["sender"].startswith("token n") for each in senders)
