"""Finds the dead letters for a command: the broker's stream, or the files of the state folder.

Without a broker they are in the files. Else the annex of the roles looks where they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from ingest.app.annexes import annexes, needs
from ingest.config.folders import state_dir
from ingest.config.settings import Settings
from ingest.dead_letters.folder.store import FolderLetterStore
from ingest.dead_letters.store import LetterStore
from ingest.model.errors import StartError
from ingest.system.state_folder import StateFolder, existing

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

    Raises StartError, BrokerAway or BrokerRefused.
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
    if asked_for == FILES or not (asked_for or settings.broker_url or folder.broker.exists()):
        yield files
        return
    of_broker = next(filter(None, (each.letters for each in annexes())), None)
    if of_broker is None:
        raise StartError(
            f"{needs('a look into the stream of a broker', 'roles')}; or choose the files of "
            f"{folder.dead_letters} with --store {FILES}"
        )
    async with of_broker(settings, asked_for, files) as store:
        yield store
