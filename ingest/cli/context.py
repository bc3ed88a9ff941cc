"""How a command finds the running service, the database, and the dead letters.

The service is asked on its admin port with http.client, which ignores the proxies of the
environment: they are not for the loopback. It blocks, at most for the time that the caller allows.
The database is the configured one, else that of the service that runs on the state folder, else
the embedded one, which is started for the time of the command. A service or a command that starts
meanwhile uses the same server, and the service starts its own one afterwards.
The dead letters are in the files of the state folder, if there is no broker. Else the annex of the
roles looks where they are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection, HTTPException
from typing import Any

from ingest.app.annexes import annexes, needs
from ingest.config.named_files import state_dir
from ingest.config.settings import Settings, split_address
from ingest.dead_letters.folder.store import FolderLetterStore
from ingest.dead_letters.store import LetterStore
from ingest.model.errors import StartError
from ingest.system.state_folder import ServiceInfo, StateFolder, existing, running_service

ANSWER_S_MAX = 10.0
FILES, STREAM = "files", "stream"
STORES = (FILES, STREAM)
OF_BROKER = (
    "note: a gateway, a writer or `ingest up` has used {} with a broker elsewhere. Its dead "
    "letters are in the stream of that broker: give --broker-url, with the user admin"
)
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  bound to all interfaces: ask on the loopback


def ask(settings: Settings, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Send one request to the service of the state folder; return its JSON answer.

    Raises StartError if no service runs there or it does not answer.
    """
    return ask_service(service_of(settings), method, path, body)[1]


def service_of(settings: Settings) -> ServiceInfo:
    """Return what the service of the state folder has published. Raises StartError if none runs."""
    folder = existing(state_dir(settings))
    service = running_service(folder)
    if service is None:
        raise StartError(
            f"no service runs on the state folder {folder} (use --state-dir for another one)"
        )
    return service


def ask_service(
    service: ServiceInfo,
    method: str,
    path: str,
    body: Any = None,
    *,
    within_s: float = ANSWER_S_MAX,
) -> tuple[int, dict[str, Any]]:
    """Send one request to this service; return the status and the JSON of its answer.

    Raises StartError if it does not answer. `within_s` limits each step, not their sum.
    """
    host, port = split_address(service.admin_listen)
    connection = HTTPConnection(_ANY.get(host, host), port, timeout=within_s)
    try:
        connection.request(
            method,
            path,
            body=None if body is None else json.dumps(body),
            headers={
                "Authorization": f"Bearer {service.token}",
                "Content-Type": "application/json",
            },
        )
        response = connection.getresponse()
        text = response.read()
    except (OSError, HTTPException) as error:
        raise StartError(
            f"the service (pid {service.pid}) does not answer at {service.admin_listen}: "
            f"{str(error) or type(error).__name__}"
        ) from error
    finally:
        connection.close()
    return response.status, _answer(response.status, text)


def _answer(status: int, text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text) if text else {}
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise StartError(f"the service answered {status}, and the answer is not JSON")
    if status >= 400 and "state" not in answer:  # /readyz has the state in its 503, too
        raise StartError(f"the service refused: {status} {answer.get('detail') or ''}".rstrip())
    return answer


def known_url(settings: Settings) -> str | None:
    """Return the URL of the configured database or of the running service, else None."""
    if settings.database_url:
        return settings.database_url
    service = running_service(state_dir(settings))
    return service.database_url if service is not None else None


@asynccontextmanager
async def database(settings: Settings, *, may_make: bool = False) -> AsyncIterator[str]:
    """Yield the database's URL. An embedded database that this starts is stopped afterwards.

    Raises StartError if there is no database. With `may_make` it makes the state folder and the
    embedded database instead.
    """
    if url := known_url(settings):
        yield url
        return
    from ingest.app.process import refuse_other_database  # noqa: PLC0415
    from ingest.embedded.postgres import EmbeddedPostgres  # noqa: PLC0415
    from ingest.system import logs  # noqa: PLC0415

    logs.configure("error")
    path = state_dir(settings)
    if settings.broker_url and not may_make and not (path / "postgres" / "data").exists():
        raise StartError(
            "this needs the database of the writers: give --database-url (or INGEST_DATABASE_URL) "
            "as they have it"
        )
    refuse_other_database(StateFolder(path), settings)
    if not may_make and not (StateFolder(existing(path)).postgres / "data").exists():
        raise StartError(
            f"there is no database in the state folder {path} yet: `ingest serve` makes one. "
            "To use another one, set --state-dir or INGEST_DATABASE_URL"
        )
    server = EmbeddedPostgres(StateFolder.open(path).postgres)
    await server.start()
    try:
        yield server.url
    finally:
        await server.stop()


@asynccontextmanager
async def owners_database(settings: Settings) -> AsyncIterator[str]:
    """Yield the URL with the role that owns the table; without one, that of `database`.

    So a job of its own needs no other URL, and no state folder.
    """
    from ingest.config.database_url import RereadUrl  # noqa: PLC0415

    if settings.housekeeping_url:
        yield RereadUrl(settings, "housekeeping_url")()
        return
    async with database(settings) as found:
        yield found


@asynccontextmanager
async def letter_store(
    settings: Settings, asked_for: str | None, *, own: tuple[str, str] | None = None
) -> AsyncIterator[LetterStore]:
    """Yield the dead letters. An embedded broker that this starts is stopped afterwards.

    Those that a process has for itself are always in files. `own` names it: its command (`forward`,
    `mqtt`), and its name.
    Raises StartError, BrokerAway or BrokerRefused.
    """
    path = state_dir(settings)
    folder = StateFolder(path if settings.broker_url else existing(path))
    if own is not None:
        letters = folder.of_process(*own).dead_letters
        if not letters.exists():
            raise StartError(
                f"there is no folder {letters}: no `ingest {own[0]}` of this name has run here"
            )
        yield FolderLetterStore(letters)
        return
    files = FolderLetterStore(folder.dead_letters)
    # Only who works with a broker elsewhere has a mark of this name: see MarkFile.
    if not (asked_for or settings.broker_url) and any(folder.path.glob("stream-mark-*")):
        print(OF_BROKER.format(folder.path), file=sys.stderr)
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
