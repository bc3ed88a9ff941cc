"""Publishes messages, each once: the result is there when the stream has the message.

    publish -> sent -> PubAck                                                    done
                 |---> nobody answers, not possible now, no reply for a while    sent again
                 '---> the connection ended                                      sent again at once
                                                                                 on the next one

Promises: a message is sent again with the same id, so that the stream has it once (within its
duplicate window, which must be longer than `wait_s_max`). A failure is one of two kinds: either
nothing of the message is kept, or that is not known. It is not known once a try got no answer.
No message waits for a time-out of its own after the connection has ended.
Does not: bound how many messages are under way. The caller does.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping

from ingest.model.errors import (
    BrokerAway,
    BrokerFull,
    BrokerOutcomeUnknown,
    BrokerRefused,
    IngestError,
)
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import ApiFault, Meaning, Message, PubAck, pub_ack
from ingest.roles.nats.stream_state import PublishedPlaces
from ingest.system import clock

# So long a durable post waits for the stream: longer than servers need to elect another leader.
PUBLISH_WAIT_S_MAX = 10.0
AGAIN_S = {Meaning.AGAIN: 0.1, Meaning.UNSURE: 0.05}  # before the next try; with jitter
AGAIN_LATER_S = 0.25
LAST_S = 0.1  # no try begins so late: it would only put a message into doubt
HEADERS_BYTES = 256  # the most that the headers of a message take
NO_HEADERS: Mapping[str, str] = {}


class Publisher:
    """Publishes to one subject of one stream. Not before the event loop runs.

    A try without a reply is repeated after `try_s_max`; after `wait_s_max` a message has failed.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        *,
        subject: str,
        stream: str,
        try_s_max: float = 2.0,
        wait_s_max: float = 10.0,
    ) -> None:
        self.published = PublishedPlaces()
        self.acknowledged_s = -math.inf  # when the last message was, on the monotonic clock
        self._connection = connection
        self._subject = subject
        self._stream = stream
        self._try_s_max = try_s_max
        self._wait_s_max = wait_s_max
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[_Publish, None] = {}  # in the order of their begin
        connection.watch(self._send_all, self._doubt_all)

    def publish(
        self,
        message_id: str,
        payload: bytes,
        within_s: float | None = None,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> asyncio.Future[PubAck]:
        """Publish a message, within `wait_s_max` or less. No two messages may have the same id.

        `headers` are further ones, of at most 100 bytes.

        The result raises BrokerFull, BrokerRefused or BrokerAway: then nothing of the message is
        kept; or BrokerOutcomeUnknown. Cancel it to give up; the message may then be kept or not.
        """
        result: asyncio.Future[PubAck] = self._loop.create_future()
        room = self._connection.payload_bytes_max
        if self._connection.up and len(payload) + HEADERS_BYTES > room:
            result.set_exception(
                BrokerRefused(
                    f"a message of {len(payload):,} bytes is larger than the broker allows "
                    f"({room:,}): raise its max_payload"
                )
            )
            return result
        ours = {"Nats-Msg-Id": message_id, "Nats-Expected-Stream": self._stream, **headers}
        publish = _Publish(ours, payload, result)
        within_s = self._wait_s_max if within_s is None else min(within_s, self._wait_s_max)
        publish.deadline = self._loop.call_later(within_s, self._give_up, publish)
        self._under_way[publish] = None
        result.add_done_callback(lambda _: self._forget(publish))
        self._send(publish)
        return result

    def _send(self, publish: _Publish) -> None:
        publish.stop_timer()
        if publish.result.done():
            return
        try:
            token = self._connection.call(
                self._subject,
                publish.payload,
                lambda message: self._replied(publish, message),
                headers=publish.headers,
            )
        except BrokerAway:  # `_send_all` sends it when there is a connection
            publish.why = self._connection.why_away
            return
        # The reply to an earlier try is as good, so its token stays.
        publish.tokens.append(token)
        publish.unanswered = True
        publish.timer = self._loop.call_later(self._try_s_max, self._not_replied, publish)

    def _replied(self, publish: _Publish, message: Message) -> None:
        reply = pub_ack(message)
        if isinstance(reply, PubAck):
            to = self.published.to
            if reply.sequence > to:
                self.published = self.published._replace(to=reply.sequence)
            elif not reply.duplicate:
                self.published = PublishedPlaces(reply.sequence, reply.sequence, to)
            self.acknowledged_s = clock.monotonic_s()
            publish.end(reply)
            return
        publish.unanswered = False
        publish.why = reply.text
        publish.doubtful |= reply.meaning is Meaning.UNSURE
        if publish.doubtful or reply.meaning is Meaning.AGAIN:
            self._again_soon(publish, reply)
        elif reply.meaning is Meaning.FULL:
            publish.end(BrokerFull(f"the stream is full: {reply.text}"))
        else:
            publish.end(BrokerRefused(f"the broker refuses a message: {reply.text}"))

    def _again_soon(self, publish: _Publish, reply: ApiFault) -> None:
        """Try again. If an earlier try may have been stored, a definite error is none."""
        publish.stop_timer()
        pause_s = AGAIN_S.get(reply.meaning, AGAIN_LATER_S) * random.uniform(0.1, 1)
        if self._loop.time() + pause_s < publish.deadline.when() - LAST_S:
            publish.timer = self._loop.call_later(pause_s, self._send, publish)

    def _not_replied(self, publish: _Publish) -> None:
        publish.doubtful = True
        publish.why = f"no answer for {self._try_s_max:g} s"
        self._send(publish)

    def _send_all(self) -> None:
        for publish in self._under_way:
            self._send(publish)

    def _doubt_all(self) -> None:
        for publish in self._under_way:
            publish.stop_timer()
            publish.doubtful |= publish.unanswered
            publish.why = self._connection.why_away

    def _give_up(self, publish: _Publish) -> None:
        if publish.doubtful or publish.unanswered:
            publish.end(BrokerOutcomeUnknown(f"the message may be stored or not: {publish.why}"))
        else:
            publish.end(BrokerAway(f"the broker cannot take a message: {publish.why}"))

    def _forget(self, publish: _Publish) -> None:
        self._under_way.pop(publish, None)
        publish.stop_timer()
        publish.deadline.cancel()
        for token in publish.tokens:
            self._connection.forget(token)


class _Publish:
    """One message until its result."""

    deadline: asyncio.TimerHandle

    def __init__(
        self,
        headers: Mapping[str, str],
        payload: bytes,
        result: asyncio.Future[PubAck],
    ) -> None:
        self.payload = payload
        self.headers = headers
        self.result = result
        self.tokens: list[int] = []
        self.timer: asyncio.TimerHandle | None = None
        self.unanswered = False  # the last try
        self.doubtful = False  # an earlier try may have been stored
        self.why = ""

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def end(self, outcome: PubAck | IngestError) -> None:
        if self.result.done():
            return
        if isinstance(outcome, PubAck):
            self.result.set_result(outcome)
        else:
            self.result.set_exception(outcome)
