"""The demo's state folder: where it lies, and that nothing of it is left behind.

Promises: removes a folder only if a demo has made it, and while no service runs on it. Does not:
remove anything of a folder that was there before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from loadgen.proof.local_service import find, full_path, state_folder

MARK = "made-by-the-demo"  # a file in a folder that a demo has made; without it nothing is removed


class DemoFolder:
    """The state folder of a demo. `keep`: it stays, also at the end of later demos."""

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.path = path
        self._keep = keep
        self._has_run = False

    @property
    def is_temporary(self) -> bool:
        """Whether it is removed at the end."""
        return (self.path / MARK).is_file()

    def make(self) -> None:
        """Make it, if it is not there. Raises OSError."""
        if not self.path.exists():
            self._has_run = True  # nobody else uses what we make
            self.path.mkdir(parents=True)
            self.path.chmod(0o755)  # so that the database's user can enter, if we are root
            (self.path / MARK).touch()
        if self._keep:
            (self.path / MARK).unlink(missing_ok=True)

    def has_run(self) -> None:
        """Note that our service had the folder for itself: another demo may be using it else."""
        self._has_run = True

    def remove(self) -> bool:
        """Remove it, if a demo has made it and no service uses it; return whether it is gone."""
        if not (self._has_run and self.is_temporary) or find(self.path) is not None:
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        return not self.path.exists()


def usual_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the place beside the folder that the service would use here. Raises NoHome."""
    beside = state_folder(None, environ)
    return full_path(beside.with_name(f"{beside.name}-demo"))
