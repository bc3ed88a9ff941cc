"""The n-th call fails, for every n, while dead letters come back: each comes in, and counts, once.

The service's own replay and posts share the writers; after the fault it all goes on by itself, in
the same life. What is still refused is a dead letter of that reason, and nothing else is one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from errno import EIO, ENOSPC, errorcode
from pathlib import Path

import pytest

from ingest.verdict import Verdict
from tests.unit.fake_sink_scripted import AFTER, BEFORE, MIDDLE, Script
from tests.unit.replays import hurry
from tests.unit.whole_path import BUFFERED, Promises, Whole

CALLS_MAX = 200  # more than any run needs
CLEAN_RUNS = 3  # end a sweep: how letters meet posts in a batch varies, and the calls with it
ASIDE, REFUSED_ROWS = 50, 3
once_and_for_ever = pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no run wait for the pauses of replays."""
    hurry(monkeypatch)


async def opened(folder: Path, script: Script | None = None) -> Whole:
    """Open a life beside letters that come back."""
    whole = Whole(folder, Promises(), script)
    whole.promises.leave_aside(folder, ASIDE, bad=REFUSED_ROWS)
    await whole.open()
    return whole


async def comes_back(whole: Whole, fired: Callable[[], int], forever: bool) -> bool:
    """Let letters come back beside posts, over a fault; return whether it has struck."""
    await whole.replay()
    await whole.post(4, bad=1)
    await whole.post(5, ack=BUFFERED)
    enough = 9 if forever else 1
    await whole.until(lambda: fired() >= enough or whole.has_come_back, every_s=0.005)
    struck = fired() > 0
    await whole.finish(replays=True)
    await whole.check(replayed=True)
    assert whole.new == len(whole.promises.table)
    if not struck:
        assert whole.metrics.replayed == ASIDE
        assert whole.metrics.duplicate == 0
    return struck


@once_and_for_ever
@pytest.mark.parametrize(
    ("verdict", "where", "doubtful"),
    [
        (Verdict.WAIT, AFTER, True),
        (Verdict.WAIT, MIDDLE, True),
        (Verdict.RETRY, BEFORE, False),
        (Verdict.RETRY, AFTER, True),
        (Verdict.HOLD, BEFORE, False),
    ],
    ids=str,
)
async def test_every_call_to_the_table_fails_while_letters_come_back(
    tmp_path: Path, verdict: Verdict, where: str, doubtful: bool, forever: bool
) -> None:
    """Set aside again, a letter is no second one, and stays till the table takes it."""
    clean = 0
    for call in range(1, CALLS_MAX):
        script = Script(call, verdict, where, doubtful, forever=forever)
        whole = await opened(tmp_path / "a", script)
        struck = await comes_back(whole, lambda: script.fired, forever)  # noqa: B023
        shutil.rmtree(tmp_path / "a")
        clean = 0 if struck else clean + 1
        if clean == CLEAN_RUNS:
            return
    pytest.fail("the sweep did not come to a clean run")


@once_and_for_ever
@pytest.mark.parametrize("code", [EIO, ENOSPC], ids=errorcode.get)
async def test_every_call_to_the_dead_letters_fails_while_they_come_back(
    tmp_path: Path, code: int, forever: bool
) -> None:
    """What cannot be marked as done comes once more, and the table has it already."""
    clean = 0
    for nth in range(1, CALLS_MAX):
        whole = await opened(tmp_path / "a")
        calls = whole.letter_calls
        calls.failing = dict.fromkeys(("write", "fdatasync", "fsync", "ftruncate"), code)
        calls.nth, calls.onwards, calls.count = nth, forever, 0
        struck = await comes_back(whole, lambda: calls.fired, forever)  # noqa: B023
        shutil.rmtree(tmp_path / "a")
        clean = 0 if struck else clean + 1
        if clean == CLEAN_RUNS:
            return
    pytest.fail("the sweep did not come to a clean run")
