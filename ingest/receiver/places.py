"""How many connections one sender uses at once.

A connection counts for the sender of its last post. So one that has not posted counts for nobody:
the limits of the port hold for it.
Promises: no sender has more than it may; the memory is bounded by the open connections.
"""

from __future__ import annotations

from ingest.http.request import NO_PLACE, Sender
from ingest.model.errors import Refused

AGAIN_S = 5.0


class Places:
    """The connections of all senders of this process."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}

    def take(self, connection: Sender, sender: str, connections_max: int) -> None:
        """Count a connection for the sender of a post. Raises Refused if it has too many.

        `connections_max` 0: it may have any number.
        """
        place = connection.place
        if place.sender == sender:
            return
        place.left()
        connection.place = NO_PLACE
        if connection.valve.transport is None:
            return  # it is gone: nobody would give the place back
        used = self.used.get(sender, 0)
        if connections_max and used >= connections_max:
            raise Refused(
                "too_many_connections",
                f"this sender uses {used} connections, and may not use more; nothing is kept",
                retry_after_s=AGAIN_S,
            )
        self.used[sender] = used + 1
        connection.place = _Place(self, sender)


class _Place:
    """What a connection holds that counts for a sender."""

    __slots__ = ("_places", "sender")

    def __init__(self, places: Places, sender: str) -> None:
        self._places = places
        self.sender = sender

    def left(self) -> None:
        """Give the place back; once."""
        used = self._places.used
        used[self.sender] -= 1
        if not used[self.sender]:
            del used[self.sender]
