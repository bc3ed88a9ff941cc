"""Sends one post until the target takes it, or refuses it for good.

    post -> 2xx                                                         taken
       |--> no answer, 408, 425, 429, 5xx -> a pause -> post again
       '--> 3xx, other 4xx                                              dead letters

Promises: pauses grow and have full jitter. A `Retry-After` is kept by all posts, up to
`retry_s_max`. When a post is taken again, those that pause try at once. If the target refuses many
posts in a row, the target is wrong and not the posts: then they are tried again, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from ingest.forward.answers import AnswerMeaning, meaning_of
from ingest.forward.bodies import ForwardPost
from ingest.forward.tally import ForwardTally
from ingest.http_client.client import ServerReply
from ingest.http_client.retry_after import retry_after_s
from ingest.model.errors import DeadLettersBroken, DeadLettersFull, NoReply
from ingest.model.letter import REFUSED_BY_TARGET, Letter
from ingest.model.ports import DeadLetters
from ingest.system import clock
from ingest.system.backoff import backoff_s
from ingest.system.logs import Occasionally, get_logger

AGAIN_S_MIN = 0.2  # the bound of the first pause
REFUSED_IN_A_ROW_MAX = 10
WARNING_S = 60.0
QUOTED_CHARACTERS = 200

_log = get_logger("forward")

Sign = Callable[[str, bytes, float], Mapping[str, str]]


class Poster(Protocol):
    """Posts to the target; see http_client/client.py."""

    async def post(self, body: bytes, headers: Mapping[str, str]) -> ServerReply:
        """Return the answer. Raises NoReply."""

    def abort(self) -> None:
        """Let all posts end now."""


class TargetSender:
    """Sends to one target. `sign(key, body, now_s)` returns headers."""

    def __init__(
        self,
        poster: Poster,
        dead_letters: DeadLetters,
        tally: ForwardTally,
        *,
        sign: Sign,
        retry_s_max: float,
    ) -> None:
        self.trouble = ""  # why nothing is taken, in words; empty if the last post was taken
        self._poster = poster
        self._dead_letters = dead_letters
        self._tally = tally
        self._sign = sign
        self._retry_s_max = retry_s_max
        self._not_before_s = 0.0  # the target has asked for a pause until then
        self._again = asyncio.Event()  # set once, to wake all who pause; then replaced
        self._refused_in_a_row = 0
        self._failing_since_s: float | None = None
        self._occasionally = Occasionally(WARNING_S)

    async def send(self, post: ForwardPost, received_us: int, wanted: Callable[[], bool]) -> bool:
        """Return True once the post is taken, or is dead letters; False once it is not wanted.

        `wanted` is asked before each try. A try is not interrupted, but by `abort`.
        """
        tries = 0
        pause_s = 0.0
        while True:
            await self._pause(pause_s, wanted)
            if not wanted():
                return False
            tries += 1
            if await self._try(post, received_us, tries, wanted):
                return True
            pause_s = backoff_s(tries - 1, first_s=AGAIN_S_MIN, cap_s=self._retry_s_max)

    def wake(self) -> None:
        """Let all posts that pause look whether they are wanted, and try again."""
        self._again.set()
        self._again = asyncio.Event()

    def abort(self) -> None:
        """Let all tries that are under way end now."""
        self._poster.abort()

    async def _try(
        self, post: ForwardPost, received_us: int, tries: int, wanted: Callable[[], bool]
    ) -> bool:
        """Send a post once; return whether no further try is needed."""
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": post.key,
            "webhook-id": post.key,
            **self._sign(post.key, post.body, clock.unix_s()),
        }
        try:
            reply = await self._poster.post(post.body, headers)
        except NoReply as error:
            self._tally.posts["none"] += 1
            if wanted():  # else it was perhaps ended by us
                self._failed(str(error))
            return False
        self._tally.posts[str(reply.status)] += 1
        meaning = meaning_of(reply.status)
        if meaning is AnswerMeaning.DONE:
            self._taken(len(post.readings))
            return True
        if meaning is AnswerMeaning.REFUSED:
            return await self._set_aside(post, reply, received_us, tries)
        self._failed(f"it answers {reply.status}")
        wait_s = retry_after_s(reply.retry_after, clock.unix_s(), self._retry_s_max)
        self._not_before_s = max(self._not_before_s, clock.monotonic_s() + wait_s)
        return False

    async def _pause(self, pause_s: float, wanted: Callable[[], bool]) -> None:
        """Wait: until another post was taken, and at least as long as the target has asked for."""
        until_s = clock.monotonic_s() + pause_s
        while wanted():
            left_s = max(until_s, self._not_before_s) - clock.monotonic_s()
            if left_s <= 0:
                return
            if await clock.sleep_unless(self._again, left_s):
                until_s = 0.0

    def _taken(self, readings: int) -> None:
        self._tally.sent += readings
        self._tally.up = True
        self._refused_in_a_row = 0
        self.trouble = ""
        if self._failing_since_s is not None:
            after_s = round(clock.monotonic_s() - self._failing_since_s, 1)
            self._failing_since_s = None
            _log.info("forward_target_back", after_s=after_s)
            self.wake()

    def _failed(self, why: str) -> None:
        self._tally.up = False
        self.trouble = f"the target takes nothing: {why}"
        if self._failing_since_s is None:
            self._failing_since_s = clock.monotonic_s()
        left_out = self._occasionally.due(why)
        if left_out is not None:
            _log.warning("forward_failed", why=why, similar_suppressed=left_out)

    async def _set_aside(
        self, post: ForwardPost, reply: ServerReply, received_us: int, tries: int
    ) -> bool:
        """Keep a post as dead letters. Returns False if it has to be tried again."""
        self._refused_in_a_row += 1
        quoted = reply.text.decode(errors="replace")[:QUOTED_CHARACTERS]
        if self._refused_in_a_row > REFUSED_IN_A_ROW_MAX:
            self._failed(f"it refuses all posts with {reply.status}: {quoted}")
            return False
        letter = Letter(
            reason=REFUSED_BY_TARGET,
            code=f"http_{reply.status}",
            message=f"the target has answered {reply.status}: {quoted}",
            received_us=received_us,
            attempts=tries,
        )
        try:
            await self._dead_letters.append([letter._replace(reading=r) for r in post.readings])
        except (DeadLettersFull, DeadLettersBroken) as error:
            self._failed(f"it answers {reply.status}, and there is no space to keep this: {error}")
            return False
        self._tally.dead_lettered += len(post.readings)
        left_out = self._occasionally.due(letter.code)
        if left_out is not None:
            _log.error(
                "forward_refused",
                status=reply.status,
                readings=len(post.readings),
                said=quoted,
                similar_suppressed=left_out,
            )
        return True
