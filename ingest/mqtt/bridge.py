"""The path of messages: from the broker into posts to the service, and the acknowledgements.

    take -> waiting -> gathered -> post -> 2xx                  acknowledge
                          ^         |----> refused, alone       dead letter, acknowledge
                          |         |----> not now, alone       set aside, posted alone later
                          '---------'----> refused, several     in two halves
                                    '----> again                a pause, the same post

Promises: a message with QoS 1 is acknowledged only when the service has taken it, or when it is a
dead letter on our disk, or has no reading. What is held has a bound. A stop acknowledges what was
taken, and leaves the rest to the broker. What a lost connection has brought is posted no more,
unless it is on its way: the broker sends it again.

What an answer of the service means for the messages of the post:

    2xx                                             taken: acknowledge
    400, 422 about what is in the messages          refused: a dead letter of our own, acknowledge
    413, 403 about what is in the messages          not now: a setting or the token may be changed
    all others (401, 404, 429, 5xx, none, ..)       again: it is not the messages

"Not now" and "again" acknowledge nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import orjson

from ingest.http_client.client import HttpClient
from ingest.http_client.delivery import ServerPosts
from ingest.model.errors import ConfigError, DeadLettersBroken, DeadLettersFull
from ingest.model.ports import DeadLetters
from ingest.model.reading import REFUSED_BY_SERVICE, Letter
from ingest.mqtt.connection import MqttConnection, MqttMessage
from ingest.mqtt.gathering import MessageForm, MessagePart, Unusable, WaitingMessages
from ingest.mqtt.options import MqttOptions
from ingest.mqtt.tally import MqttTally
from ingest.system import clock
from ingest.system.logs import get_logger

QUOTED_CHARACTERS = 200
HELD_BYTES_MAX = 32 * 1024**2  # of those that wait or are unusable; and of those set aside
# All of the 400 that are about the messages. The others are about how we ask, so about settings.
# A parameter that is bad is the time of a message, X-Received-At: the clock here may be wrong.
# The paths of line protocol have no 422: their answers of that kind are 400, too.
_REFUSED = frozenset({"not_json", "not_lines", "bad_parameter"}) | frozenset(
    {"empty", "all_invalid", "invalid_items", "dead_letters_full"}
)
_FOR_EACH = frozenset({"empty", "all_invalid", "outside_scope"})  # each message would get the same

ALL_IGNORED = "all_ignored"  # the code of a post that was taken, and of which nothing was read

_log = get_logger("mqtt")


class MqttBridge:
    """Takes messages and posts them.

    `headers` returns those of the next post that are not about its messages. It may raise
    ConfigError.
    """

    def __init__(
        self,
        client: HttpClient,
        form: MessageForm,
        dead_letters: DeadLetters,
        tally: MqttTally,
        *,
        headers: Callable[[], Mapping[str, str]],
        options: MqttOptions,
    ) -> None:
        self.delivery = ServerPosts(
            client,
            tally,
            retry_s_max=options.send_retry_s_max,
            failed=lambda why, n: _log.warning("mqtt_post_failed", why=why, similar_suppressed=n),
            back=lambda after_s: _log.info("mqtt_service_back", after_s=after_s),
        )
        self._form = form
        self._dead_letters = dead_letters
        self._tally = tally
        self._headers = headers
        self._options = options
        self._held_max = options.mqtt_receive_max
        self._waiting = WaitingMessages(form, options)
        self._unusable: deque[tuple[MqttMessage, Unusable]] = deque()
        self._unusable_bytes = 0
        self._aside: deque[MessagePart] = deque()  # refused for now; tried again one by one
        self._aside_bytes = 0
        self._in_work: dict[int, MqttMessage] = {}  # by id()
        self._paused: set[MqttConnection] = set()
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._last_us = 0  # each message has a time of its own

    # Messages come in

    def take(self, message: MqttMessage) -> None:
        """Take a message from the broker."""
        tally = self._tally
        tally.received[message.packet_id > 0] += 1
        tally.again += message.is_again
        message.received_us = self._last_us = max(message.received_us, self._last_us + 1)
        if self.delivery.stopping:
            return  # the broker keeps it
        if message.packet_id == 0 and self._is_full:
            tally.dropped += 1
            return
        try:
            part = self._form.part(message)
        except Unusable as error:
            self._unusable.append((message, error))
            self._unusable_bytes += len(message.payload)
        else:
            if part is None:
                tally.empty += 1
                self._done(message)
                return
            self._waiting.add(part)
            if self._waiting.is_full:
                self._full.set()
        self._arrived.set()
        if self._is_full and message.connection is not None:
            message.connection.pause()
            self._paused.add(message.connection)

    @property
    def _is_full(self) -> bool:
        waiting = len(self._waiting) + len(self._unusable)
        size = self._waiting.size + self._unusable_bytes
        return waiting >= 2 * self._held_max or size >= HELD_BYTES_MAX

    @property
    def held_messages(self) -> int:
        """Messages that are neither acknowledged nor given up."""
        return len(self._waiting) + len(self._unusable) + len(self._in_work) + len(self._aside)

    @property
    def set_aside_messages(self) -> int:
        """Of these, messages that the service refuses for now."""
        return len(self._aside)

    def oldest_us(self) -> int | None:
        """Return when the oldest of these messages came, in Unix microseconds."""
        found = [each.received_us for each in self._in_work.values()]
        found += [each.message.received_us for each in list(self._aside)[:1]]
        if self._waiting.oldest_us is not None:
            found.append(self._waiting.oldest_us)
        return min(found, default=None)

    def _done(self, message: MqttMessage) -> None:
        if message.packet_id and message.connection is not None:
            message.connection.ack(message.packet_id)

    # Work

    async def run(self, stopping: asyncio.Event, aborted: asyncio.Event, stop_s_max: float) -> None:
        """Post until `stopping` is set. Then posts on their way have `stop_s_max` to end."""
        await self.delivery.run(
            [*(self._work() for _ in range(self._options.in_flight)), self._retry_aside()],
            self._stop,
            stopping=stopping,
            aborted=aborted,
            stop_s_max=stop_s_max,
        )

    def _stop(self) -> None:
        self._arrived.set()
        self._full.set()

    async def _work(self) -> None:
        while not self.delivery.stopping:
            if self._unusable:
                await self._give_up_on_unusable()
                continue
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            due_s = 0.0 if self._waiting.is_full else self._waiting.due_in_s()
            if due_s > 0:
                self._full.clear()
                await clock.sleep_unless(self._full, due_s)
                continue
            parts = self._waiting.gather()
            self._let_in()
            await self._send(parts)

    def _let_in(self) -> None:
        """Read on, once half of what may wait is gone."""
        if self._paused and len(self._waiting) <= self._held_max // 2 and not self._is_full:
            for each in self._paused:
                each.resume()
            self._paused.clear()

    async def _send(self, parts: list[MessagePart]) -> None:
        """Post messages until each is taken, a dead letter, set aside, or sent again."""
        todo = [list(parts)]  # a try leaves out what is not wanted any more
        for each in parts:
            self._in_work[id(each.message)] = each.message
        try:
            while todo and not self.delivery.stopping:
                group = todo.pop()
                answer = await self._post_until_answered(group)
                if answer is None:
                    continue
                if answer.verdict is PostVerdict.TAKEN:
                    self._tally.taken += len(group)
                    self._tell_ignored(group, answer)
                    for each in group:
                        self._done(each.message)
                elif len(group) > 1 and not answer.for_each:
                    half = len(group) // 2
                    todo += [group[half:], group[:half]]
                elif answer.verdict is PostVerdict.REFUSED or not self._set_aside(group):
                    messages = [each.message for each in group]
                    await self._keep(messages, answer.code, answer.why)
        finally:
            for each in parts:
                self._in_work.pop(id(each.message), None)

    async def _post_until_answered(self, group: list[MessagePart]) -> PostAnswer | None:
        """Return what the answer means; None if nothing of the group is to be posted any more."""

        def wanted() -> bool:
            group[:] = [each for each in group if each.message.is_wanted]
            return bool(group)

        return await self.delivery.until_done(lambda _: self._try(group), wanted)

    async def _try(self, group: list[MessagePart]) -> PostAnswer | None:
        """Post once; return None if a further try is needed."""
        try:
            headers = {**self._headers(), **self._form.headers(group)}
        except ConfigError as error:
            self.delivery.unanswered(str(error))
            return None
        reply = await self.delivery.post(self._form.join(group), headers)
        if reply is None:
            return None
        answer = answer_of(reply.status, reply.text)
        if answer.verdict is PostVerdict.AGAIN:
            self.delivery.later(reply, f"it answers {answer.why[:QUOTED_CHARACTERS]}")
            return None
        if answer.verdict is PostVerdict.TAKEN:
            self.delivery.taken()
        return answer

    def _tell_ignored(self, group: list[MessagePart], answer: PostAnswer) -> None:
        """Tell of filters that bring nothing. A post with a source has one topic."""
        topic = group[0].message.topic
        ignored = answer.code == ALL_IGNORED
        for name in self._tally.ignored.note(topic, len(group), ignored=ignored):
            _log.warning("mqtt_all_ignored", filter=name, topic=topic[:QUOTED_CHARACTERS])

    # Messages that the service does not take

    async def _give_up_on_unusable(self) -> None:
        group, self._unusable = self._unusable, deque()
        by_code: dict[str, tuple[list[MqttMessage], str]] = {}
        for message, error in group:
            by_code.setdefault(error.code, ([], str(error)))[0].append(message)
        for code, (messages, why) in by_code.items():
            await self._keep(messages, code, why)
        self._unusable_bytes -= sum(len(message.payload) for message, _ in group)
        self._let_in()

    async def _keep(self, messages: list[MqttMessage], code: str, why: str) -> None:
        """Keep messages as dead letters, and acknowledge them. Without space: later."""

        def wanted() -> bool:
            messages[:] = [each for each in messages if each.is_wanted]
            return bool(messages)

        async def append(_: int) -> bool | None:
            letters = [letter_of(each, self._form, code, why) for each in messages]
            try:
                await self._dead_letters.append(letters)
            except (DeadLettersFull, DeadLettersBroken) as error:
                self.delivery.failed(f"there is no space for a dead letter: {error}")
                return None
            return True

        if await self.delivery.until_done(append, wanted) is None:
            return
        self._tally.dead_lettered += len(messages)
        for each in messages:
            self._done(each)
        left_out = self.delivery.occasionally.due(code)
        if left_out is not None:
            _log.error(
                "mqtt_refused",
                code=code,
                messages=len(messages),
                topic=messages[0].topic[:QUOTED_CHARACTERS],
                why=why[:QUOTED_CHARACTERS],
                similar_suppressed=left_out,
            )

    def _set_aside(self, group: Sequence[MessagePart]) -> bool:
        """Let messages wait without holding others back; False if too many wait so."""
        size = self._aside_bytes + sum(len(each.body) for each in group)
        if len(self._aside) + len(group) > max(1, self._held_max // 4) or size > HELD_BYTES_MAX:
            return False
        self._aside_bytes = size
        for each in group:
            if each.message.packet_id and each.message.connection is not None:
                each.message.connection.pass_by(each.message.packet_id)
            self._aside.append(each)
        return True

    async def _retry_aside(self) -> None:
        while not self.delivery.stopping:
            await self.delivery.woken(self._options.send_retry_s_max)
            for _ in range(len(self._aside)):
                if self.delivery.stopping:
                    return
                part = self._aside.popleft()
                self._aside_bytes -= len(part.body)
                await self._send([part])


class PostVerdict(Enum):
    """What becomes of the messages of a post."""

    TAKEN = "taken"
    REFUSED = "refused"
    NOT_NOW = "not_now"
    AGAIN = "again"


class PostAnswer(NamedTuple):
    """A verdict, its cause, and whether it holds for each message of the post by itself."""

    verdict: PostVerdict
    code: str
    why: str
    for_each: bool = False


def answer_of(status: int, body: bytes) -> PostAnswer:
    """Return what an answer means."""
    if 200 <= status < 300:
        return PostAnswer(PostVerdict.TAKEN, ALL_IGNORED if _is_ignored(body) else "", "")
    code, why = _said(body)
    said = f"{status} {code}: {why}" if code or why else str(status)
    verdict = PostVerdict.AGAIN
    if status == 422 or (status == 400 and code in _REFUSED):
        verdict = PostVerdict.REFUSED
    elif status == 413 or (status == 403 and code == "outside_scope"):
        verdict = PostVerdict.NOT_NOW
    return PostAnswer(verdict, code or f"http_{status}", said, code in _FOR_EACH)


def _is_ignored(body: bytes) -> bool:
    """Whether a source has read nothing: other answers have no `ignored`."""
    if b'"ignored":' not in body:
        return False
    try:
        document = orjson.loads(body)
    except ValueError:
        return False
    return (
        isinstance(document, dict)
        and bool(document.get("ignored"))
        and not (document.get("accepted") or document.get("faulty"))
    )


def _said(body: bytes) -> tuple[str, str]:
    try:
        document = orjson.loads(body)
    except ValueError:  # a proxy's page
        return "", ""
    if not isinstance(document, dict):
        return "", ""
    # Answers to line protocol have our code in `problem`, and in `code` that of InfluxDB.
    code = document.get("problem", document.get("code", ""))
    why = document.get("detail", document.get("message", ""))
    errors = document.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        why = f"{why}: {errors[0].get('message', '')}"
    return (code if isinstance(code, str) else ""), (why if isinstance(why, str) else "")


def letter_of(message: MqttMessage, form: MessageForm, code: str, why: str) -> Letter:
    """Return a message as a dead letter: as it came, with its topic and the reason."""
    return Letter(
        reason=REFUSED_BY_SERVICE,
        code=code,
        message=f"topic {message.topic[:QUOTED_CHARACTERS]!r}: {why[:QUOTED_CHARACTERS]}",
        received_us=message.received_us,
        original=message.payload,
        attempts=1,
        format=form.name,
        source=form.path,
        context=form.context(message),
    )
