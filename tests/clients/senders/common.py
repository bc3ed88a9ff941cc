"""What the programs of the clients share: the points, the faults' places, and what was told.

A program gets a JSON document on its command line, and prints one JSON object a line: `kept` (the
indexes of points that the client was told are written), `said` (the text of an error), and `gate`.
At a gate it waits for a line on its input: a fault begins there.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.clients.points import Point

BATCH = 100
PACE_S = 0.02  # between two batches, so that the faults come in the middle
AGAIN_S = 0.3  # before a batch that failed is sent again, if the client does not do it
WRONG = "iot_wrong-token-wrong-token-wrong-token-wrong-to"


class Order(NamedTuple):
    """What a program has to do. `file` has the points as JSON.

    If it is one point, the token is wrong: the program sends it once, and shows what it is told.
    """

    url: str
    token: str
    measurement: str
    file: str
    gates: tuple[int, ...]

    def read(self) -> list[Point]:
        """Return the points."""
        return [Point(*each) for each in json.loads(Path(self.file).read_text())]

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Return host and port of the URL."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)


def order() -> Order:
    """Return the order of the command line."""
    given = json.loads(sys.argv[1])
    return Order(**{**given, "gates": tuple(given["gates"])})


_lock = threading.Lock()


def tell(**what: object) -> None:
    """Print one object."""
    with _lock:
        print(json.dumps(what), flush=True)


def said(error: object) -> None:
    """Tell the text of an error."""
    tell(said=f"{type(error).__name__}: {error}"[:2000])


def batches(points: Sequence[Point], gates: Sequence[int]) -> Iterator[range]:
    """Yield the indexes of one batch after another, slowly; stop at the gates."""
    open_gates = list(gates)
    for first in range(0, len(points), BATCH):
        if open_gates and first >= open_gates[0]:
            tell(gate=open_gates.pop(0))
            sys.stdin.readline()
        yield range(first, min(first + BATCH, len(points)))
        time.sleep(PACE_S)


def write_each(order: Order, write: Callable[[list[Point]], object]) -> None:
    """Write all points with a client that does not try again: a batch that failed is written again.

    `write` raises an exception if the client was not told that the points are written.
    """
    points = order.read()
    for batch in batches(points, order.gates):
        while True:
            try:
                write([points[at] for at in batch])
            except Exception as error:
                said(error)
                if len(points) == 1:
                    return
                time.sleep(AGAIN_S)
            else:
                tell(kept=list(batch))
                break


class Told:
    """What a client that works in the background was told, from its callbacks.

    A batch comes back as the bytes of its lines; the time at the end of a line names its point.
    """

    def __init__(self, points: Sequence[Point], us: int) -> None:
        self._at = {point.ts_us: at for at, point in enumerate(points)}
        self._us = us
        self._news = threading.Condition()
        self._open = set(range(len(points)))
        self._failed: set[int] = set()

    def indexes(self, data: bytes | str) -> list[int]:
        """Return the indexes of the points in a body."""
        text = data.decode() if isinstance(data, bytes) else data
        return [self._at[int(line.rpartition(" ")[2]) // self._us] for line in text.splitlines()]

    def kept(self, data: bytes | str) -> None:
        """Note that the points of a body are written."""
        found = self.indexes(data)
        tell(kept=found)
        with self._news:
            self._open.difference_update(found)
            self._news.notify_all()

    def failed(self, data: bytes | str, error: object) -> None:
        """Note that the client has given up the points of a body."""
        said(error)
        with self._news:
            self._failed.update(self.indexes(data))
            self._news.notify_all()

    def wait(self) -> set[int]:
        """Wait until something has failed or all is written; return what has failed."""
        with self._news:
            self._news.wait_for(lambda: self._failed or not self._open)
            failed, self._failed = self._failed, set()
            return failed


def write_in_background(
    order: Order, told: Told, points: Sequence[Point], write: Callable[[list[Point]], object]
) -> None:
    """Give all points to a client that batches and tries again by itself.

    What it has given up is given to it again.
    """
    for batch in batches(points, order.gates):
        write([points[at] for at in batch])
    while failed := told.wait():
        if len(points) == 1:
            return
        write([points[at] for at in sorted(failed)])
