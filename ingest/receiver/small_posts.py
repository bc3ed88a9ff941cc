"""Keeps small posts with one plain call each; posts that come together share a block.

Promises: each post is answered once: when it is on the disk, when it is refused, or when the time
for the answer of its page is over. Each of its readings is counted once.
Does not: wait for room, or for a commit. Then the caller keeps the post in another way.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from ingest.http.request_and_answer import Answer, Request
from ingest.http.routes import MakeProblem, OnRefused
from ingest.model.block import Block
from ingest.model.errors import BufferFull, NotKept, Refused, Stopping
from ingest.model.ledger import Ledger
from ingest.model.ports import Inlet
from ingest.system.clock import monotonic_s
from ingest.system.logs import get_logger

ACKS = BUFFERED, DURABLE, COMMITTED = "buffered", "durable", "committed"
LATE = "it is not known in time what became of the post"
LOOK_S = 0.1  # pause between two looks for posts whose answer is due
ADMISSION_DETAILS = {
    "starting": "the service has not connected to its database and checked its table yet",
    "draining": "the service is stopping; another one may replace it",
    "disk_low": "the disk with the journal and the dead letters is full or has failed",
    "broker_away": "the broker cannot be reached, or has no working stream",
}


class Page:
    """How the posts of a page are answered.

    `label` is its name in metrics. `accepted(ack, rows)` is the answer to a post that is kept, with
    the same status for all; `problem` makes that of a refusal. A post that has waited for
    `answer_s_max` is answered that its outcome is not known.
    """

    __slots__ = ("accepted", "answer_s_max", "label", "problem")

    def __init__(
        self,
        label: str,
        accepted: Callable[[str, int], Answer],
        problem: MakeProblem,
        answer_s_max: float = math.inf,
    ) -> None:
        self.label = label
        self.accepted = accepted
        self.problem = problem
        self.answer_s_max = answer_s_max


class _Waiter:
    """A post that waits for the disk; `received_s` is monotonic. None: it has been answered."""

    __slots__ = ("page", "received_s", "request", "rows")

    def __init__(self, request: Request, page: Page, rows: int, received_s: float) -> None:
        self.request: Request | None = request
        self.page = page
        self.rows = rows
        self.received_s = received_s


class SmallPosts:
    """The posts of one receiver that are kept at once; `inside` of them are in work.

    `on_answered` is called when there are fewer.
    """

    def __init__(
        self,
        inlet: Inlet,
        ledger: Ledger,
        *,
        on_refused: OnRefused,
        on_answered: Callable[[], object],
    ) -> None:
        self._inlet = inlet
        self._ledger = ledger
        self._on_refused = on_refused
        self._on_answered = on_answered
        self.inside = 0
        self._told = self._tell  # so that not each post makes a bound method
        self._limited = deque[_Waiter]()  # of pages with a time for the answer, oldest first
        self._look: asyncio.TimerHandle | None = None
        self._log = get_logger("small_posts")

    def keep(
        self, request: Request, page: Page, block: Block, ack: str, received_s: float
    ) -> Answer | Literal[False] | None:
        """Keep a block; return the answer, or None if it comes later, or False: it is not kept."""
        rows, ledger = block.rows, self._ledger
        if ack == BUFFERED and self._inlet.take_in(block):
            ledger.received += rows
            ledger.accepted += rows
            return page.accepted(BUFFERED, rows)
        if ack != DURABLE:
            return False
        waiter = _Waiter(request, page, rows, received_s)
        if not self._inlet.take_in(block, waiter, self._told):
            return False
        ledger.received += rows
        ledger.at_receiver += rows
        self.inside += 1
        if page.answer_s_max != math.inf:
            self._limited.append(waiter)
            if self._look is None:
                self._look = asyncio.get_running_loop().call_later(LOOK_S, self._answer_due)
        return None

    def close(self) -> None:
        """Look for no post any more whose answer is due. Repeatable."""
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _tell(self, waiters: Sequence[_Waiter], error: NotKept | None) -> None:
        """The posts of a block are on the disk, or refused: answer all of them."""
        ledger = self._ledger
        rows = sum([waiter.rows for waiter in waiters])
        ledger.at_receiver -= rows
        if error is None:
            ledger.accepted += rows
        else:
            ledger.rejected[error.code] += rows
        waiting = [waiter for waiter in waiters if waiter.request is not None]
        if error is None:
            now_s = monotonic_s()
            for page in {waiter.page for waiter in waiting}:
                took_s = [now_s - waiter.received_s for waiter in waiting if waiter.page is page]
                ledger.requests_answered(page.label, page.accepted(DURABLE, 1).status, took_s)
        self.inside -= len(waiting)
        self._on_answered()
        if error is not None:
            for waiter in waiting:
                self._refuse(waiter, refusal_of(error))
            return
        for waiter in waiting:
            self._reply(waiter, waiter.page.accepted(DURABLE, waiter.rows))

    def _reply(self, waiter: _Waiter, answer: Answer) -> None:
        request, waiter.request = waiter.request, None
        try:
            assert request is not None, "it is answered once"
            request.sender.reply(answer)
        except Exception:  # a bug, and none of the others' or of the journal, which calls this
            self._log.error("request_failed", exc_info=True)

    def _refuse(self, waiter: _Waiter, refused: Refused) -> None:
        assert waiter.request is not None, "it is answered once"
        self._on_refused(waiter.request, refused)
        answer = waiter.page.problem(waiter.request, refused, b"", False)
        took_s = [monotonic_s() - waiter.received_s]
        self._ledger.requests_answered(waiter.page.label, answer.status, took_s)
        self._reply(waiter, answer)

    def _answer_due(self) -> None:
        """Answer posts that have waited for too long. Their readings are counted by `_tell`."""
        soon_s = monotonic_s() + LOOK_S
        limited = self._limited
        while limited:
            waiter = limited[0]
            if waiter.request is not None:
                if soon_s - waiter.received_s < waiter.page.answer_s_max:
                    break
                self.inside -= 1
                self._on_answered()
                self._refuse(waiter, Refused("outcome_unknown", LATE))
            limited.popleft()
        self._look = (
            asyncio.get_running_loop().call_later(LOOK_S, self._answer_due) if limited else None
        )


def refusal_of(error: BufferFull | NotKept | Stopping) -> Refused:
    """Return what the client of a post gets that the buffer did not take."""
    if isinstance(error, NotKept):
        return Refused(error.code, error.detail, retry_after_s=error.retry_after_s)
    if isinstance(error, BufferFull):
        return Refused("buffer_full", str(error), retry_after_s=error.retry_after_s)
    return Refused("draining", ADMISSION_DETAILS["draining"])
