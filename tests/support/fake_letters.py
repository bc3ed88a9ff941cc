"""A dead-letter queue in memory for tests of the writers; some of its calls can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ingest.model.reading import Letter


class FakeLetters:
    """Keeps dead letters in `letters`, each reading once.

    `fault` returns the error of a failing call (None: no call fails); `failing` calls fail;
    `appends` counts all calls. With `lost_answer` a failing call keeps the letters all the same.
    """

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.appends = 0
        self.fault: Callable[[], Exception] | None = None
        self.failing = 0
        self.lost_answer = False

    async def append(self, letters: Sequence[Letter], *, sender: str | None = None) -> None:
        """Keep all letters or none."""
        assert sender is None, "writers are not the receiver"
        self.appends += 1
        await asyncio.sleep(0)  # the real queue waits for a thread here
        fault = self.fault
        if fault is not None and self.failing > 0:
            self.failing -= 1
            if self.lost_answer:
                self._keep(letters)
            raise fault()
        self._keep(letters)

    def _keep(self, letters: Sequence[Letter]) -> None:
        live = {each.reading for each in self.letters}
        self.letters += [each for each in letters if each.reading not in live]

    def rows(self, reason: str) -> int:
        """Return how many letters have this reason."""
        return sum(each.reason == reason for each in self.letters)
