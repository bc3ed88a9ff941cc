"""Posts that share a frame of the journal: after a kill all of them are there, or none."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from ingest.buffers.frames import HEAD_BYTES
from ingest.buffers.journal.format import HEADER_BYTES
from ingest.buffers.journal.reader import segment_files
from ingest.model.block import Block
from ingest.model.errors import NotKept
from tests.support.blocks import make_block
from tests.support.journals import FailingCalls, HangingDisk, JournalRun, killed, on_disk

CALLS_MAX = 200  # more than any run needs


class Clients:
    """Posts of some clients that wait for the disk; `kept` and `refused` are their rows."""

    def __init__(self, life: JournalRun) -> None:
        self.life = life
        self.kept: list[bytes] = []
        self.refused: list[bytes] = []
        self.declined = 0

    def post(self, count: int, rows: int = 1) -> None:
        """Post so many blocks in one round."""
        for _ in range(count):
            block = make_block(rows)
            if self.life.buffer.take_in(block, (rows, block.tuples), self._told):
                self.life.ledger.received += rows
                self.life.ledger.at_receiver += rows
            else:
                self.declined += 1

    def _told(self, waiters: Sequence[tuple[int, bytes]], error: NotKept | None) -> None:
        ledger = self.life.ledger
        for rows, content in waiters:
            ledger.at_receiver -= rows
            if error is not None:
                ledger.readings_rejected("disk_low", rows)
            (self.kept if error is None else self.refused).append(content)
        assert ledger.imbalance == 0


def content(blocks: Sequence[Block]) -> bytes:
    """Return all rows of blocks."""
    return b"".join(block.tuples for block in blocks)


async def test_posts_of_a_round_are_one_frame_and_one_fsync(tmp_path: Path) -> None:
    """A hundred posts: one frame; the next process has one block, which says how many they are."""
    calls = FailingCalls()
    async with JournalRun(tmp_path / "a", calls=calls) as life:
        clients = Clients(life)
        clients.post(1)
        await life.quiet()
        before = calls.names.count("fdatasync")
        clients.post(100)
        await life.quiet()
        assert calls.names.count("fdatasync") == before + 1
        assert on_disk(tmp_path / "a") == [clients.kept[0], b"".join(clients.kept[1:])]
        await killed(tmp_path / "a", tmp_path / "b")
        await life.drain()
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        assert after.ledger.recovered == 101
        after.load()
        blocks = await after.drain()
        assert [(block.posts, block.rows, block.parts) for block in blocks] == [
            (1, 1, None),
            (100, 100, None),
        ]
        assert content(blocks) == b"".join(clients.kept)


async def test_frame_of_several_posts_is_done_once(tmp_path: Path) -> None:
    """If its block is settled, nothing of it comes back; the segment goes."""
    async with JournalRun(tmp_path / "a") as life:
        clients = Clients(life)
        for _ in range(3):
            clients.post(10)
            await life.quiet()
        first, second, third = life.buffer.take(100)
        life.settle([second])
        await life.quiet()
        await killed(tmp_path / "a", tmp_path / "b")
        life.settle([first, third])
    assert segment_files(tmp_path / "a") == []
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        assert after.ledger.recovered == 20
        after.load()
        assert content(await after.drain()) == content([first, third])


async def test_kill_between_write_and_report_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Nobody has an answer yet; the next process has each post once."""

    class Copied(FailingCalls):
        def fdatasync(self, fd: int) -> None:
            super().fdatasync(fd)
            if copying:
                copying.clear()
                asyncio.run(killed(tmp_path / "a", tmp_path / "b"))
                told.append(len(clients.kept))

    copying: list[bool] = []
    told: list[int] = []
    async with JournalRun(tmp_path / "a", calls=Copied()) as life:
        clients = Clients(life)
        clients.post(1)
        await life.quiet()
        copying.append(True)
        clients.post(50)
        await life.quiet()
        assert told == [1]
        assert len(clients.kept) == 51
        await life.drain()
    async with JournalRun(tmp_path / "b") as after:
        await after.scan()
        after.load()
        assert content(await after.drain()) == b"".join(clients.kept)


async def test_group_that_a_kill_tore_gives_its_whole_frames(tmp_path: Path) -> None:
    """Wherever the write ended: of a frame that is not whole no post comes back."""
    async with JournalRun(tmp_path / "a") as life:
        clients = Clients(life)
        clients.post(2)
        await life.quiet()
        clients.post(3)
        await life.quiet()
        await killed(tmp_path / "a", tmp_path / "whole")
        await life.drain()
    (file,) = segment_files(tmp_path / "whole")
    data = file.path.read_bytes()
    last = b"".join(clients.kept[2:])
    for size in range(len(data) - HEAD_BYTES - len(last), len(data), 7):
        folder = tmp_path / f"b{size}"
        folder.mkdir()
        (folder / file.path.name).write_bytes(data[:size])
        async with JournalRun(folder) as after:
            await after.scan()
            assert after.ledger.recovered == 2
            assert after.journal.damaged == 0
            after.load()
            assert content(await after.drain()) == b"".join(clients.kept[:2])


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize(
    "failing",
    [
        {"write": errno.EIO},
        {"write": errno.ENOSPC},
        {"fdatasync": errno.EIO},
        {"fsync": errno.EIO},
        {"fdatasync": errno.EIO, "ftruncate": errno.EIO},
    ],
    ids=lambda each: "+".join(f"{name}-{number}" for name, number in each.items()),
)
async def test_nth_call_that_fails_refuses_each_post_of_its_group_and_no_other(
    tmp_path: Path, failing: dict[str, int], forever: bool
) -> None:
    """For every n: kept posts come back once, in order; those in memory only are not lost.

    While a group is written the next one gathers, of posts of both kinds.
    """
    refused = 0
    for nth in range(1, CALLS_MAX):
        folder = tmp_path / str(nth)
        calls = HangingDisk(**failing)
        calls.nth, calls.onwards = nth + 1, forever  # the folder itself is fine
        async with JournalRun(folder, calls=calls, segment_bytes=2_000) as life:
            clients = Clients(life)
            buffered: list[bytes] = []
            for _ in range(4):
                calls.go.clear()
                clients.post(5)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                clients.post(3, rows=2)
                block = make_block(1)
                rows = block.tuples
                if life.buffer.take_in(block):
                    life.ledger.received += 1
                    buffered.append(rows)
                calls.go.set()
                await life.quiet()
                assert life.buffer.unwritten.size_bytes == 0
                if not forever:
                    await _works_again(life)
            calls.failing = {}
            await _works_again(life)
            clients.post(4)
            await life.quiet()
            answered = len(clients.kept) + len(clients.refused) + clients.declined
            assert answered == 4 * 8 + 4
            refused += len(clients.refused)
            frames = on_disk(folder)
            found = b"".join(frames)
            at = 0
            for each in clients.kept:
                at = found.index(each, at) + len(each)
                assert found.count(each) == 1
            taken = life.buffer.take(1 << 20)
            held = content(taken)
            assert all(held.count(each) == 1 for each in clients.kept + buffered)
            assert not any(each in held for each in clients.refused)
            assert len(held) == sum(map(len, clients.kept + buffered))
            assert life.buffer.stats().size_bytes == len(held)
            life.settle(taken)
        if not calls.fired:
            assert refused
            return
    pytest.fail("the sweep did not come to a clean run")


async def _works_again(life: JournalRun) -> None:
    async with asyncio.timeout(5):
        while life.buffer.broken:  # noqa: ASYNC110  the probe is on a timer
            await asyncio.sleep(0.002)


async def test_log_of_a_failed_group_says_how_many_posts_it_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not how many frames."""
    async with JournalRun(tmp_path, calls=FailingCalls(write=errno.EIO)) as life:
        Clients(life).post(7)
        await life.quiet()
    assert "posts=7" in capsys.readouterr().out


async def test_stop_with_a_group_under_way_keeps_its_posts(tmp_path: Path) -> None:
    """The inlet is shut while the disk is slow: the posts are told, and left to the next start."""
    disk = HangingDisk()
    async with JournalRun(tmp_path / "a", calls=disk) as life:
        clients = Clients(life)
        disk.go.clear()
        clients.post(3)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        clients.post(3)  # they gather behind it
        life.buffer.shut_inlet()
        clients.post(1)
        assert clients.declined == 1
        ending = asyncio.create_task(life.buffer.keep_rest())
        await asyncio.sleep(0.01)
        assert not ending.done()
        assert life.buffer.stats().rows == 0
        assert life.ledger.at_receiver == 6
        disk.go.set()
        await ending
        assert len(clients.kept) == 6
        assert life.buffer.stats().rows == life.buffer.stats().rows_kept == 6
    async with JournalRun(tmp_path / "a") as after:
        await after.scan()
        after.load()
        assert content(await after.drain()) == b"".join(clients.kept)


@pytest.mark.parametrize("fails", [False, True])
async def test_room_on_the_disk_that_a_group_leaves_lets_the_next_post_in(
    tmp_path: Path, fails: bool
) -> None:
    """Two posts have reserved two frames, and need one; or none, if the write fails."""
    disk = HangingDisk()
    size = len(make_block(1).tuples)
    room = HEADER_BYTES + 2 * HEAD_BYTES + 3 * size + 2
    async with JournalRun(tmp_path, put_wait_s_max=5, journal_bytes_max=room, calls=disk) as life:
        clients = Clients(life)
        disk.go.clear()
        for _ in range(2):
            block = make_block(1)
            life.ledger.received += 1
            assert life.buffer.take_in(block)
        clients.post(1)
        assert clients.declined == 1
        waiting = asyncio.create_task(life.put(make_block(1)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        if fails:
            disk.failing, disk.nth = {"fdatasync": errno.EIO}, 2  # the header's, then the group's
        disk.go.set()
        async with asyncio.timeout(3):
            await waiting
        assert disk.fired == fails
        assert len(on_disk(tmp_path)) == 2 - fails
        await life.drain()


async def test_room_on_the_disk_that_posts_leave_which_wait_for_it(tmp_path: Path) -> None:
    """The same for posts that are told: the next post gets in when their frame is written."""
    size = len(make_block(1).tuples)
    room = HEADER_BYTES + 2 * HEAD_BYTES + 3 * size + 2
    async with JournalRun(tmp_path, put_wait_s_max=5, journal_bytes_max=room) as life:
        clients = Clients(life)
        clients.post(2)
        waiting = asyncio.create_task(life.put(make_block(1)))
        await asyncio.sleep(0)
        assert life.buffer.stats().posts_waiting == 1
        async with asyncio.timeout(3):
            await waiting
        assert len(clients.kept) == 2
        await life.drain()


@pytest.mark.parametrize("buffered", [False, True])
async def test_posts_that_come_together_are_live_ones(tmp_path: Path, buffered: bool) -> None:
    """Reading back must not delay them: not while they come, and not while they are written."""
    async with JournalRun(tmp_path) as life:
        assert not life.buffer.live_first()
        if buffered:
            life.ledger.received += 1
            assert life.buffer.take_in(make_block(1))
            assert life.buffer.live_first()
            life.buffer.live_put_s -= 1_000
        else:
            Clients(life).post(2)
        await life.quiet()
        assert life.buffer.live_first()
        await life.drain()
