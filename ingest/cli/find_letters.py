"""Finds the dead letters for a command: the broker's stream, or the files of the state folder.

The order: what `--store` says; the configured servers, or an embedded broker that a process runs in
the state folder; the files, if a service runs without a broker; a stream that a process has left,
if it holds dead letters; the files.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from ingest.broker.roles import DEAD_LETTERS
from ingest.config.folders import state_dir
from ingest.config.settings import Settings
from ingest.dead_letters.folder.store import FolderLetterStore
from ingest.dead_letters.store import LetterStore, Selection, first
from ingest.model.errors import StartError
from ingest.system.state_folder import StateFolder, existing, running_service

FILES, STREAM = "files", "stream"
STORES = (FILES, STREAM)


class OwnLetters(NamedTuple):
    """Whose dead letters: the command of the process (`forward`, `mqtt`), and its name."""

    command: str
    name: str


@asynccontextmanager
async def letter_store(
    settings: Settings, asked_for: str | None, *, own: OwnLetters | None = None
) -> AsyncIterator[LetterStore]:
    """Yield the dead letters. An embedded broker that this starts is stopped afterwards.

    Those that a process has for itself (`own`) are always in files.

    Raises StartError, BrokerAway or BrokerRefused. If there are letters in the files and in the
    stream, it tells the user, unless `asked_for` chooses one of them.
    """
    path = state_dir(settings)
    if not settings.broker_url:
        existing(path)
    folder = StateFolder(path)
    if own is not None:
        letters = folder.of_process(own.command, own.name).dead_letters
        if not letters.exists():
            raise StartError(
                f"there is no folder {letters}: no `ingest {own.command}` of this name has run here"
            )
        yield FolderLetterStore(letters)
        return
    files = FolderLetterStore(folder.dead_letters)
    in_use = _is_broker_in_use(settings, folder)
    may_be_left = _has_left_stream(folder.broker) and running_service(path) is None
    if asked_for == FILES or (asked_for is None and not in_use and not may_be_left):
        yield files
        return
    from ingest.broker.messages import StreamMessages  # noqa: PLC0415
    from ingest.cli.find_broker import broker  # noqa: PLC0415
    from ingest.dead_letters.stream.store import StreamLetterStore  # noqa: PLC0415

    async with broker(settings) as reached:
        messages = StreamMessages(reached.connection, DEAD_LETTERS)
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


def _is_broker_in_use(settings: Settings, folder: StateFolder) -> bool:
    """Whether somebody uses the broker now, so new dead letters go there."""
    if settings.broker_url:
        return True
    if not (folder.broker / "server.json").exists():
        return False
    from ingest.embedded.broker import running_broker  # noqa: PLC0415

    return running_broker(folder.broker) is not None


def _has_left_stream(broker: Path) -> bool:
    """Whether the store of an embedded broker has the stream of the dead letters."""
    return any((broker / "store" / "jetstream").glob(f"*/streams/{DEAD_LETTERS}"))
