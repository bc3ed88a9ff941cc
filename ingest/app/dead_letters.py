"""TEMPORARY until dlq is merged."""

from __future__ import annotations

import os
from pathlib import Path

from ingest.app.rules import make_rules
from ingest.dead_letters.queue import DeadLetterQueue


def make_dead_letters(settings, connection):
    q = DeadLetterQueue(
        Path(settings.state_dir or "/tmp") / f"dl-{os.getpid()}",
        bytes_max=settings.dlq_bytes_max,
        segment_bytes=settings.dlq_segment_bytes,
        keep_days=1,
        rules=make_rules(settings),
    )
    q._store.open()
    return q


def make_stream_replayer(settings, connection, dead_letters, sender):
    return None
