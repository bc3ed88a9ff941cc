"""Whether batches may be written now: the database is open, away (`wait`), or writes are paused.

Writers report each success and failure to DatabaseState. While it is not open, only one writer at a
time probes the server; the lock `probing` holds this. So a server that comes back gets one client
first, and not all at once.
The circuit breaker pauses writes when the database refuses rows of many posts. The cause is then a
fault of ours or of the operator, such as a wrong constraint. Without the breaker such a fault would
move the readings of a whole fleet into the dead letters.
Does not: know a connection.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from types import MappingProxyType

from ingest.model.block import Block, Refusal
from ingest.model.causes import CAUSES, UNREACHABLE, Verdict, WriteFailed
from ingest.system.clock import monotonic_s
from ingest.system.logs import get_logger
from ingest.system.waiting import backoff_s, first_of

OPEN, WAIT, HOLD = "open", "wait", "hold"  # HOLD: writes are paused

BREAKER = "breaker"  # the reason of a pause by the circuit breaker
# A window has at least so many posts. So ten posts never pause writes, whatever is in them.
WINDOW_POSTS_MIN = 50
WINDOW_ROWS, ROWS_MAX = 1_000, 200  # with more refused rows of so many, writes are paused
log = get_logger("database_state")
Refused = Mapping[int, Sequence[Refusal]]  # the refused rows of each block that has some
NONE: Refused = MappingProxyType({})
_Post = tuple[int, int, str]  # rows, refused rows, sender


class DatabaseState:
    """The state of the database as the writers see it. All times are in seconds."""

    def __init__(self, *, wait_s_min: float, wait_s_max: float, hold_probe_s: float) -> None:
        self._wait_s_min = wait_s_min
        self._wait_s_max = wait_s_max
        self._hold_probe_s = hold_probe_s
        self._tries = 0
        self._held = asyncio.Event()
        self._nudged = asyncio.Event()
        self.probing = asyncio.Lock()
        self.state = OPEN
        self.reason = ""  # one of a closed set, for metrics
        self.message = ""  # of the server, for people
        self._since_s = self.stored_s = monotonic_s()  # `stored_s`: of the last write
        self.failure = ""  # of the last write, if none went through since

    @property
    def is_open(self) -> bool:
        """Whether batches may be written without probing first."""
        return self.state == OPEN

    @property
    def up(self) -> bool:
        """Whether the server answered at the last try."""
        return self.state != WAIT

    @property
    def hold_reason(self) -> str | None:
        """Why writes are paused, or None."""
        return self.reason if self.state == HOLD else None

    @property
    def cause(self) -> str:
        """Why readings are not written now; empty if they are.

        While the server is away, its last words change with each try. One word stands for those
        that say no more than this.
        """
        says_more = self.state != WAIT or self.reason in CAUSES
        return self.reason if says_more else UNREACHABLE

    async def wait_hold(self) -> str:
        """Wait until writes are paused; return the reason."""
        while self.hold_reason is None:  # the pause may be over before this task runs
            await self._held.wait()
        return self.reason

    def opened(self) -> None:
        """A probe succeeded."""
        if self.state != OPEN:
            after_s = round(monotonic_s() - self._since_s, 3)
            if self.state == HOLD:
                log.info("writing_resumed", reason=self.reason, after_s=after_s)
            else:
                log.info("database_back", after_s=after_s)
            self._change(OPEN, "", "")
        self._tries = 0
        self.stored()

    def stored(self) -> None:
        """A write went through, or nothing keeps one from it."""
        self.stored_s, self.failure = monotonic_s(), ""

    def retried(self, failure: WriteFailed, *, rows: int, attempt: int) -> None:
        """A write failed, and is tried again: the server answers."""
        log.warning(
            "write_failed",
            sqlstate=failure.sqlstate,
            message=failure.message,
            rows=rows,
            attempt=attempt,
        )
        self.failure = ": ".join(filter(None, (failure.sqlstate, failure.message)))

    def answered(self, failure: WriteFailed) -> None:
        """A probe's write failed. If the batch is the cause, a server that was away is back."""
        if self.state == WAIT and failure.verdict not in (Verdict.WAIT, Verdict.HOLD):
            self.opened()

    def failed(self, failure: WriteFailed) -> None:
        """A write or a probe failed: the server is away (WAIT), or an operator has to fix it."""
        state = WAIT if failure.verdict is Verdict.WAIT else HOLD
        self._tries += 1
        if state == self.state and failure.reason == self.reason:
            return  # one log line for each pause, not for each try
        if state == HOLD:
            log.error(
                "on_hold",
                reason=failure.reason,
                sqlstate=failure.sqlstate,
                message=failure.message,
                probe_s=self._hold_probe_s,
            )
        elif self.state != WAIT:
            log.warning("database_away", sqlstate=failure.sqlstate, message=failure.message)
        self._change(state, failure.reason, failure.message)

    def _change(self, state: str, reason: str, message: str) -> None:
        if state != self.state:
            self._since_s = monotonic_s()
            self._tries = 0
        self.state, self.reason, self.message = state, reason, message
        if state == HOLD:
            self._held.set()
        else:
            self._held.clear()

    def pause_s(self) -> float:
        """Return how long to wait before the next probe."""
        if self.state == HOLD:
            return self._hold_probe_s
        return backoff_s(self._tries, first_s=self._wait_s_min, cap_s=self._wait_s_max)

    async def pause(self, halted: asyncio.Event) -> None:
        """Wait `pause_s`. `halted` or a call of `nudge` ends the wait earlier."""
        try:
            await first_of(halted.wait(), self._nudged.wait(), within_s=self.pause_s())
        finally:
            self._nudged.clear()

    def nudge(self) -> None:
        """Have the next probe made at once."""
        self._nudged.set()


class CircuitBreaker:
    """Remembers the last posts that were written or isolated, and judges each batch.

    It decides before any row of the batch is dead-lettered. It looks at a window of consecutive
    posts. Writes are paused if more than `rows_max` of `window_rows` rows are refused, and these
    come from more than a fifth of the posts, and from more than a fifth of the senders. A post with
    refused rows counts once, however many they are and whatever devices they name. A post whose
    sender is unknown, since it was read back from the journal, counts as a sender of its own.
    """

    def __init__(self, *, window_rows: int, rows_max: int) -> None:
        self._window_rows = window_rows
        self._rows_max = rows_max
        self._posts_max = max(window_rows, WINDOW_POSTS_MIN)  # each post has at least one row
        self._past: deque[_Post] = deque(maxlen=self._posts_max)
        self._released_until_s = float("-inf")

    def written(self, blocks: Sequence[Block], refused: Refused = NONE) -> None:
        """Remember a committed write. `refused` has the refused rows by the index of the block."""
        first = max(0, len(blocks) - self._posts_max)
        if not refused:  # nearly always; this costs a fifth of the loop below
            self._past += [
                post
                for block in blocks[first:]
                for post in (
                    [(block.rows, 0, block.sender)] if block.posts == 1 else _posts_of(block, ())
                )
            ]
            return
        for index, block in enumerate(blocks[first:], first):
            self._past += _posts_of(block, refused.get(index, ()))

    def judge(self, blocks: Sequence[Block], refused: Refused, last: Refusal) -> None:
        """Raise WriteFailed(HOLD, reason `breaker`) if these are too many refused rows.

        `refused` is as for `written`, `last` the newest refusal.
        """
        if self.is_released(blocks):
            return
        window = _Window(self._window_rows, self._rows_max)
        for post in self._past:  # an earlier call has judged these
            window.add(post)
        met = False  # a post of this batch with refused rows
        for index, block in enumerate(blocks):
            for post in _posts_of(block, refused.get(index, ())):
                window.add(post)
                met = met or post[1] > 0
                if met and window.has_too_many:
                    raise WriteFailed(
                        Verdict.HOLD,
                        f"{window}; the last: {last.message}",
                        sqlstate=last.sqlstate,
                        reason=BREAKER,
                    )

    def forget(self) -> None:
        """Forget past writes: earlier refusals do not count any more."""
        self._past.clear()

    def release(self, *, received_until_s: float) -> None:
        """Forget past writes, and judge no post that was received until then.

        The limit is a time and not a number of rows: posts that come later may be written first,
        and would use up that number.
        """
        self.forget()
        self._released_until_s = received_until_s

    def is_released(self, blocks: Sequence[Block]) -> bool:
        """Whether an operator has released the rows of these blocks to the dead letters."""
        return min(block.received_s for block in blocks) <= self._released_until_s


class _Window:
    """Counts consecutive posts, their rows and senders; and the same for refused rows only."""

    def __init__(self, window_rows: int, rows_max: int) -> None:
        self._window_rows = window_rows
        self._rows_max = rows_max
        self._posts: deque[_Post] = deque()
        self._rows = 0
        self.refused_rows = self.refused_posts = 0
        self._senders: Counter[str] = Counter()
        self._refused_senders: Counter[str] = Counter()

    def add(self, post: _Post) -> None:
        """Add a post. Drop the oldest ones, as long as enough posts and rows are left."""
        self._posts.append(post)
        self._count(post, 1)
        while (
            len(self._posts) > WINDOW_POSTS_MIN
            and self._rows - self._posts[0][0] >= self._window_rows
        ):
            self._count(self._posts.popleft(), -1)

    def _count(self, post: _Post, sign: int) -> None:
        rows, refused, sender = post
        self._rows += sign * rows
        _change(self._senders, sender, sign)
        if refused:
            self.refused_rows += sign * refused
            self.refused_posts += sign
            _change(self._refused_senders, sender, sign)

    @property
    def has_too_many(self) -> bool:
        """Whether writes must be paused."""
        rows, posts = max(self._rows, self._window_rows), max(len(self._posts), WINDOW_POSTS_MIN)
        return (
            self.refused_rows * self._window_rows > self._rows_max * rows
            and self.refused_posts * 5 > posts
            and _addresses(self._refused_senders) * 5 > _addresses(self._senders)
        )

    def __str__(self) -> str:
        return (
            f"{self.refused_rows} of {self._rows} rows refused, in {self.refused_posts} of "
            f"{len(self._posts)} posts, from {_addresses(self._refused_senders)} of "
            f"{_addresses(self._senders)} addresses"
        )


def _addresses(posts: Counter[str]) -> int:
    """Count the senders. Each post of an unknown sender counts as another sender."""
    return len(posts) + max(0, posts[""] - 1)


def _change(counts: Counter[str], name: str, by: int) -> None:
    counts[name] += by
    if not counts[name]:
        del counts[name]


def _posts_of(block: Block, refused: Sequence[Refusal]) -> list[_Post]:
    """Return the posts of a block: their rows, refused rows and senders.

    If the block was read back from the journal, only the number of its posts is known. Then each
    post gets the same share of the rows, and of the refused rows. So as many posts count as there
    are refused rows, at most all of them.
    """
    if block.posts == 1:
        return [(block.rows, len(refused), block.sender)]
    if block.parts is not None:
        ends = list(accumulate(part[0] for part in block.parts))
        of_part = Counter(bisect_right(ends, each.row) for each in refused)
        return [(part[0], of_part[index], part[3]) for index, part in enumerate(block.parts)]
    rows, bad = _shares(block.rows, block.posts), _shares(len(refused), block.posts)
    return [(share, refused_share, "") for share, refused_share in zip(rows, bad, strict=True)]


def _shares(rows: int, posts: int) -> list[int]:
    """Share rows among posts, spread over all of them."""
    ends = [rows * number // posts for number in range(posts + 1)]
    return [end - start for start, end in pairwise(ends)]
