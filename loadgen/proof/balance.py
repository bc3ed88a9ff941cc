"""Waits until a service has nothing left to do, and checks the balance of its /metrics.

    received + recovered + replayed = committed + duplicate + rejected + dead_lettered + held

Promises: it waits for a port that does not answer, until the time is up. Does not: judge readings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import aiohttp

from loadgen.proof.dead_letters import read_letters
from loadgen.wire.metrics import read_metrics

POLL_S = 0.1
LETTERS_POLL_S = 1.0  # the folder may have a gigabyte
ANSWER_S_MAX = 5.0
NEEDED = {
    "ingest_readings_held",
    "ingest_ledger_imbalance_rows",
}  # without these it is another service


class Balance(NamedTuple):
    """The balance at one moment. `left_over` is 0, or readings were lost (> 0) or counted twice.

    `claimed` is the service's own value of it; `life` changes with each start of the service.
    """

    held: float
    left_over: float
    claimed: float
    dropped: float
    accepted: float
    life: float

    @property
    def is_zero(self) -> bool:
        """Whether both sides are equal, by our sum and by the service's own."""
        return self.left_over == 0 and self.claimed == 0


class Settled(NamedTuple):
    """The result of the wait. `balance` None: the admin port never answered.

    `quiet`: nothing is held, the balance is 0, and no dead letter is left that is replayed.
    """

    quiet: bool
    balance: Balance | None


async def read_balance(admin_url: str) -> Balance | None:
    """Return the balance now; None if the admin port does not answer with these metrics."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        sums = await read_metrics(session, f"{admin_url.rstrip('/')}/metrics")
    return None if sums is None or not sums.keys() >= NEEDED else _balance_of(sums)


async def settle(admin_url: str | None, dlq_dir: Path, prefix: str, within_s: float) -> Settled:
    """Wait until the service is quiet, or the time is up. Raises DeadLettersError.

    Without `admin_url` it returns at once, and not quiet.
    """
    if admin_url is None:
        return Settled(quiet=False, balance=None)
    end_s = time.monotonic() + within_s
    balance: Balance | None = None
    while True:
        pause_s = POLL_S
        now = await read_balance(admin_url)
        balance = now or balance
        if now is not None and now.held == 0 and now.is_zero:
            folder = await asyncio.to_thread(read_letters, dlq_dir, prefix)
            if not folder.coming_back:
                return Settled(quiet=True, balance=now)
            pause_s = LETTERS_POLL_S
        if time.monotonic() >= end_s:
            return Settled(quiet=False, balance=balance)
        await asyncio.sleep(pause_s)


def _balance_of(sums: Mapping[str, float]) -> Balance:
    def total(*names: str) -> float:
        return sum(sums.get(f"ingest_readings_{name}_total", 0.0) for name in names)

    held = sums["ingest_readings_held"]
    came = total("received", "recovered", "replayed")
    went = total("committed", "duplicate", "rejected", "dead_lettered")
    return Balance(
        held=held,
        left_over=came - went - held,
        claimed=sums["ingest_ledger_imbalance_rows"],
        dropped=total("dropped"),
        accepted=total("accepted"),
        life=sums.get("process_start_time_seconds", 0.0),
    )
