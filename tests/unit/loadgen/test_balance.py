"""The balance, and the wait until the service is quiet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from loadgen.proof import balance as module
from loadgen.proof.balance import read_balance, settle
from loadgen.proof.letter_sources import Files

PREFIX = "verify-00c0ffee-"


def _page(
    *, held: int = 0, claimed: int = 0, committed: int = 5, dropped: int = 0, life: int = 1
) -> str:
    return f"""# HELP ingest_readings_received_total Readings.
ingest_readings_received_total 10.0
ingest_readings_accepted_total 8.0
ingest_readings_recovered_total 1.0
ingest_readings_replayed_total 2.0
ingest_readings_committed_total {committed}.0
ingest_readings_duplicate_total 3.0
ingest_readings_rejected_total{{code="empty"}} 1.0
ingest_readings_rejected_total{{code="all_invalid"}} 1.0
ingest_readings_dead_lettered_total{{reason="invalid"}} 2.0
ingest_readings_dead_lettered_total{{reason="drained"}} 1.0
ingest_readings_dropped_total {dropped}.0
ingest_readings_held {held}.0
ingest_ledger_imbalance_rows {claimed}.0
process_start_time_seconds {life}.0

"""


def _processes(
    *,
    published: int = 10,
    held: int = 0,
    pending: int = 0,
    unacknowledged: int = 0,
    gateway_up: int = 1,
    broker_up: int = 1,
    committed: tuple[int, int] = (6, 4),
) -> str:
    """Return the page of an admin port that shows a gateway and two writers, as `up` does."""
    lines = [
        'ingest_readings_received_total{instance="gateway-1"} 11.0',
        'ingest_readings_rejected_total{instance="gateway-1",code="empty"} 1.0',
        f'ingest_readings_published_total{{instance="gateway-1"}} {published}.0',
        f'ingest_broker_up{{instance="gateway-1"}} {broker_up}.0',
    ]
    for name in ("up", "gateway-1", "writer-1", "writer-2"):
        is_gateway = name == "gateway-1"
        lines += [
            f'ingest_instance_up{{instance="{name}"}} {gateway_up if is_gateway else 1}.0',
            f'ingest_readings_held{{instance="{name}"}} {held if is_gateway else 0}.0',
            f'ingest_ledger_imbalance_rows{{instance="{name}"}} 0.0',
        ]
    for number, (delivered, stored) in enumerate(zip((6, 4), committed, strict=True), 1):
        lines += [
            f'ingest_readings_delivered_total{{instance="writer-{number}"}} {delivered}.0',
            f'ingest_readings_committed_total{{instance="writer-{number}"}} {stored}.0',
            f'ingest_consumer_pending{{consumer="writer",instance="writer-{number}"}} '
            f"{pending if number == 2 else 0}.0",
            f'ingest_consumer_pending{{consumer="forward-a",instance="writer-{number}"}} 9.0',
            f'ingest_consumer_ack_pending{{consumer="writer",instance="writer-{number}"}} '
            f"{unacknowledged}.0",
        ]
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def _metrics(page: Callable[[int], str]) -> AsyncIterator[str]:
    """Serve `page(n)` to the n-th scrape; give the admin port's URL."""
    scrapes = 0

    async def serve(request: web.BaseRequest) -> web.Response:
        nonlocal scrapes
        assert request.path == "/metrics"
        scrapes += 1
        return web.Response(text=page(scrapes - 1))

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.001)
    monkeypatch.setattr(module, "LETTERS_POLL_S", 0.001)
    monkeypatch.setattr(module, "STREAM_LATE_S", 0.02)


@pytest.mark.parametrize(
    ("page", "left_over", "claimed"),
    [(_page(committed=4), 1, 0), (_page(committed=7), -2, 0), (_page(claimed=4), 0, 4)],
)
async def test_balance_is_broken_by_our_sum_or_by_theirs(
    page: str, left_over: int, claimed: int
) -> None:
    """A balance is zero only if our sum and the service's own are both zero."""
    async with _metrics(lambda _: page) as url:
        balance = await read_balance(url)
        settled = await settle([url], Files(Path()), PREFIX, 0.05)
    assert balance is not None
    assert (balance.left_over, balance.claimed) == (left_over, claimed)
    assert not balance.is_zero
    assert not settled.quiet
    assert settled.balance == balance


async def test_quiet_waits_until_nothing_is_held(tmp_path: Path) -> None:
    """The wait goes on while readings are held."""
    seen: list[int] = []

    def page(scrape: int) -> str:
        seen.append(scrape)
        return _page(held=1, committed=4) if scrape < 3 else _page()

    async with _metrics(page) as url:
        settled = await settle([url], Files(tmp_path), PREFIX, 10)
    assert settled.quiet
    assert seen == [0, 1, 2, 3]


# A service of several processes


async def test_balance_of_several_processes_is_that_of_each() -> None:
    """What a gateway published is no outcome of a writer; consumers of others do not wait."""
    async with _metrics(lambda _: _processes()) as url:
        balance = await read_balance(url)
    assert balance is not None
    assert balance.is_zero
    assert balance.is_done
    assert (balance.left_over, balance.held, balance.waiting) == (0, 0, 0)
    assert (balance.processes, balance.has_stream) == (4, True)


@pytest.mark.parametrize(
    ("page", "left_over", "claimed"),
    [
        (_processes(published=9), 1, 0),
        (_processes(committed=(7, 3)), 2, 0),
    ],
)
async def test_processes_cannot_cancel_each_other_out(
    page: str, left_over: int, claimed: int
) -> None:
    """One process that lost a reading and one that counted one twice are two faults."""
    async with _metrics(lambda _: page) as url:
        balance = await read_balance(url)
    assert balance is not None
    assert (balance.left_over, balance.claimed) == (left_over, claimed)
    assert not balance.is_zero


@pytest.mark.parametrize(
    ("changes", "waiting"),
    [
        ({"pending": 2}, 2),
        ({"unacknowledged": 3}, 3),
        ({"gateway_up": 0}, None),
        ({"broker_up": 0}, None),
        ({"held": 1, "published": 9}, 0),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, dict) else "",
)
async def test_quiet_waits_for_the_stream_and_for_each_process(
    tmp_path: Path, changes: dict[str, Any], waiting: float | None
) -> None:
    """A message that waits or is not acknowledged, or a process that is away: it is not quiet."""
    async with _metrics(lambda _: _processes(**changes)) as url:
        settled = await settle([url], Files(tmp_path), PREFIX, 0.1)
    assert not settled.quiet
    assert settled.balance is not None
    assert settled.balance.waiting == waiting
    assert not settled.balance.is_done


async def test_figures_from_before_the_last_post_are_not_believed(tmp_path: Path) -> None:
    """What processes tell of the stream is some seconds old, so the first figures do not count."""
    scrapes: list[int] = []

    def page(scrape: int) -> str:
        scrapes.append(scrape)
        return _processes()

    async with _metrics(page) as url:
        assert not (await settle([url], Files(tmp_path), PREFIX, 0.0)).quiet
        scrapes.clear()
        assert (await settle([url], Files(tmp_path), PREFIX, 10)).quiet
    assert len(scrapes) > 1


async def test_roles_that_run_alone_have_one_balance_over_all_ports(tmp_path: Path) -> None:
    """Each port shows one process, without a name; one that is silent makes it unknown."""

    def role(counters: str) -> str:
        needed = "ingest_readings_held 0.0\ningest_ledger_imbalance_rows 0.0\n"
        return needed + "ingest_broker_up 1.0\n" + counters

    gateway = role("ingest_readings_received_total 5.0\ningest_readings_published_total 5.0\n")
    counters = "ingest_readings_delivered_total 5.0\ningest_readings_duplicate_total 5.0\n"
    writer = role(f'{counters}ingest_consumer_pending{{consumer="writer"}} 0.0\n')
    async with _metrics(lambda _: gateway) as first, _metrics(lambda _: writer) as second:
        assert (await settle([first, second], Files(tmp_path), PREFIX, 10)).quiet
        alone = await read_balance(first)
        assert alone is not None
        assert alone.waiting is None, "no writer has said whether something waits"
    assert await read_balance(first, second) is None
