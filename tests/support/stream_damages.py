"""Kinds of damage to the files of a stream, done while its nats-server does not run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ingest.roles.nats.protocol import STREAM, SUBJECT

# Of a record: length (4), sequence (8), time (8), length of the subject (2), subject, .., sum (8).
_HEAD_BYTES = 22
_MIDDLE, _LAST = -2, -1  # blocks

Damage = Callable[["Store"], None]


class Store:
    """The files of the stream below `root`, and what they were at an earlier moment."""

    def __init__(self, root: Path, earlier: dict[str, bytes]) -> None:
        self._root = root
        self.earlier = earlier  # by the name of a block

    @property
    def folder(self) -> Path:
        """The folder of the stream."""
        (found,) = self._root.rglob(f"streams/{STREAM}")
        return found

    @property
    def blocks(self) -> list[Path]:
        """The files with messages, in order."""
        return sorted(self.folder.glob("msgs/*.blk"), key=lambda path: int(path.stem))


def blocks_now(root: Path) -> dict[str, bytes]:
    """Return the content of all blocks."""
    return {path.name: path.read_bytes() for path in Store(root, {}).blocks}


def _records(data: bytes) -> list[int]:
    """Return where the records of a block begin."""
    found, at = [], data.find(SUBJECT.encode())
    while at >= 0:
        found.append(at - _HEAD_BYTES)
        at = data.find(SUBJECT.encode(), at + 1)
    return found


def _written(block: int, offset: int, new: bytes, *, from_end: bool = False) -> Damage:
    """Write bytes into a record in the middle of a block."""

    def do(store: Store) -> None:
        path = store.blocks[block]
        data = bytearray(path.read_bytes())
        begins = _records(bytes(data))
        record = len(begins) // 2
        at = begins[record + from_end] + offset
        assert data[at : at + len(new)] != new
        data[at : at + len(new)] = new
        path.write_bytes(data)

    return do


def _cut(store: Store) -> None:
    path = store.blocks[_LAST]
    os.truncate(path, path.stat().st_size // 2 + 7)


def _emptied(store: Store) -> None:
    os.truncate(store.blocks[_LAST], 0)


def _deleted(block: int) -> Damage:
    return lambda store: store.blocks[block].unlink()


def _swapped(store: Store) -> None:
    path = store.blocks[_LAST]
    old = store.earlier[path.name]
    assert len(old) < path.stat().st_size
    path.write_bytes(old)


def _file(pattern: str, content: bytes | None) -> Damage:
    """Overwrite files, or remove them."""

    def do(store: Store) -> None:
        found = list(store.folder.glob(pattern))
        assert found, pattern
        for path in found:
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)

    return do


def _folder(name: str) -> Damage:
    return lambda store: shutil.rmtree(store.folder / name)


_GARBAGE = b"\x07garbage" * 20


class Kind(NamedTuple):
    """A kind of damage; nats-server was killed before it, or stopped in order."""

    what: str
    killed: bool
    do: Damage


KINDS = (
    Kind("length of a record", False, _written(_LAST, 0, b"ZZZZ")),
    Kind("length of a record, killed", True, _written(_LAST, 0, b"ZZZZ")),
    Kind("length in an earlier block", True, _written(_MIDDLE, 0, b"ZZZZ")),
    Kind("number of a record, killed", True, _written(_LAST, 4, b"\xff")),
    Kind("check sum of a record", False, _written(_LAST, -8, b"12345678", from_end=True)),
    Kind("check sum, killed", True, _written(_LAST, -8, b"12345678", from_end=True)),
    Kind("payload", False, _written(_LAST, 80, b"!")),
    Kind("payload, killed", True, _written(_LAST, 80, b"!")),
    Kind("zeros over records", False, _written(_MIDDLE, 0, bytes(5_000))),
    Kind("zeros over records, killed", True, _written(_LAST, 0, bytes(5_000))),
    Kind("end cut off", False, _cut),
    Kind("end cut off, killed", True, _cut),
    Kind("last block emptied, killed", True, _emptied),
    Kind("last block deleted", False, _deleted(_LAST)),
    Kind("last block deleted, killed", True, _deleted(_LAST)),
    Kind("block in the middle deleted", True, _deleted(_MIDDLE)),
    Kind("last block is an old one, killed", True, _swapped),
    Kind("index gone", False, _file("msgs/index.db", None)),
    Kind("index is garbage", False, _file("msgs/index.db", _GARBAGE)),
    Kind("all blocks gone", False, _folder("msgs")),
    Kind("stream gone", False, _folder("")),
    Kind("consumer gone", False, _folder("obs")),
    Kind("state of the consumer gone", False, _file("obs/*/o.dat", None)),
    Kind("state of the consumer is garbage", True, _file("obs/*/o.dat", _GARBAGE)),
    Kind("settings of the stream gone", False, _file("meta.inf", None)),
    Kind("settings of the stream are garbage", False, _file("meta.inf", _GARBAGE)),
)
