"""Listening sockets that a process manager gives at the start, by systemd's protocol.

The manager keeps them. So connections wait in the kernel while the service restarts, and none is
refused.
Does not: accept connections.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from itertools import chain, repeat
from typing import NamedTuple

from ingest.model.errors import StartError

FIRST_FD = 3
ADMIN = "admin"


class GivenSockets(NamedTuple):
    """The sockets of each port. Without one, the port binds an address itself."""

    data: list[socket.socket]
    admin: list[socket.socket]


def given_sockets(environ: MutableMapping[str, str] = os.environ) -> GivenSockets:
    """Read the manager's variables, and remove them so that no child process gets them.

    A socket named `admin` is for the admin port, all others are for the data port. Raises
    StartError for what is no listening TCP socket.
    """
    count, pid, names = (
        environ.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    )
    given = GivenSockets([], [])
    if pid != str(os.getpid()):  # they are meant for another process
        return given
    if not (count.isascii() and count.isdecimal()):
        raise StartError(f"LISTEN_FDS is {count!r}, and must be a number of sockets")
    fds = range(FIRST_FD, FIRST_FD + int(count))
    for fd, name in zip(fds, chain(names.split(":"), repeat(""))):  # noqa: B905  names may lack
        (given.admin if name == ADMIN else given.data).append(_listening(fd, name))
    return given


def _listening(fd: int, name: str) -> socket.socket:
    which = f"the socket {name or 'without a name'} (descriptor {fd}) from the process manager"
    try:
        found = socket.socket(fileno=fd)
        listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise StartError(f"{which} is no socket: {error.strerror}") from error
    is_tcp = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
    if not (is_tcp and listens):
        found.close()
        raise StartError(
            f"{which} is no TCP socket that listens; in the unit write ListenStream=ADDRESS:PORT, "
            "and not Accept=yes"
        )
    found.set_inheritable(False)
    return found
