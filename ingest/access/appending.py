"""Appends lines to a file of tokens. Blocks; for commands."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from ingest.access.entries import Entries
from ingest.model.errors import ConfigError
from ingest.system.files import AppendFile, other_writers, sync_folder


def read_entries(path: Path) -> Entries:
    """Return the tokens of a file, none if it is missing.

    Raises ConfigError for a wrong line, or if others may write to it: no service reads it then.
    """
    entries = Entries()
    try:
        if others := other_writers(path, path.stat()):
            raise ValueError(f"{others}; look at its lines first")
        for _ in entries.read(path.read_bytes()):
            pass
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise ConfigError(f"the file of tokens {path} cannot be used: {error}") from error
    return entries


def append_lines(path: Path, lines: bytes) -> None:
    """Append whole lines; return when they are on the disk. Raises OSError, nothing is appended.

    Several commands may do so at the same time. A new file is readable for the owner of its folder
    only.
    """
    while True:
        is_new = not path.exists()
        with closing(AppendFile.open(path, create=False)) as file:
            if not file.lock():  # another command has just appended
                continue
            if is_new and os.geteuid() == 0:  # the service may run as another user
                owner = path.parent.stat()
                # Its owner may have put a link in the place of the file meanwhile.
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
            ends_line = path.read_bytes()[-1:] in (b"", b"\n")
            file.append(lines if ends_line else b"\n" + lines)
            sync_folder(path.parent)
            return
