"""Sends one post until the target takes it, or refuses it for good.

    post -> 2xx                                                         taken
       |--> no answer, 408, 425, 429, 5xx -> a pause -> post again
       '--> 3xx, other 4xx                                              dead letters

If the target refuses many posts in a row, the target is wrong and not the posts: then they are
tried again, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ingest.forward.bodies import ForwardPost
from ingest.forward.tally import ForwardTally
from ingest.http_client.client import HttpClient, ServerReply
from ingest.http_client.server_posts import ServerPosts
from ingest.model.errors import DeadLettersBroken, DeadLettersFull
from ingest.model.letter import REFUSED_BY_TARGET, Letter
from ingest.model.ports import DeadLetters
from ingest.system import clock
from ingest.system.logs import get_logger

REFUSED_IN_A_ROW_MAX = 10
QUOTED_CHARACTERS = 200
_AGAIN = frozenset({408, 425, 429})  # of the 4xx, those that speak of this moment only

_log = get_logger("forward")

Sign = Callable[[str, bytes, float], Mapping[str, str]]


def is_refusal(status: int) -> bool:
    """Whether a post would be refused again. A redirect is: readings go where the operator says."""
    return 300 <= status < 500 and status not in _AGAIN


class TargetSender:
    """Sends to one target. `sign(key, body, now_s)` returns headers."""

    def __init__(
        self,
        client: HttpClient,
        dead_letters: DeadLetters,
        tally: ForwardTally,
        *,
        sign: Sign,
        retry_s_max: float,
    ) -> None:
        self.delivery = ServerPosts(
            client,
            tally,
            retry_s_max=retry_s_max,
            failed=lambda why, n: _log.warning("forward_failed", why=why, similar_suppressed=n),
            back=lambda after_s: _log.info("forward_target_back", after_s=after_s),
        )
        self._dead_letters = dead_letters
        self._tally = tally
        self._sign = sign
        self._refused_in_a_row = 0

    async def send(self, post: ForwardPost, received_us: int, wanted: Callable[[], bool]) -> bool:
        """Return True once the post is taken, or is dead letters; False once it is not wanted."""
        return bool(
            await self.delivery.until_done(
                lambda tries: self._try(post, received_us, tries), wanted
            )
        )

    async def _try(self, post: ForwardPost, received_us: int, tries: int) -> bool | None:
        """Send a post once; return None if a further try is needed."""
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": post.key,
            "webhook-id": post.key,
            **self._sign(post.key, post.body, clock.unix_s()),
        }
        reply = await self.delivery.post(post.body, headers)
        if reply is None:
            return None
        if 200 <= reply.status < 300:
            self._tally.sent += len(post.readings)
            self._refused_in_a_row = 0
            self.delivery.taken()
            return True
        if is_refusal(reply.status):
            return await self._set_aside(post, reply, received_us, tries)
        self.delivery.later(reply, f"it answers {reply.status}")
        return None

    async def _set_aside(
        self, post: ForwardPost, reply: ServerReply, received_us: int, tries: int
    ) -> bool | None:
        """Keep a post as dead letters. Returns None if it has to be tried again."""
        self._refused_in_a_row += 1
        quoted = reply.text.decode(errors="replace")[:QUOTED_CHARACTERS]
        if self._refused_in_a_row > REFUSED_IN_A_ROW_MAX:
            self.delivery.failed(f"it refuses all posts with {reply.status}: {quoted}")
            return None
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
            self.delivery.failed(
                f"it answers {reply.status}, and there is no space to keep this: {error}"
            )
            return None
        self._tally.dead_lettered += len(post.readings)
        left_out = self.delivery.occasionally.due(letter.code)
        if left_out is not None:
            _log.error(
                "forward_refused",
                status=reply.status,
                readings=len(post.readings),
                said=quoted,
                similar_suppressed=left_out,
            )
        return True
