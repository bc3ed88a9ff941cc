"""Dead letters for the page: lists the newest ones, shows one in full, replays and discards.

The list is read from the end of the files, at most LOOK_BYTES_MAX, in one thread for all requests.
The newest letters are what a user of the page needs first; `ingest dlq` shows all of them. Replay
and discard take the replay lock, and mark lines in the dead-letter thread of the service.
"""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ingest.dead_letters.files import segments
from ingest.dead_letters.format import reading_object
from ingest.dead_letters.manual_replay import (
    Item,
    ManualReplay,
    hold_replay_lock,
    item_of_letter,
)
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.dead_letters.reader import (
    LiveLetter,
    Selection,
    device_of,
    live_letters,
    segment_letters,
)
from ingest.formats.post import Rules
from ingest.model.errors import DeadLettersBroken, IngestError, Refused, ReplayStopped
from ingest.model.ports import Sink
from ingest.system.clock import rfc3339_or_us
from ingest.system.files import open_regular

LISTED_MAX = 200
LOOK_BYTES_MAX = 4 * 1024**2  # some 10,000 letters, 0.1 s in a thread
ACT_LETTERS_MAX = 5_000
ACT_BYTES_MAX = 16 * 1024**2
COUNT_BYTES_MAX = 64 * 1024**2
# Decoded in one round of the event loop, in about a millisecond: at most so many letters, and so
# many bytes unless one letter has more.
ROUND_LETTERS_MAX = 100
ROUND_BYTES_MAX = 64 * 1024
TEXT_CHARACTERS_MAX = 300  # of an original in the list
LOCK_WAIT_S_MAX = 5.0


class Letters:
    """The dead letters of one service. `make_sink` returns None while there is no database."""

    def __init__(
        self,
        folder: DeadLetterQueue,
        rules: Rules,
        make_sink: Callable[[], Sink | None],
    ) -> None:
        self._folder = folder
        self._rules = rules
        self._make_sink = make_sink
        self._reading = asyncio.Lock()  # one thread: many would take the GIL from the event loop

    async def listed(self, where: Selection, count: int) -> dict[str, Any]:
        """Return the newest live letters that are wanted, with shortened texts. Raises Refused."""
        count = max(1, min(count, LISTED_MAX))
        async with self._reading:
            listed: dict[str, Any] = await self._in_thread(
                lambda: _list(self._folder.folder, where, count)
            )
        return listed

    async def in_full(self, id_: str) -> dict[str, Any]:
        """Return one live letter in full. Raises Refused `not_found`."""
        async with self._reading:
            found = await self._find(Selection(ids=frozenset([id_.encode()])), ACT_LETTERS_MAX)
        if not found:
            raise Refused("not_found", "there is no such live dead letter (any more)")
        return _described(found[0], characters_max=1_000_000)

    async def counted(self, where: Selection) -> dict[str, Any]:
        """Return how many live letters match; at least that many if not `all`. Raises Refused."""
        async with self._reading:
            number, whole = await self._in_thread(lambda: count(self._folder.folder, where))
        return {"matching": number, "all": whole}

    async def discard(self, where: Selection, most: int = ACT_LETTERS_MAX) -> dict[str, Any]:
        """Mark letters as done without writing them to the table, oldest first. Raises Refused.

        At most `most` and ACT_LETTERS_MAX at once. So what came after the user was asked is kept.
        """
        letters = await self._locked(where, lambda found: self._mark(found, "discarded"), most)
        return {"discarded": len(letters)}

    async def replay(self, where: Selection, most: int = ACT_LETTERS_MAX) -> dict[str, Any]:
        """Validate letters again and write them to the table, oldest first. Raises Refused.

        At most `most` and ACT_LETTERS_MAX at once. Letters that are refused again are reported and
        kept.
        """
        sink = self._make_sink()
        if sink is None:
            raise Refused("starting", "the service has not seen its database yet")
        done: list[Item] = []
        hand = ManualReplay(sink=sink, rules=self._rules, done=done.extend)
        stopped = ""

        async def send(letters: list[LiveLetter]) -> None:
            nonlocal stopped
            try:
                for some in rounds(letters):
                    await hand.run(map(item_of_letter, some))
                    await asyncio.sleep(0)
            except ReplayStopped as error:
                stopped = str(error)
            finally:
                await self._mark([each.source for each in done if each.source], "replayed")

        try:
            letters = await self._locked(where, send, most)
        finally:
            await sink.close()
        summary = hand.summary
        return {
            "asked": len(letters),
            "replayed": summary.letters,
            "new": summary.new,
            "duplicate": summary.duplicate,
            "refused": summary.refused,
            "refusals": [
                {"id": each.id, "code": each.code, "message": each.message}
                for each in summary.refusals
            ],
            "stopped": stopped,
        }

    async def _locked(
        self, where: Selection, act: Callable[[list[LiveLetter]], Any], most: int
    ) -> list[LiveLetter]:
        """Find letters and call `act` with them while nobody else may mark lines."""
        try:
            lock = await hold_replay_lock(self._folder.folder, LOCK_WAIT_S_MAX)
        except IngestError as error:
            raise Refused("busy", str(error), retry_after_s=5) from error
        with lock:
            letters = await self._find(where, most)
            await act(letters)
        return letters

    async def _find(self, where: Selection, most: int) -> list[LiveLetter]:
        found: list[LiveLetter] = await self._in_thread(
            lambda: _wanted(self._folder.folder, where, most)
        )
        return found

    async def _mark(self, letters: Sequence[LiveLetter], how: str) -> None:
        if not letters:
            return
        try:
            await self._folder.mark_done(letters, how)
        except DeadLettersBroken as error:
            raise Refused("disk_low", "the letters could not be marked as done") from error

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise Refused(
                "disk_low", f"the dead letters cannot be read: {error.strerror}"
            ) from error


def rounds(letters: Sequence[LiveLetter]) -> Iterator[list[LiveLetter]]:
    """Divide letters into those of one round each."""
    some: list[LiveLetter] = []
    size = 0
    for live in letters:
        size += len(live.line)
        if some and (size > ROUND_BYTES_MAX or len(some) == ROUND_LETTERS_MAX):
            yield some
            some, size = [], len(live.line)
        some.append(live)
    if some:
        yield some


def _list(folder: Path, where: Selection, count: int) -> dict[str, Any]:
    found, whole = newest(folder, where, count)
    return {"letters": [_described(each) for each in found], "looked_at_all": whole}


def newest(folder: Path, where: Selection, count: int) -> tuple[list[LiveLetter], bool]:
    """Return the newest `count` live letters, newest first, and whether all files were read.

    An id that is in two files is returned once.
    """
    found: dict[tuple[str, str], LiveLetter] = {}
    left = LOOK_BYTES_MAX
    for segment in reversed(segments(folder)):
        if left <= 0 or len(found) >= count:
            return _first(found, count), False
        start, size = _line_start(segment, left)
        left -= size
        its = deque(segment_letters(segment, start=start, where=where), maxlen=2 * count)
        for live in reversed(its):
            found.setdefault((live.id, live.letter.reason), live)
        if start:
            return _first(found, count), False
    return _first(found, count), len(found) <= count


def _first(found: dict[tuple[str, str], LiveLetter], count: int) -> list[LiveLetter]:
    return list(islice(found.values(), count))


def _line_start(segment: Path, bytes_max: int) -> tuple[int, int]:
    """Return where the first whole line of a file's last `bytes_max` bytes starts, and its size."""
    try:
        size = segment.stat().st_size
        if size <= bytes_max:
            return 0, size
        with open_regular(segment) as file:
            file.seek(size - bytes_max)
            file.readline(bytes_max)
            return file.tell(), bytes_max
    except FileNotFoundError:
        return 0, 0  # another process removed it after it was listed


def count(folder: Path, where: Selection) -> tuple[int, bool]:
    """Return how many live letters match, and whether all of them were counted."""
    found = size = 0
    for live in live_letters(folder, where=where):
        found += 1
        size += len(live.line)
        if size >= COUNT_BYTES_MAX:
            return found, False
    return found, True


def _wanted(folder: Path, where: Selection, most: int) -> list[LiveLetter]:
    """Return the live letters for an action, oldest first, with every line of an id."""
    found: list[LiveLetter] = []
    size = 0
    for live in live_letters(folder, where=where):
        found.append(live)
        size += len(live.line)
        if len(found) >= min(most, ACT_LETTERS_MAX) or size >= ACT_BYTES_MAX:
            break
    return found


def _described(live: LiveLetter, characters_max: int = TEXT_CHARACTERS_MAX) -> dict[str, Any]:
    letter = live.letter
    original = _text(letter.original)
    return {
        "id": live.id,
        "reason": letter.reason,
        "code": letter.code,
        "message": letter.message[:characters_max],
        "field": letter.field,
        "attempts": letter.attempts,
        "received_at": rfc3339_or_us(letter.received_us),
        "failed_at": rfc3339_or_us(live.failed_us),
        "device": device_of(letter),
        "reading": reading_object(letter.reading) if letter.reading is not None else None,
        "original": original[:characters_max] if original is not None else None,
        "cut": original is not None and len(original) > characters_max,
    }


def _text(original: bytes | None) -> str | None:
    if original is None:
        return None
    try:
        return original.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(original).decode()
