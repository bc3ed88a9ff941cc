"""The broker as the commands see it: found, connected as the admin, checked for `ingest doctor`.

The order: the configured servers, the embedded broker that a process runs in the state folder, and
the same one started for the time of the command.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from ingest.cli.context import FILES, STREAM
from ingest.cli.doctor.checks import FAIL, WARN, Check, judged
from ingest.config.named_files import state_dir
from ingest.config.settings import Settings
from ingest.dead_letters.store import LetterStore, Selection, first
from ingest.model.errors import IngestError, StartError
from ingest.roles.embedded_broker import running_broker
from ingest.roles.letters import StreamLetterStore
from ingest.roles.nats import streams, watch
from ingest.roles.nats.connection import BrokerConnection, connected
from ingest.roles.nats.messages import StreamMessages
from ingest.roles.nats.protocol import DEAD_LETTERS, ROLES
from ingest.roles.role import (
    configured_address,
    configured_monitors,
    make_embedded,
    note_rest,
    wanted_streams,
)
from ingest.system import logs
from ingest.system.state_folder import StateFolder, existing, running_service

_ROLE = "admin"


class Reached(NamedTuple):
    """A broker, and the monitor ports of its servers."""

    connection: BrokerConnection
    monitors: tuple[str, ...]


@asynccontextmanager
async def broker(settings: Settings, *, may_make: bool = False) -> AsyncIterator[Reached]:
    """Yield the broker. Raises StartError and BrokerAway if there is none.

    With `may_make` it makes the state folder and the embedded broker instead.
    """
    logs.configure("critical")  # what fails is an error of the command
    if (address := configured_address(settings)) is not None:
        if address.user in ROLES.keys() - {_ROLE}:
            raise StartError(f"the user {address.user} of broker_url may not do this: use {_ROLE}")
        async with connected(address, _ROLE) as connection:
            yield Reached(connection, configured_monitors(settings))
        return
    path = state_dir(settings)
    if not may_make and not StateFolder(existing(path)).broker.exists():
        raise StartError(
            f"there is no broker in the state folder {path} yet: `ingest stream apply` makes one. "
            "To use another one, set --state-dir or INGEST_BROKER_URL"
        )
    folder = StateFolder.open(path)
    if (running := running_broker(folder.broker)) is not None:
        async with connected(running.address(_ROLE), _ROLE) as connection:
            yield Reached(connection, (running.endpoints.monitor_url,))
        return
    server = make_embedded(settings, folder)
    await server.start()
    try:
        published = server.published
        async with connected(published.address(_ROLE), _ROLE) as connection:
            try:
                yield Reached(connection, (published.endpoints.monitor_url,))
            finally:
                await note_rest(folder, connection)
    finally:
        await server.stop()


@asynccontextmanager
async def letters_of_broker(
    settings: Settings, asked_for: str | None, files: LetterStore
) -> AsyncIterator[LetterStore]:
    """Yield the dead letters of the broker, or `files`; see letter_store.

    The order: what `asked_for` says; the configured servers, or an embedded broker that a process
    runs in the state folder; the files, if a service runs without a broker; a stream that a process
    has left, if it holds dead letters; the files. If there are letters in the files and in the
    stream, it tells the user, unless `asked_for` chooses one of them. An embedded broker that this
    starts is stopped afterwards.
    """
    folder = StateFolder(state_dir(settings))
    in_use = bool(settings.broker_url) or running_broker(folder.broker) is not None
    streams_left = (folder.broker / "store" / "jetstream").glob(f"*/streams/{DEAD_LETTERS}")
    may_be_left = any(streams_left) and running_service(folder.path) is None
    if asked_for is None and not in_use and not may_be_left:
        yield files
        return
    async with broker(settings) as reached:
        messages = StreamMessages(reached.connection)
        state = await messages.find_state()
        if asked_for == STREAM or settings.broker_url:
            await messages.state()  # its error says what to do if there is no stream
        has_letters = state is not None and state.messages > 0
        if asked_for is None and not has_letters and not in_use:
            state = None
        if state is not None and asked_for is None and await first(files, Selection(), 1, 1):
            print(
                f"note: there are dead letters in the files of {folder.dead_letters}, too. This is "
                f"about those of the broker; --store {FILES} is about the others",
                file=sys.stderr,
            )
        yield files if state is None else StreamLetterStore(messages)


async def broker_checks(settings: Settings) -> list[Check]:
    """Check the configured broker, or the one that runs in the state folder. None: no findings."""
    folder = StateFolder(state_dir(settings))
    try:
        if not settings.broker_url and running_broker(folder.broker) is None:
            return []
        return await _checks(settings)
    except IngestError as error:
        return [Check("broker", FAIL, str(error))]


async def _checks(settings: Settings) -> list[Check]:
    wanted = wanted_streams(settings)
    async with broker(settings) as reached:
        found = [await streams.look(reached.connection, each.names) for each in wanted]
        letters = await StreamMessages(reached.connection).find_state()
    altered, degraded = (
        [str(fault) for there, each in zip(found, wanted, strict=True) for fault in of(there, each)]
        for of in (streams.altered, streams.degraded)
    )
    if not settings.broker_unsafe:
        altered += map(str, watch.monitor_faults(reached.monitors))
    kind = "configured" if settings.broker_url else "embedded"
    waiting = 0 if letters is None else letters.messages
    return [
        judged(
            "broker",
            f"answers ({kind}); its streams are as they must be",
            (altered, FAIL, f"{'; '.join(altered)}. See `ingest stream check`"),
            (degraded, WARN, "; ".join(degraded)),
        ),
        judged(
            "dead letters of the broker",
            "none",
            (waiting, WARN, f"{waiting:,} waiting; see `ingest dlq list`"),
        ),
    ]
