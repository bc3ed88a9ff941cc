"""What a gateway and a writer have in common: their place, their broker, their begin and end.

A role runs alone, with its own settings and admin port. Or `ingest up` leads it: then everything
comes by the control channel, and its status goes there once a second.
Here is also what the settings say of the broker: where it is, what its streams must be, and the
embedded one.
Promises: if the supervisor is gone, the role stops in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ingest.admin.dashboard.tail import Observed
from ingest.app.buffer import check_promise
from ingest.app.health import Health
from ingest.app.post_rules import make_dead_letters
from ingest.app.process import LeftInBroker, Process, note_left
from ingest.buffers.frames import HEAD_BYTES
from ingest.config.declared_tables import make_tables
from ingest.config.named_files import state_dir
from ingest.config.settings import ROW_BYTES_MAX, Settings
from ingest.config.values import forward_names, split_broker_url
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.model.errors import IngestError, NotKept, StartError
from ingest.model.ledger import Ledger
from ingest.model.moments import reading_bytes_max
from ingest.roles.broker_state import BrokerState
from ingest.roles.embedded_broker import PAYLOAD_BYTES_MAX, EmbeddedBroker, find_program
from ingest.roles.letters import StreamBackend
from ingest.roles.nats import streams
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.messages import StreamMessages
from ingest.roles.nats.protocol import FORWARD, STATUS, Address
from ingest.roles.nats.stream_state import PublishedPlaces, state_of
from ingest.roles.nats.streams import WantedStream
from ingest.roles.nats.watch import StreamWatch
from ingest.roles.status import StatusSource, status_message
from ingest.roles.supervisor.child import ControlChannel
from ingest.system.service_manager import Notifier
from ingest.system.state_folder import MarkFile, StateFolder

LAST_LOOK_S_MAX = 5.0


def configured_address(settings: Settings) -> Address | None:
    """Return where the servers of `broker_url` are; None means: the embedded one."""
    if not settings.broker_url:
        return None
    servers, user, password = split_broker_url(settings.broker_url)
    return Address(servers, user, password, ca_file=settings.broker_ca_file)


def configured_monitors(settings: Settings) -> tuple[str, ...]:
    """Return the monitor ports of these servers."""
    return tuple(each.strip() for each in settings.broker_monitor_url.split(",") if each.strip())


def wanted_streams(settings: Settings) -> tuple[WantedStream, WantedStream]:
    """Return what the streams of the readings and of the dead letters must be."""
    return (
        wanted_readings(settings, forwards_of(settings)),
        streams.wanted_letters(settings.stream_replicas, settings.dlq_bytes_max),
    )


def wanted_readings(settings: Settings, forwards: tuple[str, ...]) -> WantedStream:
    """Return what the stream of the readings must be, with these consumers of forwarders."""
    wanted = streams.wanted_readings(settings.stream_replicas, settings.stream_bytes_max, forwards)
    return streams.for_tables(wanted) if settings.tables_file else wanted


def forwards_of(settings: Settings) -> tuple[str, ...]:
    """Return the consumers of all forwarders."""
    return tuple(FORWARD + each for each in forward_names(settings.forwards))


def stream_letters(settings: Settings, connection: BrokerConnection) -> DeadLetterQueue:
    """Return the dead letters of a process that has this connection, in the running event loop."""
    return make_dead_letters(
        settings, StreamBackend(connection), auto_replay=settings.dlq_auto_replay
    )


def make_embedded(settings: Settings, folder: StateFolder) -> EmbeddedBroker:
    """Return the embedded broker, not started. Raises StartError if its disk forgets.

    Call `note_rest` before you stop it: `serve` does not start without that note.
    """
    check_promise([folder.broker], unsafe=settings.broker_unsafe, unless="--broker-unsafe true")
    row_bytes = max([ROW_BYTES_MAX, *map(reading_bytes_max, make_tables(settings).all)])
    largest_block = settings.post_rows_max * row_bytes + HEAD_BYTES
    return EmbeddedBroker(
        folder.broker,
        find_program(),
        payload_bytes_max=max(PAYLOAD_BYTES_MAX, 2 * largest_block),
    )


async def left_in(connection: BrokerConnection) -> LeftInBroker:
    """Ask the broker what is not done. Raises BrokerAway, and BrokerRefused."""
    state = state_of(await streams.look(connection))
    letters = await StreamMessages(connection).find_state()
    messages = 0
    if state is not None:
        messages = state.waiting + state.pending if state.consumer_made else state.messages
    return LeftInBroker(messages, 0 if letters is None else letters.messages)


async def note_rest(folder: StateFolder, connection: BrokerConnection) -> None:
    """Note what the embedded broker holds, before it is stopped. Without an answer no note.

    Nor if it lacks something that was acknowledged: the next `up` has to tell of that.
    """
    with contextlib.suppress(IngestError, OSError, TimeoutError):
        async with asyncio.timeout(LAST_LOOK_S_MAX):
            mark, state = MarkFile(folder.path).read(), state_of(await streams.look(connection))
            is_whole = state and state.made == mark.made and state.last >= mark.acknowledged_to
            if is_whole or not mark.made:
                note_left(folder, await left_in(connection))


class Place(NamedTuple):
    """Where a role runs. `instance` is its name among all processes.

    Without a `channel` it runs alone: then a gateway opens its own socket, and `notifier` reports
    to the process manager.
    """

    settings: Settings
    instance: str
    broker: Address
    monitors: tuple[str, ...]
    database_url: str = ""
    listening: socket.socket | None = None
    channel: ControlChannel | None = None
    notifier: Notifier = Notifier()


def alone(settings: Settings, role: str) -> Place:
    """Return the place of a role that nobody leads. Raises StartError, and ConfigError."""
    broker = configured_address(settings)
    if broker is None:
        raise StartError(
            f"a {role} needs a broker: set broker_url. `ingest up` runs an embedded one, with all "
            "roles"
        )
    if role == "writer" and not settings.database_url:
        raise StartError(
            "a writer needs a database: set database_url. `ingest up` runs an embedded one"
        )
    instance = f"{role}-{socket.gethostname()}-{os.getpid()}"  # in containers each pid is 1
    return Place(
        settings,
        instance,
        broker,
        configured_monitors(settings),
        settings.database_url,
        notifier=Notifier.from_environment(),
    )


async def led(channel: ControlChannel) -> Place:
    """Return the place that the supervisor sends first. Raises StartError if it is gone."""
    told = await channel.receive()
    if told is None:
        raise StartError("the supervisor is gone")
    broker = {name: told["broker"][name] for name in Address._fields}
    broker["servers"] = tuple(broker["servers"])
    fd = told["listen_fd"]
    return Place(
        settings=Settings(**told["settings"]),
        instance=told["instance"],
        broker=Address(**broker),
        monitors=tuple(told["broker"]["monitors"]),
        database_url=told["database_url"],
        listening=None if fd is None else socket.socket(fileno=fd),
        channel=channel,
    )


class Role(ABC):
    """One process of a role: its connection to the broker, its tasks, its signals.

    `own` is what it says of itself. `actions` are what the supervisor may ask for, by name.
    For a role that publishes: `unanswered_s` and `published` of StreamWatch, `refused` and
    `acknowledged_s` of BrokerState.
    """

    health: Health
    own: Observed
    _connected: asyncio.Task[None]

    def __init__(
        self,
        place: Place,
        role: str,
        announce: Callable[[str], None],
        *,
        unanswered_s: Callable[[], float] | None = None,
        published: Callable[[], PublishedPlaces] = PublishedPlaces,
        refused: Callable[[], NotKept | None] = lambda: None,
        acknowledged_s: Callable[[], float] = lambda: -math.inf,
    ) -> None:

        def unkept_s() -> float:
            """Return it also between two tries: the last message was not kept."""
            assert unanswered_s is not None
            return unanswered_s() if refused() is None else math.inf

        self._name = role
        self.place = place
        settings = self.settings = place.settings
        self.process = Process(role, announce, place.notifier)
        self.process.told = self._account
        self.steps_down = False  # another process follows, with the same socket
        self.drained = asyncio.Event()  # the supervisor has said so: all processes stop
        self.ledger = Ledger()
        self.connection = BrokerConnection(lambda: place.broker, role)
        at = "" if place.broker.ours else ",".join(sorted(place.broker.servers))
        self.mark = MarkFile(state_dir(settings), at)
        self.watch = StreamWatch(
            self.connection,
            # A missing consumer of a forwarder is no reason to refuse posts: the purge tells of it.
            wanted_readings(settings, ()),
            monitors=lambda: place.monitors,
            unsafe=settings.broker_unsafe,
            unanswered_s=None if unanswered_s is None else unkept_s,
            published=published,
            mark=self.mark,
        )
        self.broker_state = BrokerState(
            self.watch,
            unanswered_s=unanswered_s or float,
            refused=refused,
            acknowledged_s=acknowledged_s,
        )
        self._cut = asyncio.Event()  # the connection to the broker ends
        self.on_status: Callable[[dict[str, Any]], None] = lambda _status: None  # if it runs alone
        self._status: StatusSource | None = None
        self.actions: Mapping[str, Callable[[dict[str, Any]], object]] = {}

    @abstractmethod
    async def start(self) -> None:
        """Start all parts. Raises StartError."""

    @abstractmethod
    async def stop(self) -> Mapping[str, int]:
        """End in order; return the sums of the last line."""

    @abstractmethod
    async def close(self) -> None:
        """Close everything. Called in any case."""

    async def run(self) -> int:
        """Run until a signal or the supervisor ends it; return the exit code.

        Raises StartError if it cannot begin.
        """
        channel, process = self.place.channel, self.process
        status = self._status = StatusSource(self._name, self.own)
        told = {process.guard(status.run(self._tell, self._cut))}
        if channel is not None:
            told.add(process.guard(self._obey(channel)))
        connected = self._connected = process.guard(self.connection.run(self._cut))
        process.spawn(self.watch.run(process.stopping))

        async def end() -> None:
            await process.wait_tasks()
            self._cut.set()
            await connected
            for task in told:
                task.cancel()
            await asyncio.wait(told)
            await self.close()

        return await process.run(self.start, self.stop, end, in_words=self.health.in_words)

    async def flush(self) -> None:
        """Send what was said last to the broker, and end the connection. Nothing is counted after.

        Who runs alone tells the others its last status.
        """
        if self.place.channel is None and self._status is not None:
            self._tell(self._status.status(final=True))
        self._cut.set()
        await self._connected

    def ready(self) -> None:
        """Tell the supervisor that the role works."""
        if self.place.channel is not None:
            self.place.channel.send({"ready": True})

    def _account(self, sums: Mapping[str, int]) -> None:
        """Give the supervisor the last account."""
        if self.place.channel is not None and self._status is not None:
            self._tell(self._status.status(final=True))
            self.place.channel.send({"drained": sums})

    def _tell(self, status: dict[str, Any]) -> None:
        """Tell the supervisor; or all others, if it runs alone."""
        if self.place.channel is not None:
            self.place.channel.send({"status": status})
        else:
            self.connection.send(STATUS, status_message(self.place.instance, status))
            self.on_status(status)

    async def _obey(self, channel: ControlChannel) -> None:
        """Do what the supervisor says. Without it this process has no work."""
        while (message := await channel.receive()) is not None:
            do = str(message.get("do"))
            if do == "step_down":
                self.steps_down = True
                self.process.stopping.set()
            elif do == "drain":
                # A second word hastens the stop. One that steps down hears this for the first time.
                if self.drained.is_set():
                    self.process.halted.set()
                self.drained.set()
                self.process.stopping.set()
            elif do in self.actions:
                self.actions[do](message)
        self.process.stopping.set()
