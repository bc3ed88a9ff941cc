"""One connection to an MQTT broker: it subscribes, gets messages, and acknowledges them.

The library has no thread here, but to connect: the event loop tells it when it can read.
Promises: a message is acknowledged only by `ack`, and only on the connection that it came by. So an
identifier that the broker uses again is never acknowledged by mistake. Acknowledgements have the
order of the messages, as MQTT wants it. No call but `open` waits.
Does not: connect again (session.py).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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

from ingest.model.errors import MqttAway
from ingest.mqtt.options import MqttWanted
from ingest.system.clock import unix_us

NEVER_S = 0xFFFFFFFF  # as a session's expiry: it does not end
READS_MAX = 64  # packets in a round of the event loop
PACKET_BYTES_MAX = 16 * 1024**2  # the broker drops what is larger, and tells nobody
VERSIONS = {5: MQTTProtocolVersion.MQTTv5, 3: MQTTProtocolVersion.MQTTv311}
TAKEN_OVER = 142  # another client has connected with our name
GIVES_UP = 128  # reason codes from here on are failures


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
        wanted: MqttWanted,
        take: Callable[[MqttMessage], None],
        closed: Callable[[str], None],
    ) -> None:
        self.is_open = False
        self.taken_over = False
        self._wanted = wanted
        self._take = take
        self._closed = closed
        self._session_s = min(NEVER_S, round(wanted.options.mqtt_session_days * 86_400))
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
            client_id=wanted.client_id,
            protocol=VERSIONS[wanted.version],
            clean_session=None if wanted.version == 5 else False,
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
        wanted, client = self._wanted, self._client
        connect_s_max = wanted.options.send_connect_s_max
        client.connect_timeout = connect_s_max
        if wanted.address.user or password:
            client.username_pw_set(wanted.address.user, password or None)
        if tls is not None:
            client.tls_set_context(tls)
        is_done = False
        try:
            await self._loop.run_in_executor(None, self._connect)
            self._attach()
            async with asyncio.timeout(connect_s_max):
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
            for topic, code in zip(wanted.topics, granted, strict=False)
            if code >= GIVES_UP
        ]
        if refused:
            self.abandon()
            raise MqttAway(f"the broker does not let us subscribe to {', '.join(refused)}")
        session_s = getattr(properties, "SessionExpiryInterval", self._session_s)
        return MqttSessionFacts(is_old, session_s, min(granted, default=0))

    def _connect(self) -> None:
        """Connect and send CONNECT; in a thread."""
        address, options = self._wanted.address, self._wanted.options
        keepalive_s = round(options.mqtt_keepalive_s)
        if self._wanted.version != 5:
            self._client.connect(address.host, address.port, keepalive=keepalive_s)
            return
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = self._session_s
        properties.ReceiveMaximum = options.mqtt_receive_max
        properties.MaximumPacketSize = PACKET_BYTES_MAX
        self._client.connect(
            address.host,
            address.port,
            keepalive=keepalive_s,
            clean_start=False,
            properties=properties,
        )

    def _attach(self) -> None:
        sock = self._client.socket()
        if sock is None:
            raise OSError("the broker has closed the connection")
        self._fd = sock.fileno()
        # Before the number of the socket is used for another one.
        self._client.on_socket_close = lambda *_about: self._detach()
        self._client.on_socket_register_write = self._on_register_write
        self._client.on_socket_unregister_write = self._on_unregister_write
        self._loop.add_reader(self._fd, self._readable)
        if self._client.want_write():
            self._on_register_write()
        self._misc = self._loop.call_later(1.0, self._tick)

    def _subscribe(self) -> None:
        wanted = self._wanted
        if wanted.version == 5:
            # Retained messages come once, and not again at each connection.
            options = SubscribeOptions(qos=1, retainHandling=1)
            self._client.subscribe([(topic, options) for topic in wanted.topics])
        else:
            self._client.subscribe([(topic, 1) for topic in wanted.topics])

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
                unix_us(),
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
            f"another client has connected with our client id {self._wanted.client_id} "
            "(--client-id)"
            if self.taken_over
            else f"the connection has ended: {code.getName()}"
        )

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
