"""One connection to an MQTT broker: it subscribes, gets messages, and acknowledges them.

Promises: a message is acknowledged only by `ack`, and only on the connection that it came by. So an
identifier that the broker uses again is never acknowledged by mistake. Acknowledgements have the
order of the messages, as MQTT wants it. No call but `open` waits.
Does not: connect again (session.py).

The library has no thread here, but to connect: the event loop tells it when it can read.

The URL of an MQTT broker, and the filters of its topics: what they must be.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from paho.mqtt.client import (
    Client,
    ConnectFlags,
    DisconnectFlags,
    MQTTMessage,
)
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from ingest.model.errors import ConfigError, MqttAway

PORT, TLS_PORT = 1883, 8883
FILTER_BYTES_MAX = 65_535
SHARED = "$share/"


class MqttAddress(NamedTuple):
    """Where a broker is, and as which user; `user` is empty without one."""

    host: str
    port: int
    user: str
    tls: bool

    @property
    def shown(self) -> str:
        """The address for people, without the user."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{host}:{self.port}"


def mqtt_address(url: str) -> MqttAddress:
    """Return the parts of mqtt[s]://[USER@]HOST[:PORT]. Raises ConfigError, never with a password.

    A password may not be in it: other users of the machine can read a command line.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigError(f"--mqtt-url cannot be read: {error}") from None
    if parts.password is not None:
        raise ConfigError(
            "--mqtt-url has a password, which other users of this machine could read: put it into "
            "a file (--mqtt-password-file), or into INGEST_MQTT_PASSWORD"
        )
    if parts.scheme not in {"mqtt", "mqtts"} or not host or port == 0:
        raise ConfigError("--mqtt-url is not mqtt://HOST:PORT or mqtts://HOST:PORT")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ConfigError("--mqtt-url has more than a host and a port: topics are --topic")
    tls = parts.scheme == "mqtts"
    return MqttAddress(
        host, port or (TLS_PORT if tls else PORT), unquote(parts.username or ""), tls
    )


def check_filter(text: str) -> None:
    """Raise ConfigError if a filter of topics is not one that brokers take."""
    levels = text.split("/")
    if text.startswith(SHARED):
        if len(levels) < 3 or not levels[1] or {"+", "#"} & set(levels[1]) or not levels[2:]:
            raise ConfigError(f"--topic {text!r}: a shared one is $share/GROUP/TOPIC")
        levels = levels[2:]
    if not any(levels) and len(levels) == 1:
        raise ConfigError("--topic is empty")
    if "\0" in text or len(text.encode()) > FILTER_BYTES_MAX:
        raise ConfigError("--topic is longer than 65,535 bytes, or has a NUL")
    for place, level in enumerate(levels):
        alone = level in {"+", "#"}
        if not alone and ("+" in level or "#" in level):
            raise ConfigError(f"--topic {text!r}: + and # stand for a whole level")
        if level == "#" and place != len(levels) - 1:
            raise ConfigError(f"--topic {text!r}: # can only be the last level")


NEVER_S = 0xFFFFFFFF  # as a session's expiry: it does not end
READS_MAX = 64  # packets in a round of the event loop
PACKET_BYTES_MAX = 16 * 1024**2  # the broker drops what is larger, and tells nobody
VERSIONS = {5: MQTTProtocolVersion.MQTTv5, 3: MQTTProtocolVersion.MQTTv311}
TAKEN_OVER = 142  # another client has connected with our name
GIVES_UP = 128  # reason codes from here on are failures


class MqttWish(NamedTuple):
    """How to connect, and what to subscribe to. Times in seconds; `version` is 5 or 3."""

    address: MqttAddress
    client_id: str
    topics: Sequence[str]
    version: int = 5
    receive_max: int = 1000
    session_s: int = NEVER_S
    keepalive_s: int = 30
    connect_s_max: float = 5.0


class MqttSessionFacts(NamedTuple):
    """What the broker has granted. `qos` is the lowest of all filters."""

    is_old: bool  # the broker has kept the session, with messages that wait
    session_s: int
    qos: int


@dataclass(slots=True, eq=False)
class MqttMessage:
    """A message: its payload, and how to acknowledge it. `packet_id` is 0 with QoS 0."""

    topic: str
    payload: bytes
    received_us: int
    packet_id: int = 0
    connection: MqttConnection | None = None
    is_again: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether we still have to care for it: else the broker sends it again."""
        return self.packet_id == 0 or (self.connection is not None and self.connection.is_open)


class MqttConnection:
    """One connection, and what comes by it. `take(message)` and `closed(why)` must not raise."""

    def __init__(
        self,
        wish: MqttWish,
        take: Callable[[MqttMessage], None],
        closed: Callable[[str], None],
        now_us: Callable[[], int],
    ) -> None:
        self.is_open = False
        self.taken_over = False
        self._wish = wish
        self._take = take
        self._closed = closed
        self._now_us = now_us
        self._loop = asyncio.get_running_loop()
        self._order: dict[int, bool] = {}  # identifiers not acknowledged, in order; True: done
        self._fd = -1
        self._is_paused = False
        self._packets = 0
        self._why = ""
        self._greeting: asyncio.Future[tuple[bool, Any]] = self._loop.create_future()
        self._granted: asyncio.Future[list[int]] = self._loop.create_future()
        self._misc: asyncio.TimerHandle | None = None
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=wish.client_id,
            protocol=VERSIONS[wish.version],
            clean_session=None if wish.version == 5 else False,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    # Open

    async def open(self, password: str, tls: ssl.SSLContext | None) -> MqttSessionFacts:
        """Connect and subscribe. Raises MqttAway. Messages may come before it returns."""
        wish, client = self._wish, self._client
        client.connect_timeout = wish.connect_s_max
        if wish.address.user or password:
            client.username_pw_set(wish.address.user, password or None)
        if tls is not None:
            client.tls_set_context(tls)
        is_done = False
        try:
            await self._loop.run_in_executor(None, self._connect)
            self._attach()
            async with asyncio.timeout(wish.connect_s_max):
                is_old, properties = await self._greeting
                if isinstance(properties, MqttAway):
                    raise properties
                self._subscribe()
                granted = await self._granted
            is_done = True
        except (OSError, ValueError) as error:  # a ValueError: a host name that cannot be one
            raise MqttAway(self._why or str(error) or "no answer in time") from error
        finally:
            if not is_done:
                self.abandon()
        refused = [
            f"{topic} ({ReasonCode(PacketTypes.SUBACK, identifier=code).getName()})"
            for topic, code in zip(wish.topics, granted, strict=False)
            if code >= GIVES_UP
        ]
        if refused:
            self.abandon()
            raise MqttAway(f"the broker does not let us subscribe to {', '.join(refused)}")
        session_s = getattr(properties, "SessionExpiryInterval", wish.session_s)
        return MqttSessionFacts(is_old, session_s, min(granted, default=0))

    def _connect(self) -> None:
        """Connect and send CONNECT; in a thread."""
        wish, address = self._wish, self._wish.address
        if wish.version != 5:
            self._client.connect(address.host, address.port, keepalive=wish.keepalive_s)
            return
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = wish.session_s
        properties.ReceiveMaximum = wish.receive_max
        properties.MaximumPacketSize = PACKET_BYTES_MAX
        self._client.connect(
            address.host,
            address.port,
            keepalive=wish.keepalive_s,
            clean_start=False,
            properties=properties,
        )

    def _attach(self) -> None:
        sock = self._client.socket()
        if sock is None:
            raise OSError("the broker has closed the connection")
        self._fd = sock.fileno()
        self._client.on_socket_close = self._on_socket_close
        self._client.on_socket_register_write = self._on_register_write
        self._client.on_socket_unregister_write = self._on_unregister_write
        self._loop.add_reader(self._fd, self._readable)
        if self._client.want_write():
            self._on_register_write()
        self._misc = self._loop.call_later(1.0, self._tick)

    def _subscribe(self) -> None:
        wish = self._wish
        if wish.version == 5:
            # Retained messages come once, and not again at each connection.
            options = SubscribeOptions(qos=1, retainHandling=1)
            self._client.subscribe([(topic, options) for topic in wish.topics])
        else:
            self._client.subscribe([(topic, 1) for topic in wish.topics])

    def forget_topics(self, topics: Sequence[str]) -> None:
        """Tell the broker that a session of before is not interested in these filters any more."""
        if topics and self._fd >= 0:
            self._client.unsubscribe(list(topics))

    # In work

    def pause(self) -> None:
        """Read nothing more, until `resume`."""
        if self._fd >= 0 and not self._is_paused:
            self._is_paused = True
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """Read again."""
        if self._fd >= 0 and self._is_paused:
            self._is_paused = False
            self._loop.add_reader(self._fd, self._readable)
            self._loop.call_soon(self._readable)  # TLS may hold bytes that the socket has not

    def ack(self, packet_id: int) -> None:
        """Acknowledge a message, once all before it are. On a closed connection: nothing."""
        if not self.is_open:
            return
        if packet_id not in self._order:  # it was passed by, or came again
            self._client.ack(packet_id, 1)
            return
        self._order[packet_id] = True
        self._flush()

    def pass_by(self, packet_id: int) -> None:
        """Let later messages be acknowledged before this one."""
        self._order.pop(packet_id, None)
        if self.is_open:
            self._flush()

    def _flush(self) -> None:
        while self._order:
            first = next(iter(self._order))
            if not self._order[first]:
                return
            del self._order[first]
            self._client.ack(first, 1)

    def close(self) -> None:
        """Write what is left, say goodbye, and close. The session stays at the broker."""
        self.is_open = False  # the end of the connection is no news
        if self._fd >= 0:
            self._client.disconnect()
            if self._fd >= 0:
                self._client.loop_write()
        self.abandon()

    def abandon(self) -> None:
        """Close at once."""
        self.is_open = False
        self._order.clear()
        for each in (self._greeting, self._granted):
            each.cancel()
        sock = self._client.socket()
        if self._fd >= 0 and sock is not None:
            self._detach()
            sock.close()
        self._detach()

    def _detach(self) -> None:
        if self._misc is not None:
            self._misc.cancel()
            self._misc = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1

    # What the event loop tells

    def _readable(self) -> None:
        if self._is_paused or self._fd < 0:
            return
        for _ in range(READS_MAX):
            before = self._packets
            self._work(self._client.loop_read)
            if self._fd < 0 or self._is_paused:
                return
            if self._packets == before and not self._pending():
                return
        self._loop.call_soon(self._readable)

    def _pending(self) -> int:
        """Return the bytes that TLS holds: the socket does not tell about them."""
        sock = self._client.socket()
        return sock.pending() if isinstance(sock, ssl.SSLSocket) else 0

    def _writable(self) -> None:
        if self._fd >= 0:
            self._work(self._client.loop_write)

    def _tick(self) -> None:
        self._misc = self._loop.call_later(1.0, self._tick)
        if not self._is_paused:
            self._work(self._client.loop_misc)

    def _work(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as error:  # the library raises many on bytes that are not MQTT
            self._end(f"the broker has sent what is not MQTT: {error}")

    # What the library tells

    def _on_connect(
        self,
        _client: Client,
        _userdata: object,
        flags: ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._packets += 1
        if self._greeting.done():
            return
        if code.is_failure:
            said = getattr(properties, "ReasonString", "")
            why = f"the broker refuses us: {code.getName()}{said and f' ({said})'}"
            self._greeting.set_result((False, MqttAway(why)))
            return
        self.is_open = True
        self._greeting.set_result((flags.session_present, properties))

    def _on_subscribe(
        self,
        _client: Client,
        _userdata: object,
        _packet_id: int,
        codes: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self._packets += 1
        if not self._granted.done():
            self._granted.set_result([each.value for each in codes])

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        self._packets += 1
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = "(not UTF-8)"
        packet_id = message.mid if message.qos else 0
        if packet_id:
            self._order[packet_id] = False
        self._take(
            MqttMessage(
                topic,
                bytes(message.payload),
                self._now_us(),
                packet_id=packet_id,
                connection=self,
                is_again=message.dup,
            )
        )

    def _on_disconnect(
        self,
        _client: Client,
        _userdata: object,
        _flags: DisconnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self.taken_over = code.value == TAKEN_OVER
        self._end(
            f"another client has connected with our client id {self._wish.client_id} (--client-id)"
            if self.taken_over
            else f"the connection has ended: {code.getName()}"
        )

    def _on_socket_close(self, *_about: object) -> None:
        self._detach()  # before the number of the socket is used for another one

    def _on_register_write(self, *_about: object) -> None:
        if self._fd >= 0:
            self._loop.add_writer(self._fd, self._writable)

    def _on_unregister_write(self, *_about: object) -> None:
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)

    def _end(self, why: str) -> None:
        was_open, self._why = self.is_open, self._why or why
        for each in (self._greeting, self._granted):
            if not each.done():
                each.set_exception(OSError(why))
                each.exception()  # nobody may be waiting
        self.abandon()
        if was_open:
            self._closed(self._why)
