"""The queue: shared fdatasync, cancelled appends, kill -9, two processes in one folder."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ingest.dead_letters.folder.segments import live_letters, segments
from ingest.dead_letters.identity import DEFAULT_RULES
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.dead_letters.store import Tally
from ingest.model.errors import DeadLettersBroken
from ingest.system.files import REAL_CALLS, FileCalls
from tests.support.letters import drained, folder_queue, invalid, read


async def opened(
    folder: Path, *, bytes_max: int = 1 << 30, calls: FileCalls = REAL_CALLS
) -> DeadLetterQueue:
    """Open a folder with the usual settings."""
    letters = folder_queue(
        folder, bytes_max=bytes_max, segment_bytes=1 << 26, keep_days=0, calls=calls
    )
    await letters.open()
    return letters


async def test_item_with_a_time_that_the_rules_refuse_is_kept_each_time(tmp_path: Path) -> None:
    """A clock that stands still at a time before `ts_min` gives equal bytes for two readings."""
    rules = DEFAULT_RULES._replace(ts_min_us=1_577_836_800_000_000, ts_ahead_us_max=1_000_000)
    queue = folder_queue(
        tmp_path, bytes_max=1 << 30, segment_bytes=1 << 26, keep_days=0, rules=rules
    )
    await queue.open()
    for ts, kept in (("2010-01-01T00:00:00Z", 2), ("2021-01-01T00:00:00Z", 1)):
        letter = invalid(b'{"ts":"%s","value":5}' % ts.encode())
        for received_us in (letter.received_us, letter.received_us + 60_000_000):
            await queue.append([letter._replace(received_us=received_us)])
        assert len([each for each in read(tmp_path) if each.original == letter.original]) == kept
    await queue.close()


async def test_append_concurrent_ones_share_an_fdatasync(tmp_path: Path) -> None:
    """A hundred posts with an invalid item each cost a few fdatasyncs, and none is lost."""
    syncs: list[int] = []

    def counted(fd: int) -> None:
        syncs.append(fd)
        os.fdatasync(fd)

    queue = await opened(tmp_path, calls=REAL_CALLS._replace(fdatasync=counted))
    posts = [drained(3) for _ in range(100)]
    async with asyncio.TaskGroup() as group:
        for post in posts:
            group.create_task(queue.append(post, sender="10.0.0.1"))
    assert sorted(read(tmp_path)) == sorted(letter for post in posts for letter in post)
    assert len(syncs) <= 5
    await queue.close()


async def test_append_returns_only_after_its_fdatasync(tmp_path: Path) -> None:
    """An append returns after its fdatasync, and the event loop is not blocked meanwhile."""
    gate = threading.Event()

    def waiting(fd: int) -> None:
        gate.wait(10)
        os.fdatasync(fd)

    queue = await opened(tmp_path, calls=REAL_CALLS._replace(fdatasync=waiting))
    task = asyncio.create_task(queue.append(drained(1)))
    done, _ = await asyncio.wait([task], timeout=0.1)
    assert not done
    gate.set()
    await task
    await queue.close()


async def test_append_broken_is_told_to_all_who_shared_the_write(tmp_path: Path) -> None:
    """If a write fails, every append that shared it fails."""

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    queue = await opened(tmp_path, calls=REAL_CALLS._replace(fdatasync=broken))
    outcomes = await asyncio.gather(
        *(queue.append(drained(1)) for _ in range(5)), return_exceptions=True
    )
    assert [type(each) for each in outcomes] == [DeadLettersBroken] * 5
    await queue.close()


async def test_append_bug_in_the_thread_reaches_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error in the thread is raised to the caller, so no append waits for ever."""
    queue = await opened(tmp_path)
    monkeypatch.setattr("ingest.dead_letters.queue.letter_id", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await queue.append(drained(1))
    monkeypatch.undo()
    await queue.append(drained(1))
    await queue.close()


KILLED = """
import asyncio, sys
from pathlib import Path
from ingest.dead_letters.folder.backend import FolderBackend
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.model.reading import Letter
from ingest.model.reading import Reading

async def main():
    backend = FolderBackend(Path(sys.argv[1]), segment_bytes=20_000, keep_days=0)
    queue = DeadLetterQueue(backend, bytes_max=1 << 30)
    await queue.open()
    async def post(number):
        reading = Reading(number, sys.argv[2], "m", number / 7)
        await queue.append([Letter("drained", "", "", number, reading=reading)] )
        print(number, flush=True)
    number = 0
    while True:
        await asyncio.gather(*(post(number + i) for i in range(8)))
        number += 8

asyncio.run(main())
"""


async def _killed_after(folder: Path, device: str, lines: int) -> set[int]:
    """Run a process that appends, kill it -9 after some acknowledgements; return all of these."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(folder), device, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    acknowledged = set()
    for _ in range(lines):
        acknowledged.add(int(await process.stdout.readline()))
    process.send_signal(signal.SIGKILL)
    rest = await process.stdout.read()
    await process.wait()
    return acknowledged | {int(line) for line in rest.split(b"\n")[:-1]}


async def test_kill_9_while_two_processes_append_loses_nothing(tmp_path: Path) -> None:
    """Every acknowledged letter of both can be read, and cut lines are skipped."""
    one, other = await asyncio.gather(
        _killed_after(tmp_path, "one", 300), _killed_after(tmp_path, "other", 700)
    )
    assert len(one) >= 300
    torn = segments(tmp_path)[-1]
    with torn.open("ab") as file:
        file.write(b'{"v":1,"id":"')
    tally = Tally()
    found: dict[str, set[int]] = {"one": set(), "other": set()}
    for live in live_letters(tmp_path, tally=tally):
        reading = live.letter.reading
        assert reading is not None
        assert reading.value == reading.ts_us / 7
        found[reading.device_id].add(reading.ts_us)
    assert one <= found["one"]
    assert other <= found["other"]
    assert (tally.torn >= 1, tally.altered) == (True, 0)
    assert len({path.name.split("-")[2] for path in segments(tmp_path)}) == 2
    queue = await opened(tmp_path)
    assert queue.stats().live == len(found["one"]) + len(found["other"])
    await queue.append(drained(1))
    assert torn.read_bytes().endswith(b'{"v":1,"id":"')
    await queue.close()
