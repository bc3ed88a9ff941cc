"""Connections that end with their next answer: a few of the oldest ones now and then, or all.

Does not: close a connection whose client may be sending a request, as long as there is time.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from ingest.http.connection import Connection
from ingest.system.clock import monotonic_s

# To close ten thousand connections at once would block the event loop for 0.1 s, and then all of
# these clients might connect again at once.
DROPS_A_ROUND, DROP_PAUSE_S = 20, 0.005
LOOK_S = 0.02  # between two looks whether the last connection has ended


class Retiring:
    """The open connections, those first that are open, or retired, for longest.

    Those between half and three halves of `connection_s_max` old are retired, evenly over the time.
    """

    def __init__(self, connection_s_max: float) -> None:
        self._age_s = connection_s_max
        self._since_s: OrderedDict[Connection, float] = OrderedDict()

    def add(self, handler: Connection, now_s: float) -> None:
        """Add a new connection."""
        self._since_s[handler] = now_s

    def remove(self, handler: Connection) -> None:
        """Remove a connection, if it is there."""
        self._since_s.pop(handler, None)

    def retire_oldest(self, period_s: float) -> None:
        """Retire some; called once in each period."""
        now_s = monotonic_s()
        share = math.ceil(len(self._since_s) * period_s / self._age_s)
        for handler, since_s in list(islice(self._since_s.items(), share)):
            if now_s - since_s < self._age_s / 2:
                return
            handler.retires = True
            self._since_s[handler] = now_s
            self._since_s.move_to_end(handler)

    def retire_all(self) -> None:
        """Retire all that are open."""
        for handler in self._since_s:
            handler.retires = True


async def last_one_gone(
    is_gone: Callable[[], bool],
    idle: OrderedDict[Connection, float],
    *,
    idle_s: float,
    timeout_s: float,
) -> None:
    """Wait for the end of all connections, at most `timeout_s`. From `idle_s` on end idle ones."""
    since_s = monotonic_s()
    while not is_gone() and (waited_s := monotonic_s() - since_s) < timeout_s:
        late = list(islice(idle, DROPS_A_ROUND)) if waited_s >= idle_s else []
        for handler in late:
            del idle[handler]
            handler.leave()
        await asyncio.sleep(DROP_PAUSE_S if late else LOOK_S)
