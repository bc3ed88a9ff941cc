"""Who may log in to the embedded server: the user that it runs as, and root, by `peer`.

The kernel tells the server who opened its socket. Both users may take each role: they could read
the files anyway. Data of earlier versions, which trusted every connection, is changed too.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from ingest.embedded.programs import DatabaseUser

MAP = "iot_ingest"
ROLE_ALL_SINCE = 16  # the first version in which a map may name `all` roles
_HEAD = "# iot-ingest writes this file at each start of the embedded database.\n"


def write_access_rules(data: Path, user: DatabaseUser, major: int) -> None:
    """Write pg_hba.conf and pg_ident.conf of the data, if they differ. Raises OSError."""
    role = "all" if major >= ROLE_ALL_SINCE else "postgres"
    names = sorted({"root", user.login} - {""})
    mapped = [f'{MAP} "{name}" {role}\n' for name in names]
    # The server cannot look up a user without a name, as containers may have it. Then only the mode
    # of the socket's folder, 0700, keeps others out.
    way = f"peer map={MAP}" if user.login else "trust"
    rules = [f"local {database} all {way}\n" for database in ("all", "replication")]
    for name, lines in (("pg_hba.conf", rules), ("pg_ident.conf", mapped)):
        _replace(data / name, "".join([_HEAD, *lines]), user)


def _replace(path: Path, text: str, user: DatabaseUser) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.read_text(errors="replace") == text:
            return
    # The folder belongs to the database's user, who could put a link there. So root writes a file
    # with a new name, and never through the old one.
    fd, new = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")  # with the mode 0600
    with os.fdopen(fd, "w") as file:
        if user.uid >= 0:
            os.fchown(fd, user.uid, user.gid)
        file.write(text)
        file.flush()
        os.fsync(fd)
    Path(new).replace(path)
