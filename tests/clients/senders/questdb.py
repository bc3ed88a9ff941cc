"""`questdb` over HTTP. The token is the password of Basic, or, with `bearer`, a Bearer token.

The client tries a batch again for ten seconds; then it raises an exception and forgets the batch.
"""

from __future__ import annotations

import sys

from questdb import Protocol, Sender, TimestampMicros

from tests.clients.points import Point
from tests.clients.senders.common import order, write_each


def main() -> None:
    """Write what was ordered. A sender that has failed is replaced by a new one."""
    ordered = order()
    host, port = ordered.host_and_port
    login = {"username": "any", "password": ordered.token}
    if "bearer" in sys.argv:
        login = {"token": ordered.token}

    def write(points: list[Point]) -> None:
        with Sender(Protocol.Http, host, port, auto_flush=False, **login) as sender:
            for point in points:
                sender.row(
                    ordered.measurement,
                    symbols={"device": point.device, "place": point.place},
                    columns={point.field: point.value},
                    at=TimestampMicros(point.ts_us),
                )
            sender.flush()

    write_each(ordered, write)


if __name__ == "__main__":
    main()
