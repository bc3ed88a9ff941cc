"""How long the journal, the dead letters and the disk last at the present rate.

Promises: `None` for what does not fill. The journal fills only while readings wait: its files also
grow while all is stored in time, until a whole file is removed. So its files are not counted as
what fills the disk; but while readings wait, the disk may be full before the journal is. Dead
letters fill only while entries wait: else their files are removed when space is needed.
"""

from __future__ import annotations

from collections.abc import Callable

from ingest.app.forecast import Forecast
from ingest.config.settings import Settings
from ingest.model.ledger import DeadLetterStats
from ingest.model.metrics import Metric, Metrics
from ingest.model.ports import BufferStats
from ingest.system.clock import monotonic_s

OURS_S_MIN, DISK_S_MIN = 20.0, 120.0  # others write to the disk too, in bursts
WAITS_S_MIN = 10.0  # if the oldest post waits longer, the database does not keep up


class Fill:
    """The forecasts of one service. `journal_bytes` returns the size of the journal now.

    Without it there is no journal; without a folder no disk fills.
    """

    def __init__(
        self,
        settings: Settings,
        journal_bytes: Callable[[], int] | None = None,
        *,
        has_folder: bool = True,
    ) -> None:
        has_journal = settings.buffer == "journal" and journal_bytes is not None
        self.journal_bytes_max = settings.journal_bytes_max if has_journal else 0
        self.dlq_bytes_max = settings.dlq_bytes_max
        self.disk_free_bytes_min = settings.disk_free_bytes_min if has_folder else 0
        # At the last tick; None: there is no folder.
        self.disk_free_bytes: int | None = 0 if has_folder else None
        self._journal_bytes = journal_bytes or int
        self._journal, self._dead_letters = (Forecast(span_s_min=OURS_S_MIN) for _ in range(2))
        self._disk = Forecast(span_s_min=DISK_S_MIN)
        self._dlq_bytes = 0
        self._left_bytes = 0  # on the disk

    def tick(
        self, buffer: BufferStats, letters: DeadLetterStats, disk_free_bytes: int | None
    ) -> None:
        """Take samples; cheap."""
        now_s, journal_bytes = monotonic_s(), self._journal_bytes()
        oldest_s = buffer.oldest_received_s
        if oldest_s is None or now_s - oldest_s < WAITS_S_MIN:
            self._journal.restart()
        else:
            self._journal.sample(now_s, journal_bytes)
        self._dlq_bytes = letters.size_bytes
        if letters.live:
            self._dead_letters.sample(now_s, letters.size_bytes)
        else:
            self._dead_letters.restart()
        self.disk_free_bytes = disk_free_bytes
        if disk_free_bytes is not None:
            self._left_bytes = disk_free_bytes - self.disk_free_bytes_min
            self._disk.sample(now_s, -disk_free_bytes - journal_bytes)

    def full_in_s(self) -> dict[str, int | None]:
        """Return the seconds that are left for each, or None.

        For dead letters until they are half full, when invalid items are refused, and beyond that
        until they are full.
        """
        journal_bytes, left = self._journal_bytes(), self._left_bytes
        half = 2 if self._dlq_bytes < self.dlq_bytes_max // 2 else 1
        by_journal = self._journal.full_in_s(journal_bytes + left) if left else None
        disk = (self._disk.full_in_s(-self.disk_free_bytes_min - journal_bytes), by_journal)
        return {
            "journal": self._journal.full_in_s(self.journal_bytes_max),
            "dead_letters": self._dead_letters.full_in_s(self.dlq_bytes_max // half),
            "disk": min((each for each in disk if each is not None), default=None),
        }


METRICS: Metrics[Fill] = (
    Metric(
        "dlq_bytes_max",
        "Limit of dlq_bytes (dlq_bytes_max).",
        lambda it: it.dlq_bytes_max,
        of_all=True,
    ),
    Metric(
        "journal_bytes_max",
        "Limit of journal_bytes (journal_bytes_max); 0 without a journal.",
        lambda it: it.journal_bytes_max,
        of_all=True,
    ),
    Metric(
        "disk_free_bytes",
        "Free space of the state folder, at the last check.",
        lambda it: it.disk_free_bytes,
        of_all=True,
    ),
    Metric(
        "disk_free_bytes_min",
        "With less free space posts are refused (disk_free_bytes_min).",
        lambda it: None if it.disk_free_bytes is None else it.disk_free_bytes_min,
        of_all=True,
    ),
)
