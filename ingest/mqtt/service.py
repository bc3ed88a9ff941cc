"""One running `ingest mqtt`: its parts, its state and its metrics of now.

How it starts is in app/client_process.py. Order of the stop: nothing more is read; posts on their
way end, and are acknowledged; the dead letters, the admin port and the broker are closed.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from ingest.app.client_process import ClientService
from ingest.app.process import Process
from ingest.config.settings import Settings
from ingest.http_client.client import HttpClient
from ingest.model.errors import ConfigError, StartError
from ingest.model.ledger import Metric, Metrics, Values, read
from ingest.mqtt.bridge import MqttBridge
from ingest.mqtt.gathering import form_of
from ingest.mqtt.options import MqttTls, MqttWanted
from ingest.mqtt.session import MqttSession
from ingest.mqtt.tally import METRICS, MqttTally
from ingest.system.loopback import is_loopback_host
from ingest.system.state_folder import StateFolder

ROLE = "mqtt"
ADMIN_LISTEN = "127.0.0.1:8083"  # unless admin_listen is set: a service has 8081, a forwarder 8082
TOPICS_FILE = "topics.json"


class MqttService(ClientService):
    """One running `ingest mqtt`."""

    role, works = ROLE, "receiving"

    def __init__(
        self, settings: Settings, wanted: MqttWanted, folder: StateFolder, process: Process
    ) -> None:
        options = wanted.options
        client = HttpClient(
            wanted.target,
            connections_max=options.in_flight + 1,  # one for what was set aside
            connect_s_max=options.send_connect_s_max,
            answer_s_max=options.send_s_max,
            ca_file=wanted.service_ca_file,
        )
        super().__init__(settings, wanted.name, client, folder, process)
        self._wanted = wanted
        self.tally = MqttTally(wanted.topics)
        self._form = form_of(wanted.form, wanted.source)
        self.work = self.bridge = MqttBridge(
            client,
            self._form,
            self.dead_letters,
            self.tally,
            headers=self._headers,
            options=options,
        )
        self.session = MqttSession(
            wanted,
            self.tally,
            tls=tls_context(wanted.tls) if wanted.address.tls else None,
            take=self.bridge.take,
            topics_file=folder.path / TOPICS_FILE,
        )

    def _headers(self) -> Mapping[str, str]:
        token = self._wanted.token()
        headers = {"Content-Type": self._form.media_type}
        return {**headers, "Authorization": f"Bearer {token}"} if token else headers

    def metrics(self) -> Values:
        """Return the values of all metrics now."""
        return (*read(METRICS, self.tally), *read(OF_NOW, self))

    def trouble(self) -> tuple[str, str]:
        """Return why nothing is received or posted; see ClientService."""
        if not self.session.up:
            return "broker_away", self.session.why_away
        why = self.bridge.delivery.trouble
        return "service_away" if why else "", why

    def further(self) -> Mapping[str, str]:
        """Return what /readyz says beside the state."""
        aside, ignored = self.bridge.set_aside_messages, self.tally.ignored.all_ignored
        said = {"set_aside": str(aside)} if aside else {}
        return said | ({"all_ignored": ", ".join(ignored)} if ignored else {})

    async def connect(self) -> None:
        """Start the session at the broker; see ClientService."""
        wanted = self._wanted
        try:
            has_password = bool(wanted.password())
            wanted.token()
        except ConfigError as error:
            raise StartError(str(error)) from error
        if has_password and not wanted.address.tls and not is_loopback_host(wanted.address.host):
            self.log.warning("mqtt_plain_password", broker=wanted.address.shown)
        self.process.spawn(self.session.run(self.process.stopping))

    async def stop(self) -> Mapping[str, int]:
        """Read nothing more, and wait until no post is on its way; see ClientService."""
        if self.session.connection is not None:
            self.session.connection.pause()
        return await super().stop()

    def sums(self) -> Mapping[str, int]:
        """Return what it has done, in messages."""
        tally = self.tally
        return {
            "received": sum(tally.received),
            "taken": tally.taken,
            "dead_lettered": tally.dead_lettered,
            "left_to_broker": self.bridge.held_messages,
        }

    async def close(self) -> None:
        """End all tasks, and close everything. Call it in any case."""
        await super().close()
        self.session.close()


OF_NOW: Metrics[MqttService] = (
    Metric("mqtt_connected", "1 if the broker delivers messages.", lambda it: it.session.up),
    Metric(
        "mqtt_held_messages",
        "Messages that are not acknowledged.",
        lambda it: it.bridge.held_messages,
    ),
    Metric(
        "mqtt_set_aside_messages",
        "Of these, messages that the service refuses for now (413, 403).",
        lambda it: it.bridge.set_aside_messages,
    ),
    Metric(
        "mqtt_oldest_age_seconds",
        "How long the oldest of them is here.",
        lambda it: it.oldest_age_s(),
    ),
    Metric("mqtt_dlq_messages", "Open dead letters.", lambda it: it.dead_letters.stats().live),
    Metric(
        "mqtt_dlq_bytes",
        "Bytes of the files of these dead letters.",
        lambda it: it.dead_letters.stats().size_bytes,
    ),
)


def tls_context(files: MqttTls) -> ssl.SSLContext:
    """Return how to speak TLS with the broker. Raises ConfigError that names the file."""
    try:
        context = ssl.create_default_context(cafile=files.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--mqtt-ca {files.ca_file} cannot be used: {error}") from None
    if files.cert_file:
        try:
            context.load_cert_chain(files.cert_file, files.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--mqtt-cert {files.cert_file} cannot be used: {error}") from None
    return context
