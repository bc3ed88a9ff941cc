"""One forwarder: its parts, and the order in which they start and stop.

Order of the start: state folder, dead letters, admin port, broker, consumer, target.
Order of the stop: no more messages; those that wait are given back; posts under way end; the
connection to the broker, the dead letters and the admin port are closed.
Promises: no message is acknowledged that was not handled. A stop needs no answer of the target.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import orjson

from ingest import __version__
from ingest.admin.exposition import of_one
from ingest.admin.port import Admin
from ingest.app.broker import configured_address
from ingest.app.client_process import run_client
from ingest.app.dead_letters import folder_letters
from ingest.app.process import Process
from ingest.broker.connection import BrokerConnection
from ingest.broker.envelope import Address
from ingest.broker.lag import lag_bytes_max
from ingest.broker.pulling import Pull, Puller, Skipped
from ingest.broker.roles import FORWARD
from ingest.config.folders import state_dir
from ingest.config.forward_options import ForwardOptions
from ingest.config.settings import Settings, split_address
from ingest.embedded.broker import running_broker
from ingest.forward.bodies import Filters, PostLimits
from ingest.forward.forwarder import Forwarder
from ingest.forward.lag import LagWatch
from ingest.forward.sender import TargetSender
from ingest.forward.signing import Signer
from ingest.forward.tally import METRICS, MISSING, OF_NOW, ForwardFigures, ForwardTally
from ingest.http_client.client import HttpClient
from ingest.http_client.target import Target
from ingest.model.errors import StartError
from ingest.model.metrics import Values, read
from ingest.system import logs
from ingest.system.clock import unix_us
from ingest.system.state_folder import StateFolder

ROLE = "forward"
ADMIN_LISTEN = "127.0.0.1:8082"  # unless admin_listen is set: a service on this machine has 8081
MESSAGE_BYTES_MAX = 64 * 1024**2  # no nats-server takes a larger one
NO_BROKER = (
    "a forwarder reads the stream of a broker, and here is none: `ingest serve` keeps readings in "
    "its own journal, which only it reads. Run `ingest up` on this state folder, or set "
    "INGEST_BROKER_URL"
)


class ForwardWanted(NamedTuple):
    """What a forwarder has to do, as its command line says."""

    name: str
    target: Target
    devices: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    secret_file: Path | None = None
    ca_file: str = ""
    options: ForwardOptions = ForwardOptions()


async def forward(
    settings: Settings,
    wanted: ForwardWanted,
    *,
    admin_listen: str,
    announce: Callable[[str], None],
) -> int:
    """Forward until SIGTERM or SIGINT; return the exit code.

    Raises StartError and ConfigError with a sentence for the user.
    """
    where = broker_of(settings)
    return await run_client(
        settings,
        ROLE,
        wanted.name,
        lambda folder, process: ForwardService(settings, wanted, folder, process, where),
        admin_listen=admin_listen,
        does=f"forwards {wanted.name} to {wanted.target.shown}",
        announce=announce,
    )


def broker_of(settings: Settings) -> Callable[[], Address]:
    """Return what gives the address of the broker. Raises StartError if there is none."""
    configured = configured_address(settings)
    if configured is not None:
        return lambda: configured
    folder = StateFolder(state_dir(settings)).broker
    first = running_broker(folder)
    if first is None:
        raise StartError(NO_BROKER)
    last = first.address(ROLE)

    def where() -> Address:
        nonlocal last
        now = running_broker(folder)  # its port and its passwords change
        if now is not None:
            last = now.address(ROLE)
        return last

    return where


class ForwardService:
    """One running forwarder. Implements ClientService."""

    def __init__(
        self,
        settings: Settings,
        wanted: ForwardWanted,
        folder: StateFolder,
        process: Process,
        where: Callable[[], Address],
    ) -> None:
        self._process = process
        self._work: asyncio.Task[None] | None = None
        self.tally = ForwardTally()
        self._settings = settings
        self._wanted = wanted
        self._log = logs.get_logger("forward")
        self._closing = asyncio.Event()  # the connection to the broker ends
        self._dead_letters = folder_letters(settings, folder.dead_letters, auto_replay=False)
        self._make_sender()
        self._connection = BrokerConnection(where, ROLE)
        self._make_reader()
        exposition = of_one(__version__, self._metrics, forward=wanted.name)
        self._admin = Admin(exposition, self.readyz)

    def _make_sender(self) -> None:
        wanted, options = self._wanted, self._wanted.options
        signer = Signer(wanted.secret_file) if wanted.secret_file is not None else None
        self._client = HttpClient(
            wanted.target,
            connections_max=options.in_flight,
            connect_s_max=options.send_connect_s_max,
            answer_s_max=options.send_s_max,
            ca_file=wanted.ca_file,
        )
        self._sender = TargetSender(
            self._client,
            self._dead_letters,
            self.tally,
            sign=signer.headers if signer is not None else _unsigned,
            retry_s_max=options.send_retry_s_max,
        )
        self._forwarder = Forwarder(
            self._sender,
            self.tally,
            filters=Filters(wanted.devices, wanted.metrics),
            limits=PostLimits(options.send_rows_max, options.send_bytes_max),
            in_flight=options.in_flight,
        )

    def _make_reader(self) -> None:
        settings, consumer = self._settings, FORWARD + self._wanted.name
        self._puller = Puller(
            self._connection,
            consumer=consumer,
            take=self._forwarder.take,
            skipped=self._missed,
            pull=Pull(2 * self._wanted.options.in_flight, MESSAGE_BYTES_MAX),
        )
        self._forwarder.connect(self._puller)
        self.watch = LagWatch(
            self._connection,
            consumer,
            bytes_max=lag_bytes_max(settings.forward_lag_bytes_max, settings.stream_bytes_max),
            skip_to=self._forwarder.skip_to,
        )

    def _missed(self, skipped: Skipped) -> None:
        """Note messages that the stream has not delivered: damaged, or removed before we came."""
        self.tally.pass_over(MISSING, skipped.last - skipped.first + 1, 0)
        self._log.error("forward_missing", first=skipped.first, last=skipped.last)

    # State

    def _metrics(self) -> Values:
        return (*read(METRICS, self.tally), *read(OF_NOW, self._figures()))

    def _figures(self) -> ForwardFigures:
        oldest_us = self._forwarder.oldest_us()
        letters, lag = self._dead_letters.stats(), self.watch.lag
        return ForwardFigures(
            lag_messages=lag.messages,
            lag_bytes=lag.size_bytes,
            lag_bytes_max=self.watch.bytes_max,
            held_messages=self._forwarder.held_messages,
            oldest_age_s=0.0 if oldest_us is None else max(0.0, (unix_us() - oldest_us) / 1e6),
            dead_letters=letters.live,
            dead_letter_bytes=letters.size_bytes,
        )

    def state(self) -> tuple[str, str]:
        """Return the state, and why it is not `forwarding`."""
        if self._process.stopping.is_set():
            return "draining", ""
        if not self._connection.up:
            return "broker_away", self._connection.why_away
        if self.watch.missing:
            return "no_consumer", self.watch.missing
        if not self.watch.looked:
            return "starting", ""
        if trouble := self._sender.delivery.trouble:
            return "target_away", f"the target takes nothing: {trouble}"
        return "forwarding", ""

    def readyz(self) -> tuple[int, bytes]:
        """Return the HTTP status and the JSON document of /readyz."""
        state, why = self.state()
        document = {"state": state, "reason": why, "forward": self._wanted.name}
        return 200 if state == "forwarding" else 503, orjson.dumps(document)

    # Start and stop

    async def start(self, admin_listen: str) -> str:
        """Start all parts but the posts; return the bound HOST:PORT of the admin port.

        Raises StartError. If the broker is out of reach, it is tried on, and /readyz says so.
        """
        await self._dead_letters.open()
        listen = await self._admin.start(*split_address(admin_listen))
        process = self._process
        process.spawn(self._connection.run(self._closing))
        await self._connection.wait_tried()
        await self.watch.look()
        if self.watch.missing:
            raise StartError(self.watch.missing)
        process.spawn(self.watch.run(process.stopping))
        process.spawn(self._puller.run(process.stopping))
        process.spawn(self._dead_letters.tidy(process.stopping))
        self._work = process.spawn(
            self._forwarder.run(process.stopping, process.halted, self._settings.drain_s_max)
        )
        return listen

    async def stop(self) -> Mapping[str, int]:
        """Wait until all messages are done or given back; see ClientService."""
        if self._work is not None:
            await self._work
        tally = self.tally
        return {
            "sent": tally.sent,
            "filtered": tally.filtered,
            "dead_lettered": tally.dead_lettered,
            "skipped": tally.skipped,
        }

    async def close(self) -> None:
        """End all tasks, and close everything. Call it in any case."""
        self._closing.set()
        await self._process.wait_tasks()
        await self._client.close()
        await self._dead_letters.close()
        await self._admin.close()


def _unsigned(_key: str, _body: bytes, _now_s: float) -> Mapping[str, str]:
    return {}
