"""Keeps a connection to the MQTT broker: connects again for ever, with growing random pauses.

Promises: the session at the broker goes on, so what came meanwhile is delivered. The password is
asked for at each try, so a new one is used without a restart.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence

from ingest.model.errors import IngestError
from ingest.mqtt.connection import MqttConnection, MqttMessage, MqttWish
from ingest.mqtt.tally import MqttTally
from ingest.system import clock
from ingest.system.logs import Occasionally, get_logger
from ingest.system.waiting import backoff_s, first_of, unless

AGAIN_S_MIN = 0.2  # the bound of the first pause
AGAIN_S_MAX = 30.0
STEADY_S = 10.0  # a connection that has lasted as long was a good one: pauses begin anew
TAKEN_OVER_S = 30.0  # two processes with one client id would else take it from each other for ever
# Not each broker tells that another client has our client id: Mosquitto 2.0.11 does not, and by
# MQTT 3.1.1 none does. Then connections end soon after they were made, one after the other: the
# other client is back after its own pause.
SHORT_S = 2 * AGAIN_S_MAX
SHORT_COUNT = 3
WARNING_S = 60.0
UNKNOWN_SESSION = "the broker has no session of ours: what came since our last one is lost"

_log = get_logger("mqtt")


class MqttSession:
    """The connection of now, if there is one, and why there is none.

    `secret()` returns the password; it may raise ConfigError. `left_topics` are filters that an
    earlier process had, and this one has not. `subscribed()` is called when all are in force.
    """

    def __init__(
        self,
        wish: MqttWish,
        tally: MqttTally,
        *,
        secret: Callable[[], str],
        tls: ssl.SSLContext | None,
        take: Callable[[MqttMessage], None],
        left_topics: Sequence[str] = (),
        expects_old: bool = False,
        subscribed: Callable[[], None] = lambda: None,
    ) -> None:
        self.why_away = "not connected yet"  # empty while connected
        self.connection: MqttConnection | None = None
        self.is_weak = False  # the broker has granted QoS 0 only
        self._wish = wish
        self._tally = tally
        self._secret = secret
        self._tls = tls
        self._take = take
        self._left_topics = tuple(left_topics)
        self._expects_old = expects_old
        self._subscribed = subscribed
        self._ended = asyncio.Event()
        self._opened_s = 0.0
        self._short_count = 0  # connections in a row that have ended soon
        self._occasionally = Occasionally(WARNING_S)

    @property
    def up(self) -> bool:
        """Whether all topics are subscribed to now."""
        return not self.why_away

    async def run(self, stopping: asyncio.Event) -> None:
        """Connect, and connect again, until the event is set. The connection stays open then."""
        tries = 0
        while not stopping.is_set():
            if await unless(stopping, self._open()):
                await first_of(self._ended.wait(), stopping.wait())
            if stopping.is_set():
                return
            if clock.monotonic_s() - self._opened_s > STEADY_S:
                tries = 0
            pause_s = backoff_s(tries, first_s=AGAIN_S_MIN, cap_s=AGAIN_S_MAX)
            taken = self.connection is not None and self.connection.taken_over
            await clock.sleep_unless(stopping, max(pause_s, TAKEN_OVER_S) if taken else pause_s)
            tries += 1

    def close(self) -> None:
        """Send what is left, and close. Repeatable."""
        if self.connection is not None:
            self.connection.close()
        self.why_away = self.why_away or "closed"

    async def _open(self) -> bool:
        """Connect once; return whether that went well."""
        self._ended.clear()
        self._opened_s = clock.monotonic_s()
        connection = MqttConnection(self._wish, self._take, self._lost, clock.unix_us)
        self.connection = connection
        try:
            facts = await connection.open(self._secret(), self._tls)
        except IngestError as error:
            if not self._ended.is_set():
                self._failed(str(error))
            return False  # if it has ended on the way, `_lost` has said why
        if not connection.is_open:  # it has ended in the same moment
            return False
        if facts.is_old:
            connection.forget_topics(self._left_topics)
            self._left_topics = ()
        elif self._expects_old:
            self._tally.sessions_lost += 1
            _log.error("mqtt_session_lost", broker=self._wish.address.shown, why=UNKNOWN_SESSION)
        self._expects_old = True
        self.is_weak = facts.qos < 1
        if self.is_weak:
            _log.warning("mqtt_qos_0", broker=self._wish.address.shown)
        self._subscribed()
        self.why_away = ""
        self._tally.connects += 1
        _log.info(
            "mqtt_connected",
            broker=self._wish.address.shown,
            old_session=facts.is_old,
            session_s=facts.session_s,
        )
        return True

    def _lost(self, why: str) -> None:
        is_short = clock.monotonic_s() - self._opened_s < SHORT_S
        self._short_count = self._short_count + 1 if is_short else 0
        told = self.connection is not None and self.connection.taken_over
        if self._short_count >= SHORT_COUNT and not told:
            why = (
                f"{why}. The last {SHORT_COUNT} connections have ended within {SHORT_S:.0f} s. "
                f"Perhaps another client has our client id {self._wish.client_id} (--client-id)"
            )
        self._failed(why)
        self._ended.set()

    def _failed(self, why: str) -> None:
        self.why_away = why
        left_out = self._occasionally.due(why)
        if left_out is not None:
            _log.warning(
                "mqtt_away",
                broker=self._wish.address.shown,
                why=why,
                similar_suppressed=left_out,
            )
