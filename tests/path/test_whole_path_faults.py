"""The n-th call fails, once and for ever, for every n: calls of the table and of both file layers.

In all cases the promised readings are in the table or in the dead letters at the end, once. The
balance is 0 at every quiet moment. After the fault is fixed, the path goes on by itself. Each case
has a second run, which finds the files that the first one left.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from errno import EIO, ENOSPC, errorcode
from pathlib import Path

import pytest

from ingest.model.causes import Verdict
from ingest.model.errors import StartError
from tests.support.fake_sink_scripted import AFTER, BEFORE, MIDDLE, Script
from tests.support.journals import FailingCalls
from tests.support.ways import AT_ONCE, RESERVED
from tests.support.whole_path import BUFFERED, COMMITTED, DURABLE, Promises, Whole

CALLS_MAX = 200  # more than any run needs
CLEAN_RUNS = 4  # end a sweep: posts share groups by chance, so the number of calls varies
NAMES = ("write", "fdatasync", "fsync", "ftruncate")
CODES = (ENOSPC, pytest.param(EIO, marks=pytest.mark.slow))
once_and_for_ever = pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])


async def post_all(whole: Whole) -> list[str]:
    """Post blocks of all kinds, some at once and some one after the other."""
    posts = (
        whole.post(30, bad=2),
        whole.post(3, ack=BUFFERED),
        whole.post(9, ack=COMMITTED, bad=1),
        whole.post(1, letters=1),
        *(whole.post(rows, bad=int(rows == 2)) for rows in (1, 2, 1, 3)),  # they share a block
        whole.post(1, ack=BUFFERED),
    )
    answers: list[str] = list(await asyncio.gather(*posts))
    answers.append(await whole.post(25, letters=2, bad=1))
    answers.append(await whole.post(4, ack=COMMITTED))
    return [*answers, await whole.post(6)]


async def second_run(folder: Path, promises: Promises, *, replays: bool = False) -> None:
    """Run on the files of a first run; at the end all promises are kept."""
    whole = Whole(folder, promises)
    await whole.open()
    assert await whole.post(2) == "kept"
    await whole.finish(replays=replays)
    await whole.check(replayed=replays)


@once_and_for_ever
@pytest.mark.parametrize(
    ("verdict", "where", "doubtful"),
    [
        (Verdict.WAIT, AFTER, True),
        (Verdict.WAIT, MIDDLE, True),
        (Verdict.RETRY, BEFORE, False),
        (Verdict.HOLD, BEFORE, False),
    ],
    ids=str,
)
async def test_every_call_to_the_table_fails(
    tmp_path: Path, verdict: Verdict, where: str, doubtful: bool, forever: bool
) -> None:
    """Before the commit, between dead letter and commit, after it; then the process is killed."""
    for call in range(1, CALLS_MAX):
        script = Script(call, verdict, where, doubtful, forever=forever)
        promises = Promises()
        whole = Whole(tmp_path / "a", promises, script)
        await whole.open()
        assert set(await post_all(whole)) == {"kept"}
        await whole.until(lambda: whole.rows == 0 or script.fired >= (6 if forever else 1))  # noqa: B023
        await whole.kill(tmp_path / "b")
        await second_run(tmp_path / "b", promises)
        for each in ("a", "b"):
            shutil.rmtree(tmp_path / each)
        if not script.fired:
            return
    pytest.fail("the sweep did not come to a clean run")


@pytest.mark.parametrize("code", CODES, ids=errorcode.get)
@pytest.mark.parametrize(
    ("layer", "goes"),
    [
        ("journal_calls", AT_ONCE),
        pytest.param("journal_calls", RESERVED, marks=pytest.mark.slow),
        ("letter_calls", AT_ONCE),
    ],
    indirect=["goes"],
)
@pytest.mark.parametrize(
    ("killed", "forever"),
    [
        pytest.param(True, False, id="killed, once"),
        pytest.param(False, True, id="stopped, for ever"),
        pytest.param(True, True, id="killed, for ever", marks=pytest.mark.slow),
        pytest.param(False, False, id="stopped, once", marks=pytest.mark.slow),
    ],
)
async def test_every_call_to_the_files_fails(
    tmp_path: Path, layer: str, code: int, forever: bool, killed: bool
) -> None:
    """write, fdatasync, fsync and ftruncate, of journal and dead letters; stopped or killed."""
    clean = refused = 0
    for nth in range(1, CALLS_MAX):
        promises = Promises()
        whole = Whole(tmp_path / "a", promises)
        calls: FailingCalls = getattr(whole, layer)
        calls.failing = dict.fromkeys(NAMES, code)
        calls.nth, calls.onwards = nth, forever
        try:
            await whole.open()
        except StartError:
            await whole.kill(tmp_path / "b")
        else:
            refused += (await post_all(whole)).count("journal")
            # Only at rest: else the fault is fixed before the last calls, and the sweep ends early.
            await whole.until(lambda: whole.rows == 0 or calls.fired >= 4)  # noqa: B023
            if killed:
                await whole.kill(tmp_path / "b")
            else:
                await whole.finish()
                await whole.check()
                (tmp_path / "a").rename(tmp_path / "b")
        await second_run(tmp_path / "b", promises)
        for each in ("a", "b"):
            shutil.rmtree(tmp_path / each, ignore_errors=True)
        clean = 0 if calls.fired else clean + 1
        if clean == CLEAN_RUNS:
            assert layer != "journal_calls" or refused >= 10  # groups of several posts, too
            return
    pytest.fail("the sweep did not come to a clean run")


@pytest.mark.parametrize(
    ("layer", "code", "forever"),
    [
        *itertools.product(("journal_calls",), (EIO, ENOSPC), (False, True)),
        (
            "letter_calls",
            EIO,
            False,
        ),  # if the journal fails for ever; more of them would be a loss
    ],
    ids=str,
)
async def test_every_call_of_a_stop_fails(
    tmp_path: Path, layer: str, code: int, forever: bool
) -> None:
    """An ordinary stop keeps readings acknowledged from memory: in the journal, or `drained`.

    The table is away, and the journal breaks before it has these readings.
    """
    for nth in range(1, CALLS_MAX):
        promises = Promises()
        whole = Whole(tmp_path, promises, Script(1, Verdict.WAIT, forever=True))
        await whole.open()
        assert await whole.post(5, bad=1) == "kept"
        whole.journal_calls.failing = dict.fromkeys(NAMES, EIO)
        posts = [whole.post(rows, ack=BUFFERED, bad=1) for rows in (7, 30)]
        assert await asyncio.gather(*posts) == ["kept", "kept"]
        await whole.quiet()
        assert whole.buffer.broken
        assert len(promises.buffered) == 37
        if layer == "journal_calls":
            whole.journal_calls.failing = {}
            await whole.until(lambda: not whole.buffer.broken)  # noqa: B023
        calls: FailingCalls = getattr(whole, layer)
        calls.failing = dict.fromkeys(NAMES, code)
        calls.count = calls.fired = 0
        calls.nth, calls.onwards = nth, forever
        await whole.halt()
        struck = calls.fired
        assert len(promises.kept) == 42
        await second_run(tmp_path, promises, replays=True)
        shutil.rmtree(tmp_path)
        if not struck:
            return
    pytest.fail("the sweep did not come to a clean run")


async def test_run_without_a_fault_keeps_all_and_needs_no_second_run(tmp_path: Path) -> None:
    """The control: every post is kept, and only rows that the table refuses are dead letters."""
    promises = Promises()
    whole = Whole(tmp_path, promises)
    await whole.open()
    assert await post_all(whole) == ["kept"] * 12
    assert (whole.at_once, whole.reserved) == (8, 4)
    await whole.finish()
    await whole.check()
    assert len(promises.table) == 30 + 3 + 9 + 1 + 7 + 1 + 25 + 4 + 6 - 5
    assert (
        len(promises.kept) == 30 + 3 + 1 + 7 + 1 + 25 + 6
    )  # also what was in memory: the stop was in order
    assert whole.ledger.recovered == 0
    assert all(ack.resolved for ack, _ in promises.acks)


async def test_loss_would_be_seen(tmp_path: Path) -> None:
    """The check can fail: it finds a journal that is removed between two runs."""
    promises = Promises()
    whole = Whole(tmp_path / "a", promises, Script(1, Verdict.WAIT, forever=True))
    await whole.open()
    assert await whole.post(5, ack=DURABLE) == "kept"
    await whole.kill(tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "journal")
    with pytest.raises(AssertionError):
        await second_run(tmp_path / "b", promises)
