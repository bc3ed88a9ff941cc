"""One forwarder: its parts; how it starts is in app/client_process.py.

The start also looks for the consumer, which an operator makes.
Order of the stop: no more messages; those that wait are given back; posts under way end; the
connection to the broker, the dead letters and the admin port are closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ingest.app.client_process import ClientService, run_client
from ingest.app.process import Process
from ingest.config.named_files import state_dir
from ingest.config.settings import Settings
from ingest.http_client.client import HttpClient, Target
from ingest.model.errors import StartError
from ingest.model.ledger import Metric, Metrics, Values, read
from ingest.roles.embedded_broker import running_broker
from ingest.roles.forward.forwarder import (
    METRICS,
    MISSING,
    Forwarder,
    ForwardTally,
    LagWatch,
    TargetSender,
)
from ingest.roles.forward.options import ForwardOptions
from ingest.roles.forward.posts import Filters, PostLimits, Signer
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import FORWARD, Address
from ingest.roles.nats.pulling import Pull, Puller
from ingest.roles.nats.purge import lag_bytes_max
from ingest.roles.role import configured_address
from ingest.system.state_folder import StateFolder

ROLE = "forward"
ADMIN_LISTEN = "127.0.0.1:8082"  # unless admin_listen is set: a service on this machine has 8081
MESSAGE_BYTES_MAX = 64 * 1024**2  # no nats-server takes a larger one


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
        raise StartError(
            "a forwarder reads the stream of a broker, and here is none: `ingest serve` keeps "
            "readings in its own journal, which only it reads. Run `ingest up` on this state "
            "folder, or set INGEST_BROKER_URL"
        )
    # Its port and its passwords change. While it does not run, no address is of use.
    return lambda: (running_broker(folder) or first).address(ROLE)


class ForwardService(ClientService):
    """One running forwarder. `where` returns the address of the broker."""

    role, works = ROLE, "forwarding"

    def __init__(
        self,
        settings: Settings,
        wanted: ForwardWanted,
        folder: StateFolder,
        process: Process,
        where: Callable[[], Address],
    ) -> None:
        options = wanted.options
        self._connection = BrokerConnection(where, ROLE)  # first: it raises if there is no nats
        client = HttpClient(
            wanted.target,
            connections_max=options.in_flight,
            connect_s_max=options.send_connect_s_max,
            answer_s_max=options.send_s_max,
            ca_file=wanted.ca_file,
        )
        super().__init__(settings, wanted.name, client, folder, process)
        self.tally = ForwardTally()
        self._closing = asyncio.Event()  # the connection to the broker ends
        signer = Signer(wanted.secret_file) if wanted.secret_file is not None else None
        self._sender = TargetSender(
            client,
            self.dead_letters,
            self.tally,
            sign=signer.headers if signer is not None else lambda _key, _body, _now_s: {},
            retry_s_max=options.send_retry_s_max,
        )
        consumer = FORWARD + wanted.name
        self._puller = Puller(
            self._connection,
            consumer=consumer,
            take=lambda message: self.forwarder.take(message),  # noqa: PLW0108  made below
            skipped=self._missed,
            pull=Pull(2 * options.in_flight, MESSAGE_BYTES_MAX),
        )
        self.work = self.forwarder = Forwarder(
            self._sender,
            self._puller,
            self.tally,
            filters=Filters(wanted.devices, wanted.metrics),
            limits=PostLimits(options.send_rows_max, options.send_bytes_max),
            in_flight=options.in_flight,
        )
        self.watch = LagWatch(
            self._connection,
            consumer,
            bytes_max=lag_bytes_max(settings.forward_lag_bytes_max, settings.stream_bytes_max),
            skip_to=self.forwarder.skip_to,
        )

    def _missed(self, places: range) -> None:
        """Note messages that the stream has not delivered: damaged, or removed before we came."""
        self.tally.pass_over(MISSING, len(places), 0)
        self.log.error("forward_missing", first=places[0], last=places[-1])

    def metrics(self) -> Values:
        """Return the values of all metrics now."""
        return (*read(METRICS, self.tally), *read(OF_NOW, self))

    def trouble(self) -> tuple[str, str]:
        """Return why nothing is forwarded; see ClientService."""
        if not self._connection.up:
            return "broker_away", self._connection.why_away
        if self.watch.missing:
            return "no_consumer", self.watch.missing
        if not self.watch.looked:
            return "starting", ""
        why = self._sender.delivery.trouble
        return ("target_away", f"the target takes nothing: {why}") if why else ("", "")

    async def connect(self) -> None:
        """Connect to the broker, and look for the consumer; see ClientService."""
        process = self.process
        process.spawn(self._connection.run(self._closing))
        await self._connection.tried.wait()
        await self.watch.look()
        if self.watch.missing:
            raise StartError(self.watch.missing)
        process.spawn(self.watch.run(process.stopping))
        process.spawn(self._puller.run(process.stopping))

    def sums(self) -> Mapping[str, int]:
        """Return what it has done, in readings."""
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
        await super().close()


# Lag: what the stream has and is not done yet.
OF_NOW: Metrics[ForwardService] = (
    Metric(
        "forward_held_messages",
        "Messages pulled and not done.",
        lambda it: it.forwarder.held_messages,
    ),
    Metric(
        "forward_oldest_age_seconds",
        "Age of the oldest reading in them.",
        lambda it: it.oldest_age_s(),
    ),
    Metric(
        "forward_lag_messages",
        "Messages of the stream that are not done.",
        lambda it: it.watch.lag.messages,
    ),
    Metric(
        "forward_lag_bytes",
        "About the bytes of these messages.",
        lambda it: it.watch.lag.size_bytes,
    ),
    Metric(
        "forward_lag_bytes_max",
        "The setting forward_lag_bytes_max; beyond it messages are skipped.",
        lambda it: it.watch.bytes_max,
    ),
    Metric(
        "forward_dlq_readings",
        "Open dead letters of the forwarder.",
        lambda it: it.dead_letters.stats().live,
    ),
    Metric(
        "forward_dlq_bytes",
        "Bytes of the files of its dead letters.",
        lambda it: it.dead_letters.stats().size_bytes,
    ),
)
