"""Waits until a service has nothing left to do, and checks the balance of its /metrics.

    received + recovered + replayed + delivered
        = committed + duplicate + published + rejected + dead_lettered + returned + held

It is true of each process. Between the processes of a service with a broker is the stream, which
counts messages: nothing is left to do when none of them waits and all are acknowledged.
Promises: it waits for a port that does not answer, until the time is up. Does not: judge readings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import aiohttp

from loadgen.proof.letter_sources import LetterSource
from loadgen.wire.metrics import Processes, read_processes

POLL_S = 0.1
LETTERS_POLL_S = 1.0  # the folder may have a gigabyte
ANSWER_S_MAX = 5.0
# The processes of a service with a broker look at the stream every 2 s, and tell their figures once
# a second. So figures that are so much later than the last post know of it.
STREAM_LATE_S = 4.0
NEEDED = {
    "ingest_readings_held",
    "ingest_ledger_imbalance_rows",
}  # without these it is another service
PENDING, UNACKNOWLEDGED = "ingest_consumer_pending:writer", "ingest_consumer_ack_pending:writer"


class Balance(NamedTuple):
    """The balance at one moment. `left_over` is 0, or readings were lost (> 0) or counted twice.

    `claimed` is the service's own value of it; `life` changes with each start of a process.
    Of several processes these two are sums of magnitudes, so that they cannot cancel out.
    `waiting` are messages that are not done, None if the stream or a process says nothing.
    """

    held: float
    left_over: float
    claimed: float
    dropped: float
    accepted: float
    life: float
    processes: int = 1
    has_stream: bool = False
    waiting: float | None = 0.0

    @property
    def is_zero(self) -> bool:
        """Whether both sides are equal, by our sum and by the service's own."""
        return self.left_over == 0 and self.claimed == 0

    @property
    def is_done(self) -> bool:
        """Whether nothing is held and no message waits, so that the balance must be 0."""
        return self.held == 0 and self.waiting == 0


class Settled(NamedTuple):
    """The result of the wait. `balance` None: the admin port never answered.

    `quiet`: nothing is held, the balance is 0, and no dead letter is left that is replayed.
    """

    quiet: bool
    balance: Balance | None


async def read_balance(*admin_urls: str) -> Balance | None:
    """Return the balance now; None if an admin port does not answer with these metrics."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        processes = await read_processes(session, admin_urls)
    return None if processes is None else balance_of(processes)


async def settle(
    admin_urls: Sequence[str], letters: LetterSource, prefix: str, within_s: float
) -> Settled:
    """Wait until the service is quiet, or the time is up. Raises DeadLettersError.

    Without `admin_urls` it returns at once, and not quiet.
    """
    if not admin_urls:
        return Settled(quiet=False, balance=None)
    started_s = time.monotonic()
    balance: Balance | None = None
    while True:
        pause_s = POLL_S
        asked_s = time.monotonic()
        now = await read_balance(*admin_urls)
        balance = now or balance
        is_new = now is not None and (not now.has_stream or asked_s - started_s >= STREAM_LATE_S)
        if now is not None and is_new and now.is_done and now.is_zero:
            found = await asyncio.to_thread(letters.read, prefix)
            if not found.coming_back:
                return Settled(quiet=True, balance=now)
            pause_s = LETTERS_POLL_S
        if time.monotonic() - started_s >= within_s:
            return Settled(quiet=False, balance=balance)
        await asyncio.sleep(pause_s)


def balance_of(processes: Processes) -> Balance | None:
    """Return the balance of these metrics; None if they are of another program."""
    samples = [each for each in processes.values() if each.keys() >= NEEDED]
    if not samples:
        return None
    left_over = [_left_over(each) for each in samples]
    claimed = [each["ingest_ledger_imbalance_rows"] for each in samples]
    several = len(samples) > 1
    has_stream = any(_has_stream(each) for each in samples)
    return Balance(
        held=_total(samples, "ingest_readings_held"),
        left_over=sum(map(abs, left_over)) if several else left_over[0],
        claimed=sum(map(abs, claimed)) if several else claimed[0],
        dropped=_total(samples, "ingest_readings_dropped_total"),
        accepted=_total(samples, "ingest_readings_accepted_total"),
        life=_total(samples, "process_start_time_seconds"),
        processes=len(samples),
        has_stream=has_stream,
        waiting=_waiting(samples) if has_stream else 0.0,
    )


def _total(samples: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(each.get(name, 0.0) for each in samples)


def _left_over(samples: Mapping[str, float]) -> float:
    def total(*names: str) -> float:
        return sum(samples.get(f"ingest_readings_{name}_total", 0.0) for name in names)

    came = total("received", "recovered", "replayed", "delivered")
    went = total("committed", "duplicate", "published", "rejected", "dead_lettered", "returned")
    return came - went - samples["ingest_readings_held"]


def _has_stream(samples: Mapping[str, float]) -> bool:
    return "ingest_broker_up" in samples or "ingest_instance_up" in samples


def _waiting(samples: Sequence[Mapping[str, float]]) -> float | None:
    """Return the messages that are not done; None if that is not known now.

    All writers say the same of the stream, but not at the same moment: the largest number counts.
    """
    if any(
        each.get(name) == 0.0
        for each in samples
        for name in ("ingest_instance_up", "ingest_broker_up")
    ):
        return None
    said = [each[PENDING] + each.get(UNACKNOWLEDGED, 0.0) for each in samples if PENDING in each]
    return max(said, default=None)
