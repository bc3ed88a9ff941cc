"""`ingest mqtt`: its parts; how it starts is in client_process.

Order of the stop: nothing more is read; posts on their way end, and are acknowledged; the dead
letters, the admin port and the broker are closed.

The options of `ingest mqtt` that have a default. Declared as settings are, but only flags.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import orjson

from ingest.app.client_process import ClientService, run_client
from ingest.app.process import Process
from ingest.config.origins import read_secret
from ingest.config.settings import Settings
from ingest.http_client.client import HttpClient, Target
from ingest.model.errors import ConfigError, StartError
from ingest.model.ledger import Metric, Metrics, Values, read
from ingest.mqtt.bridge import MqttBridge
from ingest.mqtt.connection import NEVER_S, MqttAddress, MqttWish
from ingest.mqtt.gathering import DOCUMENTS_MAX, JsonForm, LineForm, PostBounds, SourceForm
from ingest.mqtt.options import MqttOptions
from ingest.mqtt.session import MqttSession
from ingest.mqtt.tally import METRICS, MqttTally
from ingest.system.files import replace_private
from ingest.system.loopback import is_loopback_host
from ingest.system.state_folder import StateFolder

ROLE = "mqtt"
ADMIN_LISTEN = "127.0.0.1:8083"  # unless admin_listen is set: a service has 8081, a forwarder 8082
TOPICS_FILE = "topics.json"
FORMS: dict[str, type[JsonForm | LineForm]] = {"json": JsonForm, "lines": LineForm}


class MqttTls(NamedTuple):
    """Files of certificates; empty: those of the system, and no certificate of our own."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class MqttWanted(NamedTuple):
    """What an `ingest mqtt` has to do, as its command line says. `target` is the whole URL.

    With a `source`, messages go there, and `form` means nothing. `password` and `token` are read
    at each use, so they may change.
    """

    name: str
    address: MqttAddress
    topics: tuple[str, ...]
    target: Target
    form: str = "json"
    source: str = ""
    client_id: str = ""
    version: int = 5
    tls: MqttTls = MqttTls()
    password: Callable[[], str] = str
    token: Callable[[], str] = str
    service_ca_file: str = ""
    options: MqttOptions = MqttOptions()


def secret_of(file: Path | None, variable: str) -> Callable[[], str]:
    """Return what reads a secret from a file, or from a variable of the environment."""
    if file is not None:
        return lambda: read_secret(file)
    return lambda: os.environ.get(variable, "")


async def mqtt(
    settings: Settings,
    wanted: MqttWanted,
    *,
    admin_listen: str,
    announce: Callable[[str], None],
) -> int:
    """Take messages and post them until SIGTERM or SIGINT; return the exit code.

    Raises StartError and ConfigError with a sentence for the user.
    """
    return await run_client(
        settings,
        ROLE,
        wanted.name,
        lambda folder, process: MqttService(settings, wanted, folder, process),
        admin_listen=admin_listen,
        does=f"takes messages of {wanted.address.shown} for {wanted.target.shown}",
        announce=announce,
    )


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
        self._topics_path = folder.path / TOPICS_FILE
        self.tally = MqttTally()
        self._form = SourceForm(wanted.source) if wanted.source else FORMS[wanted.form]()
        rows_max = min(options.send_rows_max, DOCUMENTS_MAX if wanted.source else 100_000)
        self.work = self.bridge = MqttBridge(
            client,
            self._form,
            self.dead_letters,
            self.tally,
            headers=self._headers,
            bounds=PostBounds(options.send_messages_max, rows_max, options.send_bytes_max),
            held_max=options.mqtt_receive_max,
            in_flight=options.in_flight,
            linger_s=options.send_linger_s,
            retry_s_max=options.send_retry_s_max,
        )
        self._make_session(tls_context(wanted.tls) if wanted.address.tls else None)

    def _headers(self) -> Mapping[str, str]:
        token = self._wanted.token()
        headers = {"Content-Type": self._form.media_type}
        return {**headers, "Authorization": f"Bearer {token}"} if token else headers

    def _make_session(self, tls: ssl.SSLContext | None) -> None:
        wanted, options = self._wanted, self._wanted.options
        left = self._known_topics()
        self.session = MqttSession(
            MqttWish(
                wanted.address,
                wanted.client_id or f"iot-ingest-{wanted.name}",
                wanted.topics,
                version=wanted.version,
                receive_max=options.mqtt_receive_max,
                session_s=min(NEVER_S, round(options.mqtt_session_days * 86_400)),
                keepalive_s=round(options.mqtt_keepalive_s),
                connect_s_max=options.send_connect_s_max,
            ),
            self.tally,
            secret=wanted.password,
            tls=tls,
            take=self.bridge.take,
            left_topics=[each for each in left or () if each not in wanted.topics],
            expects_old=left is not None,
            subscribed=self._remember_topics,
        )

    def _known_topics(self) -> list[str] | None:
        """Return the filters of an earlier process; None if there was none."""
        try:
            found = orjson.loads(self._topics_path.read_bytes())
        except (OSError, ValueError):
            return None
        return [str(each) for each in found] if isinstance(found, list) else None

    def _remember_topics(self) -> None:
        try:
            replace_private(self._topics_path, orjson.dumps(self._wanted.topics))
        except OSError as error:  # only a change of --topic needs it
            self.log.warning("mqtt_topics_not_kept", why=str(error))

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
        count = self.bridge.set_aside_messages
        return {"set_aside": str(count)} if count else {}

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
