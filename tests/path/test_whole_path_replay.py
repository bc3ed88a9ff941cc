"""The n-th call fails, for every n, while dead letters are replayed: each is stored once.

The service's own replay and posts share the writers. After the fault all goes on by itself, in the
same run. A row that is still refused is a dead letter of that reason; no other letter is left.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from errno import EIO, ENOSPC, errorcode
from pathlib import Path

import pytest

from ingest.dead_letters.folder.segments import folder_bytes, live_letters, mark_done
from ingest.dead_letters.folder.store import hold_replay_lock
from ingest.model.causes import LETTERS_FULL, Verdict, WriteFailed
from ingest.model.reading import INVALID
from tests.support.fake_sink_scripted import AFTER, BEFORE, MIDDLE, Script
from tests.support.letters import LetterFiles, folder_queue, invalid, keep
from tests.support.replay_rig import hurry
from tests.support.whole_path import BUFFERED, Promises, Whole

CALLS_MAX = 200  # more than any run needs
CLEAN_RUNS = (
    3  # end a sweep: letters and posts share batches by chance, so the number of calls varies
)
ASIDE, REFUSED_ROWS = 50, 3
once_and_for_ever = pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses of replays, so that no test waits for them."""
    hurry(monkeypatch)


async def opened(folder: Path, script: Script | None = None) -> Whole:
    """Open a run on a folder with letters that are replayed."""
    whole = Whole(folder, Promises(), script)
    whole.promises.leave_aside(folder, ASIDE, bad=REFUSED_ROWS)
    await whole.open()
    return whole


async def comes_back(whole: Whole, fired: Callable[[], int], forever: bool) -> bool:
    """Replay letters beside posts, over a fault; return whether a call failed."""
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
        assert whole.ledger.replayed == ASIDE
        assert whole.ledger.duplicate == 0
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
    """A letter that is set aside again stays one letter, until the table takes its reading."""
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
@pytest.mark.parametrize(
    "code", [ENOSPC, pytest.param(EIO, marks=pytest.mark.slow)], ids=errorcode.get
)
async def test_every_call_to_the_dead_letters_fails_while_they_come_back(
    tmp_path: Path, code: int, forever: bool
) -> None:
    """A letter that cannot be marked as done is replayed again; its reading is stored already."""
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


async def test_hold_leaves_the_lock_to_the_command_that_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replayed row is refused, the dead letters are full: a command can still discard some."""
    monkeypatch.setattr("ingest.dead_letters.auto_replay.LOOK_S", 0.01)
    monkeypatch.setattr("ingest.dead_letters.queue.MAKE_ROOM_S_MIN", 0.05)
    folder = tmp_path / "dead-letters"
    whole = Whole(tmp_path, Promises())
    whole.promises.leave_aside(tmp_path, 1, bad=1)
    store = LetterFiles(folder)
    keep(store, [invalid(b"%0100d" % number) for number in range(20)])
    store.close()
    whole.dead_letters = folder_queue(
        folder, bytes_max=folder_bytes(folder) + 50, segment_bytes=1 << 20, keep_days=7
    )
    await whole.open()
    await whole.replay()
    await whole.until(
        lambda: whole.database_state.hold_reason == "dead_letters_full", every_s=0.005
    )
    with await hold_replay_lock(folder, wait_s_max=2.0):
        found = [each for each in live_letters(folder) if each.letter.reason == INVALID]
        mark_done(found, "discarded")
    assert len(found) == 20
    await whole.until(lambda: whole.database_state.is_open, every_s=0.005)
    await whole.finish(replays=True)
    await whole.check(replayed=True)


async def test_letters_given_up_are_not_sent_again_beside_their_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer gets no second copy of a letter, however often writes are paused."""
    monkeypatch.setattr("ingest.dead_letters.auto_replay.LOOK_S", 0.001)
    whole = Whole(tmp_path, Promises())
    whole.promises.leave_aside(tmp_path, ASIDE, bad=0)
    whole.halted.set()  # no writer: sent blocks stay under way
    await whole.open()
    await whole.replay()
    await whole.until(lambda: whole.ledger.replayed > 0, every_s=0.002)
    sent = whole.ledger.replayed
    for _ in range(10):
        whole.database_state.failed(WriteFailed(Verdict.HOLD, "they are full", reason=LETTERS_FULL))
        await asyncio.sleep(0.01)
        whole.database_state.opened()
        await asyncio.sleep(0.01)
    assert whole.ledger.replayed == sent
    await whole.halt()
