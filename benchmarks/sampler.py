"""Reads a number many times a second, in a thread beside the measurement."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

SAMPLES_PER_S = 20


class Sample(NamedTuple):
    """A number, and when it was read by time.monotonic."""

    at_s: float
    value: float


@contextmanager
def sampled(read: Callable[[], float]) -> Iterator[list[Sample]]:
    """Give a list that grows by SAMPLES_PER_S samples a second until the end; at least one."""
    samples: list[Sample] = []
    over = threading.Event()

    def watch() -> None:
        while True:
            value = read()
            samples.append(Sample(time.monotonic(), value))
            if over.wait(1 / SAMPLES_PER_S):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()
