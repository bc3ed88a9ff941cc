"""The dead-letter queue of one process: encodes letters, finds room for them, has them kept.

What keeps them is a backend: files (folder/backend.py), or a stream (roles/letters.py).
Promises: when `append` returns, the backend has the letters on a disk. An append that has begun is
finished even if its caller is cancelled. A letter that is live is not kept again, as far as the
backend knows. Each append is refused or kept for itself, also if several share a write.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from ingest.dead_letters.auto_replay import ReplaySource
from ingest.dead_letters.format import encode_line, key_of
from ingest.dead_letters.identity import DEFAULT_RULES, letter_id
from ingest.dead_letters.store import LetterStore
from ingest.formats.post import Rules
from ingest.model.causes import MAKE_SPACE, Cause, Trouble, trouble_of
from ingest.model.errors import BufferFull, DeadLettersBroken, DeadLettersFull, ShareUsed
from ingest.model.ledger import DeadLetterStats
from ingest.model.reading import DRAINED, EXHAUSTED, Letter
from ingest.system.clock import monotonic_s, sleep_unless, unix_us
from ingest.system.logs import get_logger
from ingest.system.words import counted

INVALID_FULL = "invalid_full"
SHARE_USED = "sender_share_used"  # of the space for invalid items
CAUSES = {
    INVALID_FULL: Cause(
        "posts with an invalid item are refused: the dead letters are half full, and the rest is "
        "kept for valid readings",
        MAKE_SPACE,
        "ingestinvaliditemsrefused",
        rank=40,
    ),
    SHARE_USED: Cause(
        "posts of a sender are refused if one item is invalid: it has used its share of the space "
        "for such items",
        "`{run} dlq list --where reason=invalid` shows what is wrong with its items. Fix the "
        "sender. Then replay or discard them.",
        "ingestsendershareused",
        rank=50,
    ),
}
INVALID_PARTS = 2  # one of so many parts of all may be invalid items
HALF_LIFE_S = 86_400.0
SENDERS_MAX = 10_000  # those that are remembered; about 200 bytes each
TOLD_S, TOLD_MAX = 60.0, 100  # so long after its last refusal, and so many of them


def trouble(letters: DeadLetterStats) -> Trouble:
    """Return why posts with an invalid item are refused, or nothing."""
    if letters.invalid_full:
        return trouble_of(CAUSES, INVALID_FULL)
    return trouble_of(CAUSES, SHARE_USED if letters.share_used_by else "", letters.share_used_by)


class Room:
    """How much room the dead letters have, and for whom. `auto_replay`: some leave by themselves.

    Invalid items find room until the letters of all reasons use half of `bytes_max`. This half is
    shared by the senders of such items: tokens, or networks where nobody needs one. A sender may
    use no more than it leaves free for others, and what it has used counts half after a day. So one
    sender never fills that half, whatever names its items have, and a sender that has sent no
    invalid item finds room until there is none. If a trusted proxy does not say whose post it
    brings, the sender is not known (""): it may be all of them, so no share holds.
    """

    def __init__(self, bytes_max: int, *, auto_replay: bool) -> None:
        self._bytes_max = bytes_max
        self._auto_replay = auto_replay
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()  # of senders: bytes, at
        self._refused: dict[str, float] = {}  # of senders: when the last one was

    @property
    def share_used_by(self) -> str:
        """Whose items were refused in the last minute, as their shares are used; or ""."""
        since_s = monotonic_s() - TOLD_S
        self._refused = {each: at_s for each, at_s in self._refused.items() if at_s > since_s}
        sender, *others = self._refused or [""]
        return f"{sender} and {counted(len(others), 'other')}" if others else sender

    def is_full_for_invalid(self, taken: int) -> bool:
        """Whether there is no room for invalid items: less than a hundredth of that half."""
        half = self._bytes_max // INVALID_PARTS
        return (half - taken) * 100 < half

    def refusal(
        self,
        letters: Sequence[Letter],
        sender: str | None,
        size: int,
        *,
        taken: int,
        returning: int,
    ) -> DeadLettersFull | None:
        """Return why letters of `size` bytes find no room beside those that are `taken`.

        `returning` is the least size of the letters that the automatic replay takes.
        """
        limit, whose = self._limit(letters, sender, returning)
        if taken + size > limit:
            return DeadLettersFull(f"the dead letters have {taken} bytes of {limit}{whose}")
        # A sender uses no more than all do now.
        if not sender or min(self._used_by(sender), taken) + size <= limit - taken:
            return None
        if sender in self._refused or len(self._refused) < TOLD_MAX:
            self._refused[sender] = monotonic_s()
        return ShareUsed(f"{sender} has used its share of the space for invalid items")

    def _limit(
        self, letters: Sequence[Letter], sender: str | None, returning: int
    ) -> tuple[int, str]:
        """Return how large the folder may become with these letters, and a text about the limit.

        Letters that the automatic replay takes leave the folder only while writes are not paused.
        So they must not use all of it: refused rows need space too, or writes would be paused. For
        the same reason the bytes of such letters do not count against refused rows.
        """
        if sender is not None:
            return self._bytes_max // INVALID_PARTS, ", up to which invalid items are kept"
        if not self._auto_replay:
            return self._bytes_max, ""
        if all(letter.reason == EXHAUSTED for letter in letters):
            return self._bytes_max * 3 // 4, ", up to which retries_exhausted are kept"
        return self._bytes_max + returning, ""

    def use(self, sender: str | None, size: int) -> None:
        """Count what a sender uses. If there are too many senders, the oldest is forgotten."""
        if not sender:
            return
        self._used[sender] = (self._used_by(sender) + size, monotonic_s())
        self._used.move_to_end(sender)
        if len(self._used) > SENDERS_MAX:
            self._used.popitem(last=False)

    def _used_by(self, sender: str) -> float:
        """Return how many bytes a sender has used lately."""
        size, at_s = self._used.get(sender, (0.0, 0.0))
        return size and size * 0.5 ** ((monotonic_s() - at_s) / HALF_LIFE_S)


GROUP_BYTES_MAX = 4 * 1024**2  # of one write, for which all lines are in memory twice
ENCODED_LETTERS_MAX, ENCODED_BYTES_MAX = 100, 64 * 1024  # in the event loop; more: in a thread
LOOK_S = 1.0  # `stats` starts a new look if the last one is older
MAKE_ROOM_S_MIN = 5.0  # between two searches for files to remove while there is no room
TIDY_S = 600.0
# Of letters that are being appended. Half of it is for posts with few invalid items, so a client
# that sends many of them does not keep those out.
IN_WORK_BYTES_MAX = 16 * 1024**2
SMALL_BYTES_MAX = 64 * 1024
LETTER_BYTES = 500  # what a letter takes beside the bytes of its item
BUSY_S = 1.0


class NewLetter(NamedTuple):
    """A letter that is not kept yet, as a line. `failed_us` is in Unix microseconds."""

    id: str
    reason: str
    failed_us: int
    line: bytes


class LetterTotals(NamedTuple):
    """What a backend has: bytes, the number of live letters, when the oldest of these failed.

    `returning_bytes` is the least size of the letters that the automatic replay takes, if known.
    """

    size_bytes: int = 0
    live: int = 0
    oldest_us: int | None = None
    returning_bytes: int = 0


class LetterBackend(Protocol):
    """Keeps letters. `groups_max` writes at once; `beside_bytes` are taken beside each line."""

    name: str
    groups_max: int
    beside_bytes: int

    @property
    def letters(self) -> LetterStore:
        """The live letters."""

    async def open(self) -> None:
        """Prepare. Raises StartError."""

    def kept(self) -> LetterTotals:
        """Return what it has, with its own writes, as of the last look. Never blocks."""

    async def look(self) -> None:
        """Take over what others have changed. Never fails: then the last look counts."""

    async def live(self, keys: Collection[bytes]) -> set[bytes]:
        """Return those of these letters that are live, as far as is known."""

    def too_long(self, line_bytes: int) -> str:
        """Return why a line of this size cannot be kept, or nothing."""

    async def write(self, letters: Mapping[bytes, NewLetter]) -> None:
        """Return once a disk has all of them. Raises DeadLettersFull or DeadLettersBroken."""

    async def make_room(self) -> None:
        """Remove what is done before its time."""

    async def tidy(self) -> list[Path]:
        """Remove what is done and old; return the files."""

    def replay_source(self, pause_s: float) -> ReplaySource:
        """Return what the automatic replay takes from it, if it looks each `pause_s`."""

    async def close(self) -> None:
        """End. Repeatable."""


class _Append(NamedTuple):
    """One call of `append`: all of its letters are kept, or none is promised."""

    letters: Sequence[Letter]
    sender: str | None
    size_bytes: int
    done: asyncio.Future[None]


class DeadLetterQueue:
    """Implements ports.DeadLetters with a backend. Make it in the running event loop.

    The dead letters have at most `bytes_max`. `auto_replay`: a Replayer takes some of them out
    again, so these may not use all of it. `rules` say which time of an invalid item is usable.
    """

    def __init__(
        self,
        backend: LetterBackend,
        *,
        bytes_max: int,
        auto_replay: bool = True,
        rules: Rules = DEFAULT_RULES,
    ) -> None:
        self.backend = backend
        self.letters = backend.letters  # the live ones
        self._rules = rules
        self._room = Room(bytes_max, auto_replay=auto_replay)
        self._in_work_bytes = 0  # about, of letters that are appended and not kept yet
        self._waiting: deque[_Append] = deque()
        self._groups: set[asyncio.Task[None]] = set()  # being written
        self._deciding = asyncio.Lock()  # in the order in which the appends came
        self._pending_bytes = 0  # of the letters that are being written
        self._looking: asyncio.Task[None] | None = None
        self._looked_s = self._room_made_s = float("-inf")
        self._closed = False

    async def open(self) -> None:
        """Prepare the backend. Raises StartError if it cannot be used."""
        await self.backend.open()
        if self._is_full:  # or letters that are all done would count as a full half
            await self.backend.make_room()

    async def append(self, letters: Sequence[Letter], *, sender: str | None = None) -> None:
        """Return when all letters are on the disk. A letter that is live is not written again.

        Raises DeadLettersFull or DeadLettersBroken; then no letter is promised to be there. If
        letters of senders come faster than the backend takes them, raises BufferFull. Cancelling
        the wait does not stop the write.
        """
        if not letters:
            return
        if self._closed:
            raise DeadLettersBroken("the dead letters are closed")
        size = sum(LETTER_BYTES + len(each.original or b"") for each in letters)
        limit = IN_WORK_BYTES_MAX if size <= SMALL_BYTES_MAX else IN_WORK_BYTES_MAX // 2
        if sender is not None and self._in_work_bytes and self._in_work_bytes + size > limit:
            where = self.backend.name
            raise BufferFull(BUSY_S, f"invalid items come faster than {where} takes them")
        self._in_work_bytes += size
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(partial(self._append_done, size))
        self._waiting.append(_Append(letters, sender, size, done))
        self._begin()
        await asyncio.shield(done)

    def _append_done(self, size: int, done: asyncio.Future[None]) -> None:
        self._in_work_bytes -= size
        done.exception()  # or asyncio logs it: the task that waited may have been cancelled

    def _begin(self) -> None:
        """Write what waits, as many groups at once as the backend takes."""
        while self._waiting and len(self._groups) < self.backend.groups_max:
            group: list[_Append] = []
            size = 0
            while self._waiting and size <= GROUP_BYTES_MAX:
                group.append(self._waiting.popleft())
                size += group[-1].size_bytes
            task = asyncio.create_task(self._write(group))
            self._groups.add(task)
            task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._groups.discard(task)
        self._begin()

    async def _write(self, group: Sequence[_Append]) -> None:
        fresh: dict[bytes, NewLetter] = {}
        try:
            async with self._deciding:
                await self._decide(group, fresh)
            if fresh:
                await self.backend.write(fresh)
        except Exception as error:  # also a bug: nobody may wait for ever
            for each in group:
                if not each.done.done():
                    each.done.set_exception(error)
        else:
            for each in group:
                if not each.done.done():
                    each.done.set_result(None)
        finally:
            self._pending_bytes -= self._size_of(fresh.values())

    async def _decide(self, group: Sequence[_Append], fresh: dict[bytes, NewLetter]) -> None:
        """Add to `fresh` what is to be written for those who find room; tell the others why not."""
        letters = sum(len(each.letters) for each in group)
        if letters > ENCODED_LETTERS_MAX or sum(e.size_bytes for e in group) > ENCODED_BYTES_MAX:
            encoded = await asyncio.to_thread(self._encoded, group)
        else:
            encoded = self._encoded(group)
        live = await self.backend.live(set().union(*encoded))
        for each, lines in zip(group, encoded, strict=True):
            new = {key: x for key, x in lines.items() if not (key in live or key in fresh)}
            size = self._size_of(new.values())
            refusal = self._refusal(each, new, size)
            if refusal is not None and monotonic_s() - self._room_made_s >= MAKE_ROOM_S_MIN:
                await self._make_room()
                refusal = self._refusal(each, new, size)
            if refusal is not None:
                each.done.set_exception(refusal)
                continue
            self._room.use(each.sender, size)
            self._pending_bytes += size
            fresh |= new

    def _encoded(self, group: Sequence[_Append]) -> list[dict[bytes, NewLetter]]:
        """Return the lines of each append by key, each once. Blocks."""
        failed_us = unix_us()
        found: list[dict[bytes, NewLetter]] = []
        for each in group:
            lines: dict[bytes, NewLetter] = {}
            for letter in each.letters:
                id_ = letter_id(letter, self._rules)
                key = key_of(id_, letter.reason)
                if key not in lines:
                    line = encode_line(letter, id_=id_, failed_us=failed_us)
                    lines[key] = NewLetter(id_, letter.reason, failed_us, line)
            found.append(lines)
        return found

    def _refusal(
        self, append: _Append, lines: Mapping[bytes, NewLetter], size: int
    ) -> DeadLettersFull | None:
        """Return why these letters find no room."""
        if not lines or all(letter.reason == DRAINED for letter in append.letters):
            return None  # at the end of a drain they have no other place: no limit
        if why := self.backend.too_long(max(len(each.line) for each in lines.values())):
            return DeadLettersFull(why)
        kept = self.backend.kept()
        return self._room.refusal(
            append.letters,
            append.sender,
            size,
            taken=kept.size_bytes + self._pending_bytes,
            returning=kept.returning_bytes,
        )

    def _size_of(self, letters: Collection[NewLetter]) -> int:
        return sum(len(each.line) + self.backend.beside_bytes for each in letters)

    @property
    def _is_full(self) -> bool:
        taken = self.backend.kept().size_bytes + self._pending_bytes
        return self._room.is_full_for_invalid(taken)

    async def _make_room(self) -> None:
        """Remove what is done before its time: full dead letters would pause writes."""
        self._room_made_s = monotonic_s()
        await self.backend.make_room()

    async def look(self) -> None:
        """Take over what other processes changed."""
        self._looked_s = monotonic_s()
        await self.backend.look()
        made_s = monotonic_s() - self._room_made_s
        if not self.backend.kept().live and self._is_full and made_s >= MAKE_ROOM_S_MIN:
            await self._make_room()  # or /readyz tells of a full folder until the next append

    def _look_if_old(self) -> None:
        idle = self._looking is None or self._looking.done()
        if idle and not self._closed and monotonic_s() - self._looked_s > LOOK_S:
            self._looking = asyncio.create_task(self.look())

    def stats(self) -> DeadLetterStats:
        """Return the figures of the last look; look again if that is old. Never blocks.

        Letters beyond those that the backend remembers may count twice.
        """
        self._look_if_old()
        size_bytes, live, oldest_us, _ = self.backend.kept()
        age_s = 0.0 if oldest_us is None else max(0.0, (unix_us() - oldest_us) / 1e6)
        return DeadLetterStats(size_bytes, live, age_s, self._is_full, self._room.share_used_by)

    async def tidy(self, stopping: asyncio.Event) -> None:
        """Remove again and again what is done and old, until the event is set."""
        pause_s = 0.0
        while not await sleep_unless(stopping, pause_s):
            pause_s = TIDY_S
            if removed := await self.backend.tidy():
                names = [path.name for path in removed]
                get_logger().info("dead_letters_tidied", files=names)

    async def close(self) -> None:
        """Wait for appends that have begun, then end the backend. A second call does nothing."""
        self._closed = True
        while self._groups:
            await asyncio.wait(self._groups)
        if self._looking is not None:
            await asyncio.wait([self._looking])
        await self.backend.close()
