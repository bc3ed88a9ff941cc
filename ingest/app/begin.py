"""How `serve` and `up` begin: log, limits, and the state folder, which is theirs alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import geteuid

from ingest.app.annexes import check_settings
from ingest.config.folders import state_dir
from ingest.config.settings import Settings
from ingest.system import logs
from ingest.system.limits import raise_open_files_limit
from ingest.system.state_folder import StateFolder


@contextmanager
def begun(settings: Settings, name: str) -> Iterator[StateFolder]:
    """Give the state folder, locked. Raises StartError if it cannot be used. `name`: of the log.

    Also if a setting needs an annex that is not there.
    """
    check_settings(settings)
    logs.configure(settings.log_level, form=settings.log_format)
    raise_open_files_limit()
    folder = StateFolder.open(state_dir(settings))
    if geteuid() == 0:
        log = logs.get_logger(name)
        log.warning(
            "started_as_root", why="whoever breaks into the service is root: use a user of its own"
        )
    with folder.lock():
        yield folder
