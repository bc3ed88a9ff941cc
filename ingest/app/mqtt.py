"""`ingest mqtt`: its parts, and the order in which they start and stop.

Order of the start: state folder, dead letters, admin port, broker, posts.
Order of the stop: nothing more is read; posts on their way end, and are acknowledged; the broker,
the dead letters and the admin port are closed.
Promises: no message is acknowledged that was not handled. A stop needs no answer of the service.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import orjson

from ingest import __version__
from ingest.admin.exposition import of_one
from ingest.admin.port import Admin
from ingest.app.client_process import run_client
from ingest.app.dead_letters import folder_letters
from ingest.app.process import Process
from ingest.config.mqtt_options import MqttOptions
from ingest.config.settings import Settings, split_address
from ingest.config.sources import read_secret
from ingest.http_client.client import HttpClient
from ingest.http_client.target import Target, is_loopback
from ingest.model.errors import ConfigError, StartError
from ingest.model.metrics import Values, read
from ingest.mqtt.bridge import MqttBridge
from ingest.mqtt.broker_address import MqttAddress
from ingest.mqtt.gathering import JsonForm, LineForm, PostBounds
from ingest.mqtt.messages import NEVER_S, MqttWish
from ingest.mqtt.session import MqttSession
from ingest.mqtt.source_form import DOCUMENTS_MAX, SourceForm
from ingest.mqtt.tally import METRICS, OF_NOW, MqttFigures, MqttTally
from ingest.system import logs
from ingest.system.clock import unix_us
from ingest.system.files import replace_private
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


class MqttService:
    """One running `ingest mqtt`. Implements ClientService."""

    def __init__(
        self, settings: Settings, wanted: MqttWanted, folder: StateFolder, process: Process
    ) -> None:
        self._process = process
        self._work: asyncio.Task[None] | None = None
        self.tally = MqttTally()
        self._settings = settings
        self._wanted = wanted
        self._topics_path = folder.path / TOPICS_FILE
        self._log = logs.get_logger(ROLE)
        self._dead_letters = folder_letters(settings, folder.dead_letters, auto_replay=False)
        tls = tls_context(wanted.tls) if wanted.address.tls else None
        self._make_bridge()
        self._make_session(tls)
        exposition = of_one(__version__, self._metrics, mqtt=wanted.name)
        self._admin = Admin(exposition, self.readyz)

    def _make_bridge(self) -> None:
        wanted, options = self._wanted, self._wanted.options
        self._form = SourceForm(wanted.source) if wanted.source else FORMS[wanted.form]()
        rows_max = min(options.send_rows_max, DOCUMENTS_MAX if wanted.source else 100_000)
        self._client = HttpClient(
            wanted.target,
            connections_max=options.in_flight + 1,  # one for what was set aside
            connect_s_max=options.send_connect_s_max,
            answer_s_max=options.send_s_max,
            ca_file=wanted.service_ca_file,
        )
        self._bridge = MqttBridge(
            self._client,
            self._form,
            self._dead_letters,
            self.tally,
            headers=self._headers,
            bounds=PostBounds(options.send_messages_max, rows_max, options.send_bytes_max),
            held_max=options.mqtt_receive_max,
            in_flight=options.in_flight,
            linger_s=options.send_linger_s,
            retry_s_max=options.send_retry_s_max,
        )

    def _headers(self) -> Mapping[str, str]:
        token = self._wanted.token()
        headers = {"Content-Type": self._form.media_type}
        return {**headers, "Authorization": f"Bearer {token}"} if token else headers

    def _make_session(self, tls: ssl.SSLContext | None) -> None:
        wanted, options = self._wanted, self._wanted.options
        left = self._known_topics()
        self._session = MqttSession(
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
            take=self._bridge.take,
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
            self._log.warning("mqtt_topics_not_kept", why=str(error))

    # State

    def _metrics(self) -> Values:
        return (*read(METRICS, self.tally), *read(OF_NOW, self.figures()))

    def figures(self) -> MqttFigures:
        """Return what the metrics show of this moment."""
        oldest_us = self._bridge.oldest_us()
        letters = self._dead_letters.stats()
        return MqttFigures(
            connected=self._session.up,
            held_messages=self._bridge.held_messages,
            set_aside_messages=self._bridge.set_aside_messages,
            oldest_age_s=0.0 if oldest_us is None else max(0.0, (unix_us() - oldest_us) / 1e6),
            dead_letters=letters.live,
            dead_letter_bytes=letters.size_bytes,
        )

    def state(self) -> tuple[str, str]:
        """Return the state, and why it is not `receiving`."""
        if self._process.stopping.is_set():
            return "draining", ""
        if not self._session.up:
            return "broker_away", self._session.why_away
        if trouble := self._bridge.delivery.trouble:
            return "service_away", trouble
        return "receiving", ""

    def readyz(self) -> tuple[int, bytes]:
        """Return the HTTP status and the JSON document of /readyz."""
        state, why = self.state()
        document = {"state": state, "reason": why, "mqtt": self._wanted.name}
        if self._bridge.set_aside_messages:
            document["set_aside"] = str(self._bridge.set_aside_messages)
        return 200 if state == "receiving" else 503, orjson.dumps(document)

    # Start and stop

    async def start(self, admin_listen: str) -> str:
        """Start all parts; return the bound HOST:PORT of the admin port. Raises StartError.

        If broker or service are out of reach, they are tried on, and /readyz says so.
        """
        wanted = self._wanted
        try:
            has_password = bool(wanted.password())
            wanted.token()
        except ConfigError as error:
            raise StartError(str(error)) from error
        if has_password and not wanted.address.tls and not is_loopback(wanted.address.host):
            self._log.warning("mqtt_plain_password", broker=wanted.address.shown)
        await self._dead_letters.open()
        listen = await self._admin.start(*split_address(admin_listen))
        process = self._process
        process.spawn(self._session.run(process.stopping))
        process.spawn(self._dead_letters.tidy(process.stopping))
        self._work = process.spawn(
            self._bridge.run(process.stopping, process.halted, self._settings.drain_s_max)
        )
        return listen

    async def stop(self) -> Mapping[str, int]:
        """Wait until no post is on its way; see ClientService."""
        if self._session.connection is not None:
            self._session.connection.pause()
        if self._work is not None:
            await self._work
        tally = self.tally
        return {
            "received": sum(tally.received),
            "taken": tally.taken,
            "dead_lettered": tally.dead_lettered,
            "left_to_broker": self._bridge.held_messages,
        }

    async def close(self) -> None:
        """End all tasks, and close everything. Call it in any case."""
        await self._process.wait_tasks()
        self._session.close()
        await self._client.close()
        await self._dead_letters.close()
        await self._admin.close()


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
