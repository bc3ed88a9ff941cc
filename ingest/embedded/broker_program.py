"""The nats-server program: where it is.

Does not: look at its version. What it can do is seen by the settings that it reports.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from ingest.model.errors import StartError

NAME = "nats-server"


def find_program(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the program: that of the wheel, or the one on the PATH.

    Raises StartError, with what to install or to set.
    """
    ours = Path(sysconfig.get_path("scripts")) / NAME
    if _runs(ours):
        return ours
    if on_path := shutil.which(NAME, path=environ.get("PATH")):
        return Path(on_path).resolve()
    raise StartError(
        "no nats-server found: install iot-ingest[roles], or set broker_url to running servers"
    )


def _runs(program: Path) -> bool:
    return program.is_file() and os.access(program, os.X_OK)
