"""A disk that loses what was not fsynced: bytes of the service's files, names in its folders.

`record` runs in the service before all other imports. After each system call that makes something
durable it notes what is durable from then on. `forget` is called after that service was killed. It
changes the folder to a content that a disk may have after a power failure, one of the worst: of the
bytes that were written and not synced any sectors may be there, or none (missing ones read as
zeros); a name that was created, removed or changed without an fsync of its folder may be there or
not. Does not: change PostgreSQL's own files, or undo a truncation of a file.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SECTOR_BYTES = 512
SYNC_S = 0.004  # as long as a disk without a cache that outlives the power takes
FOLDERS = ("journal", "dead-letters")


def record(state: Path, notes: Path, *, unsynced: str = "") -> None:
    """Note from now on which parts of `state` are durable, in the folder `notes`.

    Files whose path has `unsynced` in it are never synced: as in a service with that mistake.
    """
    _Recorder(state, notes, unsynced).put_in()


class _Recorder:
    def __init__(self, state: Path, notes: Path, unsynced: str) -> None:
        self._state = state
        self._unsynced = unsynced
        self._graves = notes / "graves"
        self._graves.mkdir(parents=True, exist_ok=True)
        self._real: dict[str, Callable[..., Any]] = {
            name: getattr(os, name)
            for name in ("fdatasync", "fsync", "unlink", "rename", "replace", "write")
        }
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(notes / "notes", flags, 0o600)

    def put_in(self) -> None:
        os.fdatasync = self._sync("fdatasync")  # type: ignore[assignment]
        os.fsync = self._sync("fsync")  # type: ignore[assignment]
        os.unlink = self._going("unlink")
        os.rename = self._going("rename")
        os.replace = self._going("replace")

    def _note(self, **fields: object) -> None:
        self._real["write"](self._fd, (json.dumps(fields) + "\n").encode())

    def _sync(self, name: str) -> Callable[[int], None]:
        real = self._real[name]

        def sync(fd: int) -> None:
            found = os.fstat(fd)  # bytes that are written later are not part of this sync
            path = os.readlink(f"/proc/self/fd/{fd}")
            time.sleep(SYNC_S)  # so that a kill meets bytes that are not synced yet
            if self._unsynced and self._unsynced in path + "/":
                return
            if not path.startswith(str(self._state)):
                real(fd)
            elif stat.S_ISDIR(found.st_mode):
                names = {each.name: each.inode() for each in os.scandir(path)}
                real(fd)
                self._note(folder=Path(path).name, names=names)
            else:
                real(fd)
                self._note(file=found.st_ino, size=found.st_size)

        return sync

    def _going(self, name: str) -> Callable[..., None]:
        """Keep a link to a file that loses its name: it may be there after the power failure."""
        real = self._real[name]

        def going(path: Any, *rest: Any, **more: Any) -> None:
            if str(path).startswith(str(self._state)):
                grave = self._graves / str(os.stat(path, follow_symlinks=False).st_ino)
                if not grave.exists():
                    os.link(path, grave)
            real(path, *rest, **more)

        return going


class _Durable(NamedTuple):
    names: dict[str, dict[str, int]]  # by folder: name -> inode
    sizes: dict[int, int]  # by inode


def forget(state: Path, notes: Path, rng: random.Random) -> int:
    """Change `state` to a content after a power failure; return how many bytes are lost.

    No process may use the folder. The notes then begin anew with its files.
    """
    durable = _read(notes / "notes")
    gone = 0
    for folder in FOLDERS:
        if (state / folder).is_dir():
            gone += _forget_names(state / folder, durable, notes / "graves", rng)
    shutil.rmtree(notes / "graves", ignore_errors=True)
    _begin_anew(state, notes)
    return gone


def _read(path: Path) -> _Durable:
    names: dict[str, dict[str, int]] = {}
    sizes: dict[int, int] = {}
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in lines:
        note = json.loads(line)
        if "folder" in note:
            names[note["folder"]] = note["names"]
        else:
            sizes[note["file"]] = note["size"]
    return _Durable(names, sizes)


def _forget_names(folder: Path, durable: _Durable, graves: Path, rng: random.Random) -> int:
    kept = durable.names.get(folder.name, {})
    there = {each.name: each.stat().st_ino for each in folder.iterdir() if each.is_file()}
    worst = rng.random() < 0.5  # everything that may be lost is lost
    gone = 0
    for name, inode in sorted(there.items()):
        path = folder / name
        if name == "lock" or name.endswith(".lock"):
            continue
        if kept.get(name) != inode and (worst or rng.random() < 0.5):
            gone += path.stat().st_size
            path.unlink()
            continue
        gone += _forget_content(path, durable.sizes.get(inode, 0), rng, worst=worst)
    for name, inode in sorted(kept.items()):
        grave = graves / str(inode)
        if name not in there and grave.exists() and rng.random() < 0.5:
            shutil.copyfile(grave, folder / name)
            gone += _forget_content(folder / name, durable.sizes.get(inode, 0), rng, worst=worst)
    return gone


def _forget_content(path: Path, synced: int, rng: random.Random, *, worst: bool) -> int:
    """Remove what was not synced: all of it, or a tail and some sectors."""
    data = bytearray(path.read_bytes())
    end = synced if worst or synced >= len(data) else rng.randint(synced, len(data))
    gone = max(0, len(data) - end)
    del data[end:]
    at = synced
    while at < len(data):
        border = min(len(data), (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if rng.random() < 0.5:
            data[at:border] = bytes(border - at)
            gone += border - at
        at = border
    path.write_bytes(data)
    return gone


def _begin_anew(state: Path, notes: Path) -> None:
    """Note all files as durable: they are what the disk has after the power failure."""
    lines: list[dict[str, object]] = []
    for name in FOLDERS:
        folder = state / name
        if not folder.is_dir():
            continue
        names = {}
        for each in folder.iterdir():
            names[each.name] = each.stat().st_ino
            lines.append({"file": each.stat().st_ino, "size": each.stat().st_size})
        lines.append({"folder": name, "names": names})
    (notes / "notes").write_text("".join(json.dumps(each) + "\n" for each in lines))
