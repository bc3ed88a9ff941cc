"""The dead letters of a process: in files of its folder, or in the broker's stream INGEST_DLQ."""

from __future__ import annotations

from pathlib import Path

from ingest.app.post_rules import make_rules
from ingest.config.settings import Settings
from ingest.dead_letters.folder.backend import FolderBackend, segment_bytes
from ingest.dead_letters.queue import DeadLetterQueue, LetterBackend


def make_dead_letters(
    settings: Settings, backend: LetterBackend, *, auto_replay: bool
) -> DeadLetterQueue:
    """Return the dead letters of a process, in the running event loop."""
    return DeadLetterQueue(
        backend,
        bytes_max=settings.dlq_bytes_max,
        auto_replay=auto_replay,
        rules=make_rules(settings),
    )


def folder_letters(settings: Settings, folder: Path, *, auto_replay: bool) -> DeadLetterQueue:
    """Return those of a process that has this folder."""
    backend = FolderBackend(
        folder,
        segment_bytes=segment_bytes(settings.dlq_bytes_max),
        keep_days=settings.dlq_keep_days,
    )
    return make_dead_letters(settings, backend, auto_replay=auto_replay)
