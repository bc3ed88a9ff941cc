"""The balance, and the wait until the service is quiet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from ingest.dead_letters.format import encode_line
from ingest.dead_letters.identity import letter_id
from ingest.model.letter import Letter
from ingest.model.reading import Reading
from loadgen.proof import balance as module
from loadgen.proof.balance import read_balance, settle

PREFIX = "verify-00c0ffee-"
LETTER = Letter("drained", "", "m", 5, Reading(1, f"{PREFIX}0001", "x", 1.5))
FILE = "dlq-20260101T000000000000Z-1-00000000.jsonl"


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


async def test_balance_is_added_up_from_the_counters() -> None:
    """The balance is received + recovered + replayed - all outcomes; labels are summed."""
    async with _metrics(lambda _: _page(committed=4, held=1)) as url:
        balance = await read_balance(url)
    assert balance is not None
    assert (balance.left_over, balance.held, balance.accepted, balance.life) == (0, 1, 8, 1)
    assert balance.is_zero


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
        settled = await settle(url, Path(), PREFIX, 0.05)
    assert balance is not None
    assert (balance.left_over, balance.claimed) == (left_over, claimed)
    assert not balance.is_zero
    assert not settled.quiet
    assert settled.balance == balance


@pytest.mark.parametrize("page", ["", "hello", "ingest_readings_held x\n", "up 1\n"])
async def test_page_of_something_else_is_no_balance(page: str) -> None:
    """A page without the needed counters gives no balance, and no zeros."""
    async with _metrics(lambda _: page) as url:
        assert await read_balance(url) is None


async def test_quiet_waits_until_nothing_is_held(tmp_path: Path) -> None:
    """The wait goes on while readings are held."""
    seen: list[int] = []

    def page(scrape: int) -> str:
        seen.append(scrape)
        return _page(held=1, committed=4) if scrape < 3 else _page()

    async with _metrics(page) as url:
        settled = await settle(url, tmp_path, PREFIX, 10)
    assert settled.quiet
    assert seen == [0, 1, 2, 3]


async def test_quiet_waits_until_letters_have_come_back(tmp_path: Path) -> None:
    """The wait goes on while the service still replays dead letters."""
    line = encode_line(LETTER, id_=letter_id(LETTER), failed_us=1)
    (tmp_path / FILE).write_bytes(line)

    def page(scrape: int) -> str:
        if scrape == 3:
            (tmp_path / FILE).unlink()
        return _page()

    async with _metrics(page) as url:
        settled = await settle(url, tmp_path, PREFIX, 10)
        assert settled.quiet
        (tmp_path / FILE).write_bytes(line)
        assert not (await settle(url, tmp_path, PREFIX, 0.05)).quiet
        other = await settle(url, tmp_path, "verify-another0-", 0.05)
    assert other.quiet, "letters of others are not waited for"


async def test_port_that_does_not_answer_is_waited_for(tmp_path: Path, free_port: int) -> None:
    """The wait goes on while the port does not answer; at its end the result is not quiet."""
    url = f"http://127.0.0.1:{free_port}"
    settled = await settle(url, tmp_path, PREFIX, 0.05)
    assert (settled.quiet, settled.balance) == (False, None)

    def page(scrape: int) -> str:
        return "" if scrape < 2 else _page()

    async with _metrics(page) as answering:
        assert (await settle(answering, tmp_path, PREFIX, 10)).quiet


async def test_without_an_admin_port_nobody_is_asked(tmp_path: Path) -> None:
    """Without an admin port the wait ends at once, and the result is not quiet."""
    assert await settle(None, tmp_path, PREFIX, 10) == (False, None)
