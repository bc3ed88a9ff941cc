"""The automatic replay: sends some dead letters through the buffer again.

It takes the letters with the reasons `retries_exhausted` and `drained`, because nothing is wrong
with them. It reads all segments, those of earlier processes too. It sends one block at a time,
slower than live readings, and only while the buffer has space and the database answers.
A line is marked as done after the outcome of its block is known. If the process is killed in
between, the line is sent twice, and the table's key makes the second time harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ingest.dead_letters.files import segments, try_replay_lock
from ingest.dead_letters.reader import LiveLetter, Selection, first_letters
from ingest.dead_letters.sending import BlockSender, fits_a_row
from ingest.model.ack import Outcome
from ingest.model.errors import BufferFull, DeadLettersBroken, Stopping
from ingest.model.letter import DRAINED, EXHAUSTED
from ingest.system.backoff import backoff_s
from ingest.system.clock import monotonic_s, sleep_unless
from ingest.system.files import size_bytes
from ingest.system.logs import get_logger

REPLAYED = Selection(reasons=(EXHAUSTED, DRAINED))
BLOCK_ROWS_MAX = 500  # small beside a live batch, so it delays live readings little
FAILURES_MAX = 3  # failed blocks in a row: then the cause is the database, not the blocks
UNLOCKED_S_MIN = 0.02  # pause between blocks, in which a replay by hand can take the lock
PAUSE_S_MAX = 300.0  # longest pause while letters keep failing
TIDY_S = 600.0


class OwnFolder(Protocol):
    """The dead letters of this process, as the replay needs them."""

    folder: Path

    async def mark_done(self, letters: Sequence[LiveLetter], how: str) -> None:
        """Record on the disk that lines are done; raises DeadLettersBroken."""

    async def tidy(self) -> list[Path]:
        """Remove finished segments that are not needed; return them."""


def finished(letters: list[LiveLetter], outcome: Outcome) -> list[LiveLetter]:
    """Return those of a block that are stored, or have become letters of another reason."""
    if outcome.set_aside:
        return []
    live = outcome.coming_back
    return [each for row, each in enumerate(letters) if row not in live]


class Replayer:
    """The replay of one service. `run` ends soon after `stopping` is set; it is never cancelled.

    It sends at most `rows_per_s`, and searches for letters every `pause_s`. Without `sends` it only
    tidies the folder.
    """

    def __init__(
        self,
        *,
        sends: bool,
        post_rows_max: int,
        rows_per_s: int,
        pause_s: float,
        folder: OwnFolder,
        sender: BlockSender,
    ) -> None:
        self._sends = sends
        self._rows_per_s = rows_per_s
        self._pause_s = pause_s
        self._folder = folder
        self._sender = sender
        self._log = get_logger()
        self._rows_max = min(BLOCK_ROWS_MAX, post_rows_max, rows_per_s)
        # Lines are only appended and marks are never removed. So lines that were done once are not
        # read again (`_done_to`). After a failure the search continues behind the failed letters
        # until all others have been tried (`_next`).
        self._done_to: dict[Path, int] = {}
        self._next: dict[Path, int] = {}
        self._tidied_s = float("-inf")

    async def run(self, stopping: asyncio.Event) -> None:
        """Search for letters every `pause_s`, less often while they keep failing."""
        failures = 0
        pause_s = 0.0
        while not await sleep_unless(stopping, pause_s):
            try:
                went_well = not self._sends or await self._replay_all(stopping)
                await self._tidy()
            except (BufferFull, Stopping):
                went_well = True  # no space now: live readings come first
            except (DeadLettersBroken, OSError) as error:
                went_well = False
                self._log.warning("replay_failed", why=str(error))
            pause_s = self._pause_s
            failures = 0 if went_well else failures + 1
            if failures:
                pause_s += backoff_s(failures, first_s=pause_s, cap_s=PAUSE_S_MAX)

    async def _tidy(self) -> None:
        if monotonic_s() - self._tidied_s < TIDY_S:
            return
        self._tidied_s = monotonic_s()
        if removed := await self._folder.tidy():
            self._log.info("dead_letters_tidied", files=[path.name for path in removed])
        # If a write was taken back after it had been read, other lines may follow in its place.
        for last in segments(self._folder.folder)[-1:]:
            self._done_to.pop(last, None)

    async def _replay_all(self, stopping: asyncio.Event) -> bool:
        """Replay all letters there are; return False if some of them failed again."""
        found = segments(self._folder.folder)
        self._done_to = {path: self._done_to.get(path, 0) for path in found}
        failed = failed_in_a_row = 0
        for segment in found:
            more = True
            while more and not stopping.is_set():
                began_s = monotonic_s()
                lock = try_replay_lock(self._folder.folder) if self._sender.may_send() else None
                if lock is None:
                    return not failed  # live readings and a replay by hand come first
                with lock:
                    rows, well = await self._replay_some(segment, stopping)
                more = rows == self._rows_max
                failed += not well
                failed_in_a_row = 0 if well else failed_in_a_row + 1
                if failed_in_a_row >= FAILURES_MAX:
                    return False
                if rows:
                    spare_s = began_s + rows / self._rows_per_s - monotonic_s()
                    await sleep_unless(stopping, max(spare_s, UNLOCKED_S_MIN))
        self._next.clear()
        return not failed

    async def _replay_some(self, segment: Path, stopping: asyncio.Event) -> tuple[int, bool]:
        """Replay the next block of a segment; return its rows, and False if some failed again."""
        done_to = self._done_to[segment]
        start = max(done_to, self._next.get(segment, 0))
        if size_bytes(segment) <= start:
            return 0, True
        letters, end = await asyncio.to_thread(
            first_letters, segment, start=start, where=REPLAYED, count_max=self._rows_max
        )
        if stopping.is_set():
            return 0, True
        found = len(letters)
        letters = [each for each in letters if fits_a_row(each.letter)]
        if len(letters) < found:
            self._log.warning("dead_letters_not_readings", lines=found - len(letters))
        well = True
        if letters:
            outcome = await self._sender.send(letters, stopping)
            if outcome is None:
                return 0, True
            done = finished(letters, outcome)
            well = len(done) == len(letters)
            if done:
                await self._folder.mark_done(done, "replayed")
            self._log.info("replayed", rows=len(done), set_aside_again=not well)
        self._next[segment] = end
        if well and start == done_to:
            self._done_to[segment] = end
        return found, well
