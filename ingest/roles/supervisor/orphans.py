"""Children of a process that was killed: found by a locked file that they have inherited.

A child has the file open until it ends, whatever becomes of its parent. So the lock says whether
one is left, and the kernel's table of open files says which.
Processes of ours see that their parent is gone, and end by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from ingest.model.errors import StartError
from ingest.system.clock import monotonic_s
from ingest.system.files import Lock
from ingest.system.logs import get_logger

PATIENCE_S, KILL_S_MAX = 3.0, 5.0  # what they have, nobody was promised
LOOK_S = 0.05


async def lock_of_children(
    path: Path, signals: Mapping[float, signal.Signals], tell: Callable[[int, signal.Signals], None]
) -> Lock | None:
    """Take the lock that children of an earlier process may still have.

    They are sent `signals`, each after so many seconds. Before each signal `tell` is called with
    the process id. Returns None if one of them does not end. Raises OSError.
    """
    since_s, left = monotonic_s(), dict(signals)
    while (lock := Lock.try_take(path, create=True)) is None:
        waited_s = monotonic_s() - since_s
        for after_s in [each for each in left if each <= waited_s]:
            number = left.pop(after_s)
            for pid in holders(path):
                tell(pid, number)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if waited_s > max(signals) + KILL_S_MAX:
            return None
        await asyncio.sleep(LOOK_S)
    return lock


async def family_lock(path: Path) -> Lock:
    """Take the lock for the children of this process: pass its `fileno` to each of them.

    Those of an earlier process have PATIENCE_S to end, and are killed then. Raises StartError if
    they do not end, or the file cannot be made.
    """

    def tell(pid: int, _number: signal.Signals) -> None:
        get_logger("up").warning("orphan_killed", pid=pid)

    try:
        lock = await lock_of_children(path, {PATIENCE_S: signal.SIGKILL}, tell)
    except OSError as error:
        raise StartError(f"cannot lock {path}: {error.strerror}") from error
    if lock is None:
        raise StartError(
            f"processes of an earlier `ingest up` do not end (pid "
            f"{', '.join(map(str, holders(path))) or 'unknown'}): stop them, or choose another "
            "folder with --state-dir"
        )
    return lock


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
