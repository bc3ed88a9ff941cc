"""Children of a process that was killed: found by a locked file that they have inherited.

A child has the file open until it ends, whatever becomes of its parent. So the lock says whether
one is left, and the kernel's table of open files says which.
Does not: ask them to end. They see that their parent is gone, and end by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from ingest.model.errors import StartError
from ingest.system.clock import monotonic_s
from ingest.system.files import Lock
from ingest.system.logs import get_logger

PATIENCE_S, KILL_S_MAX = 3.0, 5.0  # what they have, nobody was promised
LOOK_S = 0.05


async def family_lock(path: Path) -> Lock:
    """Take the lock for the children of this process: pass its `fileno` to each of them.

    Those of an earlier process have PATIENCE_S to end, and are killed then. Raises StartError if
    they do not end, or the file cannot be made.
    """
    since_s = monotonic_s()
    killed = False
    while True:
        try:
            lock = Lock.try_take(path, create=True)
        except OSError as error:
            raise StartError(f"cannot lock {path}: {error.strerror}") from error
        if lock is not None:
            return lock
        waited_s = monotonic_s() - since_s
        if waited_s > PATIENCE_S and not killed:
            killed = True
            for pid in holders(path):
                get_logger("up").warning("orphan_killed", pid=pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if waited_s > PATIENCE_S + KILL_S_MAX:
            raise StartError(
                f"processes of an earlier `ingest up` do not end (pid "
                f"{', '.join(map(str, holders(path))) or 'unknown'}): stop them, or choose another "
                "folder with --state-dir"
            )
        await asyncio.sleep(LOOK_S)


def holders(path: Path) -> list[int]:
    """Return the other processes of this user that have the file open."""
    real = os.path.realpath(path)
    folders = Path("/proc").glob("[0-9]*/fd")
    pids = [int(each.parent.name) for each in folders if _has_open(each, real)]
    return [each for each in pids if each != os.getpid()]


def _has_open(folder: Path, real: str) -> bool:
    with contextlib.suppress(OSError):  # the process has ended, or is somebody else's
        for each in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has been closed
                if os.readlink(each) == real:
                    return True
    return False
