"""Keeps a connection to the MQTT broker: connects again for ever, with growing random pauses.

Promises: the session at the broker goes on, so what came meanwhile is delivered. The password is
asked for at each try, so a new one is used without a restart. A file has the filters of topics
that the broker knows: it is told when the next process has others, and a session that it should
have, and has not, is reported.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from ingest.model.errors import IngestError
from ingest.mqtt.connection import MqttConnection, MqttMessage
from ingest.mqtt.options import MqttWanted
from ingest.mqtt.tally import MqttTally
from ingest.system import clock
from ingest.system.files import replace_private
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

    `topics_file` has the filters that an earlier process had, if there was one.
    """

    def __init__(
        self,
        wanted: MqttWanted,
        tally: MqttTally,
        *,
        tls: ssl.SSLContext | None,
        take: Callable[[MqttMessage], None],
        topics_file: Path,
    ) -> None:
        self.why_away = "not connected yet"  # empty while connected
        self.connection: MqttConnection | None = None
        self._wanted = wanted
        self._tally = tally
        self._tls = tls
        self._take = take
        self._topics_file = topics_file
        self._known_topics = _topics_in(topics_file)  # to the broker
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
        connection = MqttConnection(self._wanted, self._take, self._lost)
        self.connection = connection
        try:
            facts = await connection.open(self._wanted.password(), self._tls)
        except IngestError as error:
            if not self._ended.is_set():
                self._failed(str(error))
            return False  # if it has ended on the way, `_lost` has said why
        if not connection.is_open:  # it has ended in the same moment
            return False
        if facts.is_old:
            known = self._known_topics or ()
            connection.forget_topics([each for each in known if each not in self._wanted.topics])
        elif self._known_topics is not None:
            self._tally.sessions_lost += 1
            _log.error("mqtt_session_lost", broker=self._wanted.address.shown, why=UNKNOWN_SESSION)
        if facts.qos < 1:
            _log.warning("mqtt_qos_0", broker=self._wanted.address.shown)
        self._remember_topics()
        self.why_away = ""
        self._tally.connects += 1
        _log.info(
            "mqtt_connected",
            broker=self._wanted.address.shown,
            old_session=facts.is_old,
            session_s=facts.session_s,
        )
        return True

    def _remember_topics(self) -> None:
        self._known_topics = self._wanted.topics
        try:
            replace_private(self._topics_file, orjson.dumps(self._wanted.topics))
        except OSError as error:  # only a change of --topic needs it
            _log.warning("mqtt_topics_not_kept", why=str(error))

    def _lost(self, why: str) -> None:
        is_short = clock.monotonic_s() - self._opened_s < SHORT_S
        self._short_count = self._short_count + 1 if is_short else 0
        told = self.connection is not None and self.connection.taken_over
        if self._short_count >= SHORT_COUNT and not told:
            why = (
                f"{why}. The last {SHORT_COUNT} connections have ended within {SHORT_S:.0f} s. "
                f"Perhaps another client has our client id {self._wanted.client_id} (--client-id)"
            )
        self._failed(why)
        self._ended.set()

    def _failed(self, why: str) -> None:
        self.why_away = why
        left_out = self._occasionally.due(why)
        if left_out is not None:
            _log.warning(
                "mqtt_away",
                broker=self._wanted.address.shown,
                why=why,
                similar_suppressed=left_out,
            )


def _topics_in(path: Path) -> Sequence[str] | None:
    """Return the filters of an earlier process; None if there was none."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return [str(each) for each in found] if isinstance(found, list) else None
