"""The demo's state folder: where it lies, and whether it is removed at the end.

Promises: removes a folder only if this demo has made it, and while no service runs on it.
Does not: remove anything of a folder that was there before, such as that of a demo that was killed:
somebody may use it by now.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from loadgen.proof.local_service import find, full_path, state_folder


class DemoFolder:
    """The state folder of a demo. `keep`: it stays at the end."""

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.path = path
        self._keep = keep
        self._made = False

    @property
    def is_temporary(self) -> bool:
        """Whether it is removed at the end."""
        return self._made and not self._keep

    @property
    def why_kept(self) -> str:
        """Why it is not removed, for people."""
        return "kept" if self._made else "kept: it was there before"

    def make(self) -> None:
        """Make it, if it is not there. Raises OSError."""
        if not self.path.exists():
            self.path.mkdir(parents=True)
            self._made = True
            self.path.chmod(0o755)  # so that the database's user can enter, if we are root

    def remove(self) -> bool:
        """Remove it, if this demo has made it and no service uses it; return whether it is gone."""
        if not self.is_temporary or find(self.path) is not None:
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        return not self.path.exists()


def usual_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the place beside the folder that the service would use here. Raises NoHome."""
    beside = state_folder(None, environ)
    return full_path(beside.with_name(f"{beside.name}-demo"))
