"""The nats-server program: where it is.

Does not: look at its version. What it can do is seen by the settings that it reports.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from ingest.config.values import full_path
from ingest.model.errors import ConfigError, StartError

NAME = "nats-server"


def find_program(named: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the program: `named`, that of the wheel, or the one on the PATH.

    Raises StartError, with what to install or to set.
    """
    if named:
        try:
            program = full_path(named)
        except ConfigError as error:
            raise StartError(f"setting broker_bin: {error}") from None
        if not _runs(program):
            raise StartError(f"setting broker_bin: {named} is no program")
        return program
    ours = Path(sysconfig.get_path("scripts")) / NAME
    if _runs(ours):
        return ours
    if on_path := shutil.which(NAME, path=environ.get("PATH")):
        return Path(on_path).resolve()
    raise StartError(
        "no nats-server found: install iot-ingest[roles], or set broker_bin to the program, or set "
        "broker_url to running servers"
    )


def _runs(program: Path) -> bool:
    return program.is_file() and os.access(program, os.X_OK)
