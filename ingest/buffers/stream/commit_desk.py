"""Posts that wait for their commit, in a writer: it takes them from gateways, and answers them.

Promises: a post that it says to have taken is answered with its outcome, if this process lives.
"""

from __future__ import annotations

from collections.abc import Callable

from ingest.broker.envelope import Message
from ingest.buffers.stream.messages import (
    TAKEN,
    NotOurs,
    decode_message,
    encode_outcome,
    encode_refusal,
)
from ingest.buffers.stream.outlet import StreamOutlet
from ingest.model.ack import Ack
from ingest.system.logs import get_logger

_log = get_logger("writer")


class CommitDesk:
    """`refusal` returns a code, or nothing if posts are taken. `send` sends a reply."""

    def __init__(
        self,
        outlet: StreamOutlet,
        send: Callable[[str, bytes], bool],
        refusal: Callable[[], str],
    ) -> None:
        self._outlet = outlet
        self._send = send
        self._refusal = refusal

    def take(self, message: Message) -> None:
        """Take a post, or refuse it; answer at once, and once more with the outcome."""
        reply_to = message.reply_to
        try:
            block = decode_message(message.data)
        except NotOurs as why:
            _log.error("commit_not_ours", why=str(why))
            return
        if refusal := self._refusal():
            self._send(reply_to, encode_refusal(refusal))
            return
        ack = block.ack = Ack()
        if not self._outlet.take_post(block):
            self._send(reply_to, encode_refusal("buffer_full"))
            return
        self._send(reply_to, TAKEN)

        def resolved() -> None:
            if ack.outcome is not None:
                self._send(reply_to, encode_outcome(ack.outcome))

        ack.when_resolved(resolved)
