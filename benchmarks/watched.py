"""Watches a program until it ends by itself: how long it took, its CPU, its greatest memory."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Self

from benchmarks.processes import Broken, Child

PAUSE_S = 0.05


class Watched:
    """A program that was just started: `with Watched(child) as run:`. The end stops it."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.ended = False
        self.took_s = self.cpu_s = self.rss_peak_mib = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.child.stop()
        self._thread.join()

    def _watch(self) -> None:
        began_s = time.monotonic()
        while self.child.running:
            with suppress(Broken, OSError):  # it may have just ended
                self.cpu_s = self.child.cpu_s() or self.cpu_s
                self.rss_peak_mib = self.child.rss_peak_mib()
            time.sleep(PAUSE_S)
        self.took_s = time.monotonic() - began_s
        self.ended = True
